"""Train a forecaster: `python train.py`, or `deepspeed train.py --deepspeed ds_configs/zero2.json` on many GPUs."""

# first: takes this folder, whose kernels/ is not Hugging Face's package of that name, off the path
import llata_fast  # noqa: F401, I001

import torch

from llata_fast.cli import INTERRUPTED, report_and_exit
from llata_fast.data import read_series, split_windows
from llata_fast.errors import InputError
from llata_fast.evaluation.baselines import score
from llata_fast.evaluation.tables import results_table
from llata_fast.forecasting.pictures import HAS_MATPLOTLIB
from llata_fast.ranks import leaving_in_order
from llata_fast.training.arguments import parse_arguments
from llata_fast.training.stopping import stopping_on_sigterm, where_it_stands
from llata_fast.training.throughput import memory_hint
from llata_fast.experiment import prepare, save_run
from llata_fast.run_folder import Preprocessor
from llata_fast.training.run import (
    draw_test_forecast,
    fit_baselines,
    middle_window,
    parameter_counts,
    parameter_table,
    write_metrics,
)


def main():
    model_args, data_args, args = parse_arguments()
    series = read_series(
        data_args.dataset,
        data_dir=data_args.data_dir,
        date_column=data_args.date_column,
        columns=data_args.columns,
        missing=data_args.missing,
    )
    splits = split_windows(
        series,
        model_args.context_length,
        model_args.prediction_length,
        few_shot_percent=data_args.few_shot_percent,
    )
    trainer = prepare(series, splits, model_args, data_args, args)
    model = trainer.model
    num_tokens = model.config.num_tokens(len(series.columns))
    attention = model.attention.explain(num_tokens, args.compute_dtype, args.device)
    main_process = trainer.is_world_process_zero()
    if main_process:
        counts = parameter_counts(model)
        print(f"{parameter_table(counts)}\nattention: {attention}")
        print(f"the run goes to {args.output_dir}")

    trained = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    speed = trainer.throughput.summary()
    # before what may still fail: the run can forecast from here on
    save_run(trainer, Preprocessor.of(data_args.dataset, series, splits.scaler))
    test = trainer.test()
    past, observed, _ = middle_window(splits.test)
    forecast = trainer.forecast(past, observed)
    if not main_process:
        return
    baselines = fit_baselines(series, splits.train)
    scores = {name: score(baseline, splits.test, series.columns) for name, baseline in baselines.items()}
    write_metrics(
        args.output_dir,
        {"test": test, "baselines": scores, "train": trained.metrics | speed, "parameters": counts},
    )
    print(results_table({"llata": test, **scores}))
    if HAS_MATPLOTLIB:
        forecasts = {name: baseline(past, observed) for name, baseline in baselines.items()}
        picture = draw_test_forecast(args.output_dir, series, splits, {"forecast": forecast, **forecasts})
        print(f"picture: {picture}")
    print(f"to forecast: python -m llata_fast predict {args.output_dir} --input my.csv --output forecast.csv --plot")


if __name__ == "__main__":
    try:
        with leaving_in_order(), stopping_on_sigterm():
            main()
    except InputError as error:
        report_and_exit(error)
    except KeyboardInterrupt:
        report_and_exit(f"interrupted; {where_it_stands()}", status=INTERRUPTED)
    except torch.OutOfMemoryError as error:
        report_and_exit(memory_hint(error), every_rank=True)
