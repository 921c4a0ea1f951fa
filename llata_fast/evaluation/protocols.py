"""The paper's protocols as lists of trials, and the tables of their results. It does not depend on training."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import pandas as pd

PROTOCOLS = ("long_term", "few_shot", "zero_shot", "short_term")
HORIZONS = (96, 192, 336, 720)
BENCHMARK_BASELINES = ("seasonal_naive", "linear", "dlinear", "linear_per_channel", "linear_start", "naive2")


WITHOUT: dict[str, dict[str, Any]] = {
    # with the learning rates that are best without a skip
    "no_skip": {"linear_skip": False, "learning_rate": 0.001, "projection_learning_rate": 0.001},
}
"""Name of a model variant -> the recipe without one of the options that the paper lacks."""
REFERENCE_NOTE = "last test batch dropped, as the reference did"


@dataclass(frozen=True)
class Trial:
    """One row of the results: which model is trained on which dataset, and scored on which."""

    protocol: str
    dataset: str
    target: str
    """The dataset to score; it differs from `dataset` only in zero-shot."""
    horizon: int
    percent: float | None
    """Percent of the training split; None: all of it."""
    model: str
    """Name of a baseline, `llata`, one of its ablations, or a variant without one of our options."""
    recipe: str
    seed: int | None
    """None for a baseline, which draws nothing at random."""

    @property
    def key(self) -> tuple:
        return tuple("" if value is None else str(value) for value in asdict(self).values())

    @property
    def folder(self) -> str:
        """Name of the trained run's folder; a zero-shot trial reuses the long-term run of its source dataset."""
        share = "" if self.percent is None else f"-{self.percent:g}percent"
        return f"{self.dataset}-{self.horizon}{share}-{self.model}-{self.recipe}-{self.seed}"


_MEASURES = ("mse", "mae", "smape", "mase", "owa", "windows", "trained_parameters", "frozen_parameters", "seconds")
RESULT_COLUMNS = (*(item.name for item in fields(Trial)), *_MEASURES, "validation_mse", "note", "machine", "command")


class Results:
    """A CSV of trials, one row each, written as they finish; a trial that already has a row is not repeated.

    With `reference`, a trial counts as done if its row was scored by the reference's protocol; without it, if it was
    scored on every window.
    """

    def __init__(self, path: str | Path, reference: bool = False):
        """Raises InputError if the file exists but is not such a table."""
        self.path = Path(path)
        self.done: set[tuple] = set()
        if self.path.exists():
            import pandas as pd

            try:
                table = pd.read_csv(self.path, dtype=str, keep_default_na=False)
                # trials that cannot be trained, and M4, have only one way of scoring
                scored = table["mse"] != ""
                same = table["note"].str.startswith(REFERENCE_NOTE) == reference
                rows = table.loc[same | ~scored, [item.name for item in fields(Trial)]]
                self.done = {tuple(row) for row in rows.to_numpy()}
            except (KeyError, ValueError, OSError) as error:
                raise InputError(f"{self.path} is not a table of results: {error}") from None
            if tuple(table.columns) != RESULT_COLUMNS:
                raise InputError(f"{self.path} has other columns than this version writes: give another --out")

    def __contains__(self, trial: Trial) -> bool:
        return trial.key in self.done

    def add(self, trial: Trial, **measures):
        """Append a row in one write; `measures` are columns besides the trial's own."""
        row = {name: "" if value is None else value for name, value in {**asdict(trial), **measures}.items()}
        text = io.StringIO()
        writer = csv.DictWriter(text, RESULT_COLUMNS, restval="")
        if not self.path.exists():
            writer.writeheader()
        writer.writerow(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(text.getvalue())
        self.done.add(trial.key)


def trials(
    protocol: str,
    datasets: Sequence[str],
    *,
    horizons: Iterable[int],
    models: Iterable[str],
    seeds: Sequence[int],
    recipe: str,
    percents: Iterable[float | None] = (None,),
    targets: Sequence[str] | None = None,
) -> list[Trial]:
    """Every trial of a protocol: baselines once, models once per seed."""
    return [
        Trial(protocol, dataset, target, horizon, percent, model, "" if baseline else recipe, seed)
        for dataset in datasets
        for percent in percents
        for horizon in horizons
        for model in models
        for baseline in (model in BENCHMARK_BASELINES,)
        for seed in ((None,) if baseline else seeds)
        for target in (targets or (dataset,))
    ]


def means_over_seeds(path: str | Path) -> "pd.DataFrame":
    """Mean and standard deviation over seeds for every configuration in a `Results` file, and means over horizons."""
    import pandas as pd

    table = pd.read_csv(path)
    for name in ("percent", "recipe", "note"):
        table[name] = table[name].astype(object).fillna("")
    table["target"] = table["target"].fillna(table["dataset"])
    keys = ["protocol", "dataset", "target", "percent", "horizon", "model", "recipe", "note"]
    return (
        table.groupby(keys, sort=False)
        .agg(
            **{
                f"{name}_{how}": (name, how)
                for name in ("mse", "mae", "smape", "mase", "owa")
                for how in ("mean", "std")
            },
            trials=("seed", "size"),
            seeds=("seed", lambda seeds: " ".join(str(int(seed)) for seed in seeds.dropna())),
            seconds=("seconds", "mean"),
            trained_parameters=("trained_parameters", "mean"),
            windows=("windows", "first"),
            command=("command", "first"),
        )
        .reset_index()
    )


_INTRODUCTION = """# Results

Written by `python -m llata_fast benchmark` from `results.csv`, which has one row per trial. Errors are on standardised
data (M4: as the competition defines them), as mean ± standard deviation over the listed seeds; every test window is
scored unless the note says otherwise. Validation selected the weights, and the test split was read once per trial.
`parameters` counts trained parameters; `seconds` is the training time, validation included. `dlinear` is solved in
closed form. `linear_start` is what a tuned run starts from, and its whole forecast if nothing that it learned is kept;
the seed does not matter then.
"""


def markdown(path: str | Path) -> str:
    """The tables of a `Results` file, one per protocol, dataset and share."""
    rows, parts = means_over_seeds(path), [_INTRODUCTION]
    for key, group in rows.groupby(["protocol", "dataset", "target", "percent"], sort=False):
        protocol, dataset, target, percent = key
        heading = f"## {protocol}: {dataset}" + (f" to {target}" if target != dataset else "")
        parts.append(heading + (f", {percent:g} % of the training rows" if percent != "" else "") + "\n")
        errors = ("smape", "mase", "owa") if group["owa_mean"].notna().any() else ("mse", "mae")
        titles = [*map(str.upper, errors), "seeds", "windows", "parameters", "seconds", "note"]
        parts.append("| horizon | model | " + " | ".join(titles) + " |\n" + "|---" * (len(titles) + 2) + "|")
        group = group.sort_values(["horizon", "model"], key=_reading_order, kind="stable")
        for _, row in group.iterrows():
            cells = [row["horizon"], f"{row['model']} {row['recipe']}".strip()]
            cells += [_spread(row[f"{error}_mean"], row[f"{error}_std"]) for error in errors]
            cells += [row["seeds"] or "none", *(_count(row[name]) for name in ("windows", "trained_parameters"))]
            cells += ["" if math.isnan(row["seconds"]) else f"{row['seconds']:.0f}", row["note"]]
            parts.append("| " + " | ".join(map(str, cells)) + " |")
        parts += [*_averages(group, errors), "", "Commands:\n"]
        parts += [f"    {command}" for command in dict.fromkeys(group["command"])]
        parts.append("")
    return "\n".join(parts)


def _reading_order(column: "pd.Series") -> "pd.Series":
    """LLaTA before its ablations, then the baselines; horizons by length."""
    if column.name == "model":
        return column.map(lambda model: 0 if model == "llata" else 2 if model in BENCHMARK_BASELINES else 1)
    return column


def _averages(group: "pd.DataFrame", errors: Sequence[str]) -> list[str]:
    """Rows with the mean over horizons, for models that have every horizon of the table."""
    lines: list[str] = []
    horizons = group["horizon"].nunique()
    if horizons == 1:
        return lines
    for (model, recipe), rows in group.groupby(["model", "recipe"], sort=False):
        means = [rows[f"{error}_mean"].mean() for error in errors]
        if len(rows) == horizons and rows[f"{errors[0]}_mean"].notna().all():
            cells = ["average", f"{model} {recipe}".strip(), *(f"{mean:.4f}" for mean in means)]
            lines.append("| " + " | ".join([*cells, *[""] * 5]) + " |")
    return lines


def _spread(mean: float, deviation: float) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.4f}" if math.isnan(deviation) else f"{mean:.4f} ± {deviation:.4f}"


def _count(number: float) -> str:
    return "" if math.isnan(number) else f"{int(number):,}"
