"""Train on your own wide CSV (a date column and one column per channel) and forecast the rows after its end.

python examples/own_csv.py my.csv 24        # forecast 24 rows, written to forecast.csv
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import sys
from typing import Any

import pandas as pd

from llata_fast import Forecaster, read_csv, train


def main(path: str, prediction_length: int, output: str = "forecast.csv", **settings: Any) -> pd.DataFrame:
    """`settings` are options of train.py by name; those left out are chosen from the series."""
    outcome = train(path, prediction_length=prediction_length, **settings)
    # compare the run with baselines on rows that it has not seen
    for name, scores in {"llata": outcome.metrics["test"], **outcome.metrics["baselines"]}.items():
        print(f"{name:<20} MSE {scores['mse']:.4f}  MAE {scores['mae']:.4f}")
    forecaster = Forecaster.from_pretrained(outcome.folder.path)
    forecast = forecaster.predict_df(read_csv(path), quantile_levels=[0.1, 0.5, 0.9])
    forecast.to_csv(output, index=False)
    return forecast


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
