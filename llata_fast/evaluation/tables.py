"""Print results for people to read."""

import pandas as pd


def results_table(scores: dict[str, dict]) -> str:
    """A text table from name -> errors {"mse", "mae", "per_channel": {column: {"mse", "mae"}}}, or other scores by
    name.

    It has the overall errors, then the MSE by channel; a missing score is blank. Scores by dataset are in metrics.json.
    """
    rows = {}
    for name, score in scores.items():
        overall = {error.upper(): value for error, value in score.items() if not error.startswith("per_")}
        by_channel = {f"MSE {column}": errors["mse"] for column, errors in score.get("per_channel", {}).items()}
        rows[name] = overall | by_channel
    table = pd.DataFrame.from_dict(rows, orient="index").astype(float)
    # all channels of a wide series would not fit a terminal; they are in metrics.json
    return table.iloc[:, :10].to_string(float_format=lambda value: f"{value:.4f}", na_rep="")
