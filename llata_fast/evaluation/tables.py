"""Results for people to read."""

import pandas as pd


def results_table(scores: dict[str, dict]) -> str:
    """Text from name -> {"mse", "mae", "per_channel": {column: {"mse", "mae"}}}: errors overall, MSE by channel."""
    rows = {
        name: {"MSE": score["mse"], "MAE": score["mae"]}
        | {f"MSE {column}": errors["mse"] for column, errors in score["per_channel"].items()}
        for name, score in scores.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    # a wide series would not fit a terminal: its channels are in metrics.json
    return table.iloc[:, :10].to_string(float_format=lambda value: f"{value:.4f}")
