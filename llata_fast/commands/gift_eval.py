"""Score a run by GIFT-Eval's protocol, and write the files for its leaderboard.

The datasets lie in one folder, laid out like Salesforce/GiftEval on the hub. OUTPUT/MODEL and, for comparison,
OUTPUT/seasonal_naive each get an all_results.csv, with a row as soon as a dataset is done, and a config.json. Rows that
are already there are not scored again.
"""

import argparse
from pathlib import Path

from ..errors import InputError
from .inputs import add_backbone_argument

BASELINE = "seasonal_naive"
TYPES = ("pretrained", "fine-tuned", "zero-shot", "deep-learning")


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("run", help="folder of a finished run, for one channel or for any series")
    add_backbone_argument(parser)
    parser.add_argument("--data_dir", required=True, help="folder with the benchmark's datasets")
    parser.add_argument("--datasets", nargs="+", required=True, help="datasets, such as m4_weekly or ett1/H")
    parser.add_argument("--terms", nargs="+", default=["short"], help="any of short, medium and long")
    parser.add_argument("--output", default="results", help="folder for the results, one sub-folder per model")
    parser.add_argument("--model", default="llata", help="name of the model in its results")
    parser.add_argument("--model_type", choices=TYPES, required=True, help="the leaderboard's category of the model")
    parser.add_argument(
        "--testdata_leakage", choices=("Yes", "No"), required=True, help="whether the model was trained on test data"
    )
    for name in ("model_link", "code_link", "org"):
        parser.add_argument(f"--{name}", default="", help=f"{name} in config.json")
    parser.add_argument("--batch_size", type=int, default=512, help="series per batch; results do not depend on it")


def main(options: argparse.Namespace):
    from ..adapters import gift_eval
    from ..adapters.gluonts import LlataPredictor, SeasonalNaivePredictor
    from ..forecasting.forecaster import Forecaster

    forecaster = Forecaster.from_pretrained(options.run, backbone=options.backbone)
    if not forecaster.info.any_series and len(forecaster.info.columns) != 1:
        raise InputError(f"{options.run} forecasts {len(forecaster.info.columns)} channels, but GIFT-Eval needs one")
    if options.model == BASELINE or Path(options.model).name != options.model:
        raise InputError(f"--model {options.model}: give a valid folder name other than {BASELINE}")
    submitted = {name: getattr(options, name) for name in ("model_type", "testdata_leakage", "model_link", "code_link")}
    results = {
        options.model: gift_eval.Submission(options.model, **submitted, org=options.org),
        BASELINE: gift_eval.Submission(BASELINE, "statistical", "No"),
    }
    files = {name: gift_eval.ResultFiles(Path(options.output, name), entry) for name, entry in results.items()}
    for name in options.datasets:
        for term in options.terms:
            task = gift_eval.read_gift_eval_task(options.data_dir, name, term)
            predictors: dict[str, gift_eval.QuantilePredictor] = {
                options.model: LlataPredictor(forecaster, task.horizon, batch_size=options.batch_size),
                BASELINE: SeasonalNaivePredictor(task.horizon, task.seasonality),
            }
            for model, predictor in predictors.items():
                row = files[model].row(task) or files[model].add(task, gift_eval.score_gift_eval(predictor, task))
                mase, crps = row["eval_metrics/MASE[0.5]"], row["eval_metrics/mean_weighted_sum_quantile_loss"]
                print(f"{task.name}: {model} MASE {mase:.4f}, CRPS {crps:.4f}")
    print(f"results: {', '.join(str(each.folder) for each in files.values())}")
