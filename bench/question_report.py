"""Table, picture and confidence intervals of `question.py`, from its rows."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from question_data import SHARES
from scipy import stats

MODELS = ("llata", "no_llm", "random_init", "random weights", "no_text_branch", "random_prototypes")
BASELINES = ("seasonal_naive", "smoothing", "linear")
TARGETS = ("ETTh1", "Exchange", "M4 Hourly", "EIA", "retail")
LEVEL = 0.95


def write_report(folder: Path):
    """Write README.md and question.png beside the rows."""
    pretrainings = pd.read_csv(folder / "pretrainings.csv", dtype={"change": str}).fillna({"change": ""})
    scores = pd.read_csv(folder / "scores.csv", dtype={"change": str}).fillna({"change": ""})
    windows = main_windows(pretrainings)
    scores = by_change(scores)
    relative = over_naive(scores)
    plain, more = (relative[relative.windows.isin([0, budget])] for budget in (windows, 2 * windows))
    parts = [
        "# Does the language model help generalisation?\n",
        "Made from [pretrainings.csv](pretrainings.csv) and [scores.csv](scores.csv) by `python bench/question.py "
        "--plot`; question and findings: [docs/question.md](../../../docs/question.md).\n",
        f"## MASE relative to seasonal naive's, {windows:,} windows\n",
        "One row per model and share of a target's rows that its head was fitted to, as means over seeds; the last "
        "column is the geometric mean over targets. ETTh1 is the mean over its horizons.\n",
        _markdown(main_table(plain)),
        "\n## llata minus another model, paired by seed\n",
        "Difference of the logarithm of the geometric mean, in percent (below 0: llata is better), with its 95 % "
        "confidence interval (Student's t) over the seeds that both have.\n",
        _markdown(differences(plain)),
        "\nThe same in validation, where quantiles are also scored: the last windows of the training sets, and "
        "synthetic series that are not trained on.\n",
        _markdown(validation_differences(pretrainings)),
        f"\n## Twice the windows, {2 * windows:,}\n",
        _markdown(main_table(more[more.windows > 0])),
        "",
        _markdown(differences(more)),
        "\n## ETTh1 by horizon, standardised\n",
        _markdown(ett_table(scores[scores.windows.isin([0, windows])])),
        "\n## One factor at a time\n",
        f"{windows // 2:,} windows, seed 0, in validation: MASE and WQL relative to seasonal naive's, geometric means "
        "over the sets, and their difference in percent from the unchanged model, whose other seeds are also given.\n",
        _markdown(factor_table(pretrainings)),
        "\n## Scaling\n",
        *scaling_lines(pretrainings),
        "\n![](question.png)\n",
    ]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")
    draw(plain, pretrainings, folder / "question.png")


def main_windows(pretrainings: pd.DataFrame) -> int:
    """Number of windows that all models of the comparison have seen."""
    return int(pretrainings[pretrainings.part == "main"].windows.max())


def by_change(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in which every change of llata counts as a separate model."""
    return rows.assign(model=rows.model.where(rows.change == "", rows.change))


def over_naive(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of `scores` with "ratio": MASE divided by seasonal naive's on the same target and horizon."""
    naive = scores[scores.model == "seasonal_naive"].set_index(["target", "horizon"]).mase
    keys = pd.MultiIndex.from_frame(scores[["target", "horizon"]])
    return scores.assign(ratio=scores.mase.to_numpy() / naive.reindex(keys).to_numpy())


def by_seed(relative: pd.DataFrame) -> pd.DataFrame:
    """Log ratios by [model, percent, seed] and target, with their mean as "all"; NaN for a target without a score."""
    logs = relative.assign(log=np.log(relative.ratio))
    by_target = logs.groupby(["model", "percent", "seed", "target"]).log.mean().unstack("target")
    order = [name for name in TARGETS if name in by_target]
    by_target = by_target[order]
    return by_target.assign(all=by_target.mean(axis=1, skipna=False))


def main_table(relative: pd.DataFrame) -> pd.DataFrame:
    logs = by_seed(relative)
    means = np.exp(logs.groupby(["model", "percent"]).mean())
    seeds = logs.groupby(["model", "percent"]).size()
    rows = []
    for model in (*MODELS, *BASELINES):
        for percent in sorted(relative[relative.model == model].percent.unique()):
            row = means.loc[(model, percent)]
            rows.append(
                {"model": model, "rows": f"{percent:g} %", "seeds": seeds[(model, percent)]}
                | {name: f"{value:.3f}" if np.isfinite(value) else "-" for name, value in row.items()}
            )
    return pd.DataFrame(rows)


def differences(relative: pd.DataFrame) -> pd.DataFrame:
    """llata minus each other model over the seeds that both have, for "all" and for every target."""
    logs, rows = by_seed(relative), []
    held = logs.index.get_level_values("model").unique()
    for other in MODELS[1:]:
        for percent in sorted(relative.percent.unique()):
            if not {"llata", other} <= set(held):
                continue
            try:
                pair = logs.loc[("llata", percent)] - logs.loc[(other, percent)]
            except KeyError:
                continue
            pair = pair.dropna(how="all")
            row = {"llata minus": other, "rows": f"{percent:g} %", "seeds": len(pair)}
            rows.append(row | {name: interval(100 * pair[name].dropna().to_numpy()) for name in pair})
    return pd.DataFrame(rows)


def validation_differences(pretrainings: pd.DataFrame) -> pd.DataFrame:
    """llata minus each other model over the seeds that both have, in validation."""
    compared = by_change(pretrainings[pretrainings.part.isin(["main", "twice"])])
    logs = np.log(compared.set_index(["windows", "model", "seed"])[["relative_mase", "relative_wql"]]).sort_index()
    rows = []
    for windows, other in itertools.product(sorted(compared.windows.unique()), MODELS[1:]):
        if not {(windows, "llata"), (windows, other)} <= {key[:2] for key in logs.index}:
            continue
        pair = (logs.loc[(windows, "llata")] - logs.loc[(windows, other)]).dropna()
        row = {"llata minus": other, "windows": f"{windows:,}", "seeds": len(pair)}
        rows.append(row | {name: interval(100 * pair[name].to_numpy()) for name in pair})
    return pd.DataFrame(rows)


def interval(values: np.ndarray) -> str:
    """Mean of paired differences with its confidence interval; only the mean if there is a single one."""
    if len(values) < 2:
        return f"{values[0]:+.1f}" if len(values) else "-"
    low, high = bounds(values)
    return f"{values.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


def bounds(values: np.ndarray) -> tuple[float, float]:
    """Confidence interval of the mean by Student's t."""
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def ett_table(scores: pd.DataFrame) -> pd.DataFrame:
    ett = scores[(scores.target == "ETTh1") & scores.percent.isin([0.0, 10.0, 100.0])]
    means = ett.groupby(["model", "percent", "horizon"])[["mse", "mae"]].mean()
    rows = []
    for model in (*MODELS, *BASELINES):
        for percent in sorted(ett[ett.model == model].percent.unique()):
            row = {"model": model, "rows": f"{percent:g} %"}
            for horizon, (mse, mae) in means.loc[(model, percent)].iterrows():
                row[f"H {horizon}"] = f"{mse:.3f} / {mae:.3f}"
            rows.append(row)
    return pd.DataFrame(rows)


def factor_table(pretrainings: pd.DataFrame) -> pd.DataFrame:
    """One row per change, all with half the windows."""
    same = pretrainings[pretrainings.windows == main_windows(pretrainings) // 2]
    rows = []
    for model, own in same.groupby("model", sort=False):
        plain = own[(own.change == "") & (own.num_layers == 2)]
        base = plain[plain.seed == 0]
        if base.empty:
            continue
        changed = own[(own.seed == 0) & ((own.change != "") | (own.num_layers != 2))]
        for row in pd.concat([base, changed]).itertuples():
            blocks = f"{row.num_layers} blocks" if row.num_layers != 2 else ""
            named = ", ".join(part for part in (row.change, blocks) if part)
            shown = {"model": model, "change": named or f"none; {len(plain)} seeds"}
            for name, label in (("relative_mase", "MASE"), ("relative_wql", "WQL")):
                value, first = getattr(row, name), base[name].iloc[0]
                shown[label] = f"{value:.3f}" if named else _spread(plain[name])
                shown[f"{label}, percent"] = f"{100 * np.log(value / first):+.1f}" if named else ""
            rows.append(shown | {"trained": f"{row.trained:,}", "CPU seconds": f"{row.cpu_seconds:.0f}"})
    return pd.DataFrame(rows)


def _spread(values: pd.Series) -> str:
    """The first value, and the range of all."""
    return f"{values.iloc[0]:.3f} ({values.min():.3f} to {values.max():.3f})"


def by_windows(pretrainings: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """llata and no_llm without changes, two blocks: a row for each seed and number of windows."""
    plain = pretrainings[(pretrainings.change == "") & (pretrainings.num_layers == 2)]
    for model in ("llata", "no_llm"):
        yield model, plain[plain.model == model].sort_values("windows")


def scaling_lines(pretrainings: pd.DataFrame) -> list[str]:
    """Lines with the fitted power laws, their ranges and their rows."""
    lines = []
    for model, rows in by_windows(pretrainings):
        if rows.windows.nunique() >= 3:
            fit = fit_power(rows.windows.to_numpy(), rows.relative_mase.to_numpy())
            means = np.exp(np.log(rows.relative_mase).groupby(rows.windows).mean())
            points = ", ".join(f"{mase:.3f} at {windows:,}" for windows, mase in means.items())
            lines.append(
                f"- {model}: relative MASE = {np.exp(fit.intercept):.2f} * windows^{fit.slope:.3f}, the exponent in "
                f"[{fit.slope - fit.half:.3f}, {fit.slope + fit.half:.3f}], R2 {fit.r2:.2f}, {len(rows)} runs from "
                f"{rows.windows.min():,} to {rows.windows.max():,} windows: {points}"
            )
    half = main_windows(pretrainings) // 2
    sizes = pretrainings[(pretrainings.windows == half) & (pretrainings.model == "llata") & (pretrainings.seed == 0)]
    sizes = sizes[sizes.change.isin(["", "random weights"])]
    for change, rows in sizes.groupby("change"):
        points = ", ".join(
            f"{row.num_layers} blocks {row.relative_mase:.3f} (WQL {row.relative_wql:.3f})"
            for row in rows.sort_values("num_layers").itertuples()
        )
        lines.append(f"- {'random frozen' if change else 'pre-trained'} blocks, {half:,} windows: {points}")
    return lines or ["No rows yet."]


class PowerLaw(NamedTuple):
    """log y = intercept + slope * log x; `half` is half of the slope's 95 % interval."""

    slope: float
    intercept: float
    half: float
    r2: float


def fit_power(x: np.ndarray, y: np.ndarray) -> PowerLaw:
    fitted = stats.linregress(np.log(x), np.log(y))
    half = stats.t.ppf((1 + LEVEL) / 2, len(x) - 2) * fitted.stderr
    return PowerLaw(fitted.slope, fitted.intercept, half, fitted.rvalue**2)


def draw(relative: pd.DataFrame, pretrainings: pd.DataFrame, path: Path):
    """Left: error over the share of rows, one line per model; right: error over windows seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    logs = by_seed(relative)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, model in enumerate(MODELS):
        if model not in logs.index.get_level_values("model"):
            continue
        own = logs.loc[model]["all"].dropna().groupby("percent")
        means = np.exp(own.mean())
        # shifted, so that the models' points do not overlap
        places = [SHARES.index(percent) + 0.06 * (number - 2.5) for percent in means.index]
        (line,) = left.plot(places, means, marker="o", label=model)
        for place, (_, values) in zip(places, own, strict=True):
            left.plot([place] * len(values), np.exp(values), ".", color=line.get_color(), alpha=0.5)
    left.axhline(1, color="grey", linewidth=1, linestyle="--", label="seasonal naive")
    for name, style in (("smoothing", ":"), ("linear", "-.")):
        rows = logs.loc[name]["all"].dropna() if name in logs.index.get_level_values("model") else []
        if len(rows):
            percent = rows.index.get_level_values("percent").max()
            label = "exponential smoothing" if name == "smoothing" else "linear map, all of the rows"
            left.axhline(
                float(np.exp(rows.loc[percent].mean())), color="grey", linewidth=1, linestyle=style, label=label
            )
    left.set_xticks(range(4), ["none", "1 %", "5 %", "10 %"])
    left.set_xlabel("share of the target's rows that the head is fitted to")
    left.set_ylabel("MASE / seasonal naive's, geometric mean")
    left.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)
    for model, rows in by_windows(pretrainings):
        means = np.exp(np.log(rows.relative_mase).groupby(rows.windows).mean())
        (line,) = right.plot(means.index, means, marker="o", label=model)
        right.plot(rows.windows, rows.relative_mase, ".", color=line.get_color(), alpha=0.5)
    right.set_xscale("log")
    seen = sorted({int(windows) for _, rows in by_windows(pretrainings) for windows in rows.windows})
    right.set_xticks(seen, [f"{windows:,}" for windows in seen])
    right.minorticks_off()
    right.set(xlabel="windows seen in pre-training", ylabel="MASE / seasonal naive's, validation")
    right.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _markdown(table: pd.DataFrame) -> str:
    if table.empty:
        return "No rows yet."
    lines = [table.columns, ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
