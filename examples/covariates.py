"""Metro traffic forecast with and without the weather: what temperature and clouds, known a day ahead, are worth.

    python examples/covariates.py --output_dir runs/weather

Three runs with the same settings: without covariates, with covariates, and with shuffled covariates, which must not
help. Measured temperatures stand in for a perfect weather forecast; a real forecast would help less.
Data: J. Hogue, Metro Interstate Traffic Volume, UCI Machine Learning Repository, CC BY 4.0.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from llata_fast import Forecaster, Panel
from llata_fast.data import read_series

WEATHER = ["temp", "clouds_all"]


def long_table() -> pd.DataFrame:
    """One item, one row per hour: traffic and weather."""
    series = read_series("Metro")
    table = pd.DataFrame(series.values, columns=list(series.columns))
    return table.assign(item_id="I-94", timestamp=series.dates)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--backbone", default="SmolLM2-135M-Instruct")
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument(
        "--n_windows", type=int, default=60, help="days at the end to forecast and exclude from training"
    )
    options = parser.parse_args()
    table, horizon = long_table(), 24
    shuffled = table.copy()
    shuffled[WEATHER] = table[WEATHER].to_numpy()[np.random.default_rng(0).permutation(len(table))]
    scores = {}
    for name, rows, known in (("without", table, None), ("weather", table, WEATHER), ("shuffled", shuffled, WEATHER)):
        panel = Panel.from_df(rows, target="traffic_volume", known_covariates=known, name="Metro")
        forecaster = Forecaster.fit(
            panel.until(options.n_windows * horizon),
            prediction_length=horizon,
            context_length=336,
            output_dir=Path(options.output_dir, name),
            backbone=options.backbone,
            max_steps=options.max_steps,
        )
        found = forecaster.evaluate(
            panel,
            metrics=("MASE", "WQL", "MSE"),
            n_windows=options.n_windows,
            baselines=("linear",) if known is None else ("linear", "ridge_covariates"),
        )
        scores |= {(name, model): row for model, row in found.iterrows()}
    print(pd.DataFrame(scores).T.to_string(float_format=lambda value: f"{value:.4f}"))


if __name__ == "__main__":
    main()
