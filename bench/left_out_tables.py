"""Tables of the results of `left_out.py`: the rule that the other series choose, and its errors."""

from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = (
    *("series", "part", "horizon", "model", "seed", "validation_mse", "validation_mae", "mse", "mae", "windows"),
    *("learned_share", "seconds"),
)
SHIPPED = "worst ratio"
"""The rule that `choose_start` uses."""

_BASELINES = ("linear", "linear_per_channel", "dlinear")

_INTRODUCTION = """# Series left out

Written by `python bench/left_out.py` from `left_out.csv`. Errors are measured on standardised data over all test
windows, context 96. Ratios are relative to the linear baseline (one map, one map per channel, or DLinear) that has the
lowest MSE in the series' own validation.
"""


def read_rows(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    return pd.read_csv(path, dtype={"seed": str}, keep_default_na=True).fillna({"seed": ""})


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """All rows of rules and runs with the picked baseline, and their `mse` and `mae` relative to it."""
    keys = ["series", "part", "horizon"]
    baselines = rows[rows["model"].isin(_BASELINES)]
    picked = baselines.loc[baselines.groupby(keys)["validation_mse"].idxmin(), [*keys, "model", "mse", "mae"]]
    others = rows[~rows["model"].isin(_BASELINES)]
    table = others.merge(picked.rename(columns={"model": "picked"}), on=keys, suffixes=("", "_of_picked"))
    for error in ("mse", "mae"):
        table[f"{error}_ratio"] = table[error] / table[f"{error}_of_picked"]
    return table


def chosen_rules(table: pd.DataFrame) -> pd.Series:
    """{series: the rule that is best in the rehearsals of all others}, by the mean of log MSE and log MAE."""
    rehearsed = table[table["part"] != "whole"].copy()
    rehearsed["score"] = np.log(rehearsed["mse_ratio"] * rehearsed["mae_ratio"]) / 2
    # every series counts once, however many horizons it has
    scores = rehearsed.groupby(["series", "model"])["score"].mean().unstack()
    others = {name: scores.drop(index=name, errors="ignore").mean() for name in table["series"].unique()}
    return pd.Series({name: means.idxmin() for name, means in others.items() if means.notna().any()}, dtype=object)


def markdown(path: Path) -> str:
    table = ratios(read_rows(path))
    rules = table[table["model"] != "llata"]
    tested = rules[rules["part"] == "whole"]
    chosen = chosen_rules(rules)
    left_out = tested[tested["model"] == tested["series"].map(chosen)]
    shipped = tested[tested["model"] == SHIPPED]
    runs = table[(table["model"] == "llata") & (table["part"] == "whole")]
    parts = [_INTRODUCTION]
    if len(left_out):
        parts += ["## Rules in rehearsals\n", *_rehearsals(rules), ""]
        parts += ["## The rule chosen by all other series, on the series left out\n", *_by_series(left_out), ""]
    parts += [f"## The preset's rule: {SHIPPED}\n", *_by_series(shipped), ""]
    if len(runs):
        parts += ["## Full runs, including the language model\n", *_whole_runs(runs), ""]
    return "\n".join(parts)


def _rehearsals(rules: pd.DataFrame) -> list[str]:
    lines = ["| rule | MSE | MAE | MSE, real series | MAE, real series | series |", "|---|---|---|---|---|---|"]
    rehearsed = rules[rules["part"] != "whole"]
    for model, rows in rehearsed.groupby("model", sort=False):
        real = rows[~rows["series"].str.startswith("made_up")]
        cells = [f"{_mean(part[error]):.4f}" for part in (rows, real) for error in ("mse_ratio", "mae_ratio")]
        lines.append(f"| {model} | {' | '.join(cells)} | {rows['series'].nunique()} |")
    return lines


def _by_series(rows: pd.DataFrame) -> list[str]:
    lines = ["| series | horizon | rule | MSE | MAE | picked | its MSE | its MAE | ratio |", "|---" * 9 + "|"]
    for row in rows.sort_values(["series", "horizon"]).itertuples():
        mark = " (worse)" if max(row.mse_ratio, row.mae_ratio) > 1.01 else ""
        lines.append(
            f"| {row.series} | {row.horizon} | {row.model} | {row.mse:.4f} | {row.mae:.4f} | {row.picked} | "
            f"{row.mse_of_picked:.4f} | {row.mae_of_picked:.4f} | {row.mse_ratio:.4f} / {row.mae_ratio:.4f}{mark} |"
        )
    for name, part in (("all", rows), ("real", rows[~rows["series"].str.startswith("made_up")])):
        means = " / ".join(f"{_mean(part[error]):.4f}" for error in ("mse_ratio", "mae_ratio"))
        lines.append(f"| geometric mean, {name} | | | | | | | | {means} |")
    return lines


def _whole_runs(runs: pd.DataFrame) -> list[str]:
    lines = ["| series | horizon | seeds | kept | MSE | MAE | ratio |", "|---" * 7 + "|"]
    for (series, horizon), rows in runs.groupby(["series", "horizon"]):
        kept = " ".join(f"{share:g}" for share in rows["learned_share"])
        lines.append(
            f"| {series} | {horizon} | {' '.join(rows['seed'])} | {kept} | {rows['mse'].mean():.4f} | "
            f"{rows['mae'].mean():.4f} | {rows['mse_ratio'].mean():.4f} / {rows['mae_ratio'].mean():.4f} |"
        )
    return lines


def _mean(ratios: pd.Series) -> float:
    return float(np.exp(np.log(ratios).mean()))
