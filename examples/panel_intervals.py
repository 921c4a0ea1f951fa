"""Forecast many items in one long table with 80 % intervals, and measure the coverage of the intervals.

python examples/panel_intervals.py sales.csv sku date qty        # one row per item and date
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import sys
from typing import Any

import pandas as pd

from llata_fast import Forecaster, Panel

HORIZON, LEVELS = 7, [0.1, 0.5, 0.9]


def main(
    path: str, id_column: str, timestamp_column: str, target: str, **settings: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Forecasts for every item, and scores by model; `settings` are options of train.py by name."""
    panel = Panel.from_csv(path, id_column=id_column, timestamp_column=timestamp_column, target=target)
    # hold out the last horizon of every item for scoring
    forecaster = Forecaster.fit(
        panel.until(HORIZON),
        prediction_length=HORIZON,
        context_length=4 * HORIZON,
        quantile_levels=LEVELS,
        **{"max_steps": 200} | settings,
    )
    # coverage: the share of values between the outer two levels, ideally 0.8 here
    scores = forecaster.evaluate(panel, metrics=("MASE", "WQL", "coverage"), baselines=("seasonal_naive",))
    print(scores.to_string(float_format=lambda value: f"{value:.3f}"))
    forecast = forecaster.predict_df(panel, quantile_levels=LEVELS)
    print(forecast.to_string(max_rows=12))
    return forecast, scores


if __name__ == "__main__":
    main(*sys.argv[1:])
