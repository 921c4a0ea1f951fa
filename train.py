"""Train a forecaster: `python train.py`, or `deepspeed train.py --deepspeed ds_configs/zero2.json` on many GPUs."""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

from llata_fast.cli import one_line_errors, report_and_exit, show_log, show_warnings_in_one_line, training_parser


def train():
    from llata_fast.evaluation.tables import results_table
    from llata_fast.experiment import run_experiment
    from llata_fast.training.arguments import parse_arguments

    outcome = run_experiment(*parse_arguments())
    if not outcome.metrics:
        # only rank 0 has the results
        return
    print(
        results_table(
            {"llata": outcome.metrics["test"] | (outcome.metrics["intervals"] or {}), **outcome.metrics["baselines"]}
        )
    )
    if outcome.picture:
        print(f"picture: {outcome.picture}")
    print(f"to forecast: python -m llata_fast predict {outcome.folder} --input my.csv --output forecast.csv --plot")


def main():
    # print help and refuse malformed options before importing torch, which takes seconds
    training_parser().parse_known_args()
    show_warnings_in_one_line()
    show_log()
    import torch

    from llata_fast.ranks import leaving_in_order
    from llata_fast.training.stopping import stopping_on_sigterm, where_it_stands
    from llata_fast.training.throughput import memory_hint

    try:
        with one_line_errors(interrupted=lambda: f"interrupted; {where_it_stands()}"):
            with leaving_in_order(), stopping_on_sigterm():
                train()
    except torch.OutOfMemoryError as error:
        report_and_exit(memory_hint(error), every_rank=True)


if __name__ == "__main__":
    main()
