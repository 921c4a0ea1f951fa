"""Data for `question.py`: corpora for pre-training without the targets, the targets' windows, and their few rows.

Letters: n windows, L lookback, H horizon. A window has one channel.
"""

import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml

from llata_fast.data import read_series
from llata_fast.data.corpus_builder import build_corpus
from llata_fast.data.corpus_sources import SourceOptions
from llata_fast.data.corpus_writer import CorpusLayout, CorpusSeries, new_corpus, write_shards
from llata_fast.data.m4 import read_m4
from llata_fast.data.mixture import WindowSizes
from llata_fast.data.panel import Panel, read_panel
from llata_fast.data.synthetic import SyntheticSettings, synthesize
from llata_fast.evaluation.relative_scores import naive_errors, seasonal_naive_windows
from llata_fast.linear import LeastSquares

ROOT = Path(__file__).resolve().parents[1]
CONTEXT, HORIZON, PATCH = 512, 96, 64
SIZES = WindowSizes(CONTEXT, HORIZON, shortest_context=PATCH)
SHARES = (0.0, 1.0, 5.0, 10.0)
"""Percentages of a target's rows that a model is trained on before it is scored; 0: none."""

ORIGINS = 18
"""Windows per channel of ETTh1 and Exchange, spread evenly over the test rows."""
RIDGES = (1.0, 100.0, 1e4)
"""Ridge penalties to choose from for the linear map."""
PANEL_ITEMS = 120
"""Number of items of a panel to score, spread evenly."""

Predict = Callable[[torch.Tensor, int], torch.Tensor]
"""(lookbacks [n, L, 1] float64, NaN where missing; H) -> point forecasts [n, H, 1]."""


@dataclass(frozen=True, eq=False)
class Target:
    """A dataset that no pre-training has seen."""

    name: str
    freq: str
    season: int
    horizons: tuple[int, ...]
    past: np.ndarray
    """[n, L], NaN where missing or before a series' first row."""
    future: np.ndarray
    """[n, longest horizon]"""
    rows: list[np.ndarray]
    """Training rows of every channel: everything before the first window."""
    by_item: bool
    """Whether a share of the rows means complete items; otherwise it means the first rows of every channel."""
    scale: np.ndarray | None = None
    """[n] standard deviation of the channel's training rows, if errors are also measured in it."""

    def few_rows(self, percent: float) -> list[np.ndarray]:
        """This share of the rows, at least one item."""
        if not self.by_item:
            return [values[: int(len(values) * percent / 100)] for values in self.rows]
        count = max(1, round(len(self.rows) * percent / 100))
        return [self.rows[index] for index in np.linspace(0, len(self.rows) - 1, count + 2).astype(int)[1:-1]]

    def scores(self, predict: Predict) -> list[dict]:
        """{"horizon", "mase", "mse", "mae"} for each horizon; mse and mae in deviations, NaN if these are unknown."""
        past = torch.from_numpy(self.past)[..., None]
        points = predict(past, max(self.horizons))[..., 0].double().numpy()
        unit = naive_errors(past, np.full(len(past), self.season))[:, 0].numpy()
        found = []
        for horizon in self.horizons:
            errors = points[:, :horizon] - self.future[:, :horizon]
            mase = np.nanmean(np.abs(errors), 1) / unit
            row = {"horizon": horizon, "mase": float(np.mean(mase[np.isfinite(mase)]))}
            if self.scale is not None:
                errors = errors / self.scale[:, None]
                row |= {"mse": float(np.nanmean(errors**2)), "mae": float(np.nanmean(np.abs(errors)))}
            found.append(row)
        return found


def targets(data_dir: str, retail: str | None, work: Path) -> list[Target]:
    """ETTh1, Exchange, M4 Hourly and the panels: EIA, and weekly Online Retail II if its wheel is given.

    Data that is slow to read is cached in `work`.
    """
    found = [
        _series("ETTh1", "h", 24, (96, 192, 336, 720), data_dir),
        _series("Exchange", "D", 7, (96,), data_dir),
        _m4(data_dir),
        _panel(read_panel("EIA"), "W-FRI", 52, 13, by_item=False),
    ]
    if retail is not None:
        found.append(_panel(_retail(retail, work / "retail.parquet"), "W-MON", 52, 8, by_item=True))
    return found


def _series(name: str, freq: str, season: int, horizons: tuple[int, ...], data_dir: str) -> Target:
    series = read_series(name, data_dir=data_dir)
    values = series.values
    total = sum(series.split_rows) if series.split_rows else len(values)
    train = series.split_rows[0] if series.split_rows else int(0.7 * total)
    first = total - (series.split_rows[2] if series.split_rows else int(0.2 * total))
    origins = np.linspace(first, total - max(horizons), ORIGINS).astype(int)
    windows = [
        (values[o - CONTEXT : o, c], values[o : o + max(horizons), c]) for o in origins for c in range(values.shape[1])
    ]
    past, future = (np.stack(part).astype(float) for part in zip(*windows, strict=True))
    scale = np.tile(values[:train].std(0), len(origins))
    return Target(name, freq, season, horizons, past, future, list(values[:train].T.astype(float)), False, scale)


def _m4(data_dir: str) -> Target:
    m4 = read_m4("Hourly", data_dir)
    past = np.stack([_padded(values) for values in m4.insample])
    horizons = (m4.spec.prediction_length,)
    return Target("M4 Hourly", "h", 24, horizons, past, m4.future.astype(float), list(m4.insample), True)


def _panel(panel: Panel, freq: str, season: int, horizon: int, *, by_item: bool) -> Target:
    """The last `horizon` rows of every item with more than `2 * horizon` rows; the rows before are for training."""
    long_enough = np.flatnonzero(panel.lengths >= 4 * horizon)
    chosen = long_enough[np.linspace(0, len(long_enough) - 1, min(PANEL_ITEMS, len(long_enough))).astype(int)]
    items = [panel.item(index)[:, 0].astype(float) for index in chosen]
    past = np.stack([_padded(values[:-horizon]) for values in items])
    future = np.stack([values[-horizon:] for values in items])
    rows = [values[:-horizon] for values in items]
    return Target(panel.name, freq, season, (horizon,), past, future, rows, by_item)


def _padded(values: np.ndarray) -> np.ndarray:
    last = np.asarray(values, float)[-CONTEXT:]
    return np.concatenate((np.full(CONTEXT - len(last), np.nan), last))


def _retail(wheel: str, kept: Path) -> Panel:
    """Quantity sold by item and week in Online Retail II, 0 in weeks without an order of the item."""
    if not kept.exists():
        # the example names the data's source and licence
        retail = runpy.run_path(str(ROOT / "examples" / "retail.py"))
        demand = retail["weekly_demand"](wheel)
        table = retail["on_every_week"](demand)
        # in a week without any order at all, the shop was closed: its values are missing
        table[table["week"].isin(demand["week"])].to_parquet(kept, index=False)
    columns = {"id_column": "item_id", "timestamp_column": "week", "target": "quantity", "freq": "W-MON"}
    return Panel.from_df(pd.read_parquet(kept), **columns, name="retail")


class Corpora(NamedTuple):
    """Folders of the corpora for pre-training."""

    folder: Path

    def mixture(self, made_up: float = 0.5) -> Path:
        """The mixture with this share of synthetic series; validation includes series that are never trained on."""
        real = 1 - made_up
        weights = {"Metro": 0.5 * real, "daily": 0.5 * real, "made_up": made_up, "unseen": 0.0}
        path = self.folder / f"mixture-{made_up:g}.yaml"
        entries = [{"path": name, "weight": weight} for name, weight in weights.items()]
        path.write_text(yaml.safe_dump(entries))
        return path


def build_corpora(folder: Path, daily: tuple[Path, Sequence[str]], num_series: int = 10_000) -> Corpora:
    """Build corpora of Metro, daily and synthetic series, keeping existing ones; none contains or mixes a target."""
    sources = {"Metro": ("Metro", None), "daily": daily}
    for name, (source, columns) in sources.items():
        if not (folder / name).exists():
            build_corpus([source], folder / name, options=SourceOptions(columns=columns))
    for name, count, seed in (("made_up", num_series, 0), ("unseen", 400, 1)):
        if not (folder / name).exists():
            mix = tuple(str(folder / source) for source in sources)
            synthesize(SyntheticSettings(count, seed=seed, mix=mix), folder / name)
    return Corpora(folder)


def few_rows_corpus(target: Target, percent: float, folder: Path) -> Path:
    """The corpus of a target's few rows; builds it if it does not exist."""
    path = folder / f"{target.name.replace(' ', '-')}-{percent:g}"
    if not path.exists():
        start = np.datetime64("2000-01-01")
        series = [
            CorpusSeries(str(number), start, target.freq, values.astype(np.float32)[None])
            for number, values in enumerate(target.few_rows(percent))
        ]
        with new_corpus(path, CorpusLayout()) as partial:
            write_shards(partial, "data", series, CorpusLayout())
    return path


def seasonal_naive(target: Target) -> Predict:
    """A forecast that repeats the last season."""

    def predict(past: torch.Tensor, horizon: int) -> torch.Tensor:
        return seasonal_naive_windows(past, ~past.isnan(), np.full(len(past), target.season), horizon)

    return predict


def smoothing(target: Target) -> Predict:
    """Additive exponential smoothing (statsmodels) of every lookback, with a season of at most 24 steps."""
    import warnings

    from statsmodels.tsa.holtwinters import ExponentialSmoothing

    def forecast(values: np.ndarray, horizon: int) -> np.ndarray:
        known = pd.Series(values[np.isfinite(values).argmax() :]).interpolate(limit_direction="both").to_numpy()
        if len(known) < 10 or np.ptp(known) == 0:
            return np.full(horizon, known[-1])
        season = target.season if target.season <= 24 and len(known) >= 2 * target.season + 4 else None
        size = known.std()
        with warnings.catch_warnings():
            # ignore warnings about series that do not converge
            warnings.simplefilter("ignore")
            model = ExponentialSmoothing(known / size, seasonal=season and "add", seasonal_periods=season)
            return model.fit().forecast(horizon) * size

    def predict(past: torch.Tensor, horizon: int) -> torch.Tensor:
        return torch.from_numpy(np.stack([forecast(row, horizon) for row in past[..., 0].numpy()]))[..., None]

    return predict


def linear_map(rows: list[np.ndarray], context: int = CONTEXT, horizon: int = 96) -> Predict | None:
    """A least-squares map fitted on all windows of `rows` and rolled forward; None if there are too few windows.

    Context and horizon are at most half and a third of the longest series. The penalty from RIDGES is the one that
    forecasts each series' last quarter of windows best when it is fitted on the windows before.
    """
    longest = max(len(values) for values in rows)
    context, horizon = min(context, longest // 2), min(horizon, longest // 3)
    series = [
        np.lib.stride_tricks.sliding_window_view(values, context + horizon)
        for values in rows
        if len(values) >= context + horizon
    ]
    if not series or context < 2 or horizon < 1:
        return None
    first = _Stretches([windows[: max(1, len(windows) * 3 // 4)] for windows in series], context)
    last = _Stretches([windows[-max(1, len(windows) // 4) :] for windows in series], context)

    def error(ridge: float) -> float:
        fitted = LeastSquares(unit="deviation", ridge=ridge).fit(first)
        errors = [(fitted(past, seen) - future).abs() for past, seen, future in last.batches(1024)]
        return float(torch.cat(errors).nanmean())

    fitted = LeastSquares(unit="deviation", ridge=min(RIDGES, key=error)).fit(_Stretches(series, context))

    def predict(past: torch.Tensor, ahead: int) -> torch.Tensor:
        known = past
        for _ in range(0, ahead, horizon):
            lookback = known[:, -context:]
            known = torch.cat((known, fitted(lookback.nan_to_num(), ~lookback.isnan())), 1)
        return known[:, past.shape[1] : past.shape[1] + ahead]

    return predict


class _Stretches:
    """Windows [n, L + H] in the form that `LeastSquares.fit` needs."""

    def __init__(self, series: list[np.ndarray], context: int, most: int = 12_000):
        step = max(1, sum(map(len, series)) // most)
        self.values, self.context = np.concatenate([windows[::step] for windows in series]), context

    def batches(self, batch_size: int):
        for start in range(0, len(self.values), batch_size):
            part = torch.from_numpy(self.values[start : start + batch_size].astype(float))[..., None]
            past = part[:, : self.context]
            yield past.nan_to_num(), ~past.isnan(), part[:, self.context :]
