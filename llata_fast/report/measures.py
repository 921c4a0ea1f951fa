"""What a run's report shows, measured on its test windows: errors, intervals, features and prototypes."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbone.loading import load_backbone_weights
from ..backbone.tokenizer import read_tokenizer
from ..covariate_tokens import COVARIATE_INPUTS
from ..data.panel import Panel
from ..data.units import WindowUnits, run_windows
from ..evaluation.panel_task import PanelTask
from ..evaluation.tasks import SeriesTask
from ..forecasting.backtests import backtest, truth_column
from ..forecasting.calibration import calibrated_quantiles
from ..forecasting.forecaster import Forecaster
from ..forecasting.panel_forecasts import POINTS
from ..modeling import LlataForPrediction

REPORTED_LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Levels of the page's quantiles."""

# number of quantile values held at a time
_AT_ONCE = 2**24
# evenly spaced test windows: enough for stable means of features and attention
_SAMPLE = 64
_TOP_PROTOTYPES, _TOP_WORDS = 3, 6


@dataclass
class Example:
    """A test window in the units of the series."""

    label: str
    """best, median or worst."""
    error: float
    """Mean absolute error of the window, in the unit of `Errors`."""
    history: np.ndarray
    """[rows, C]"""
    truth: np.ndarray
    """[H, C], NaN where missing."""
    forecast: np.ndarray
    """[H, C]"""
    quantiles: np.ndarray | None
    """[H, C, Q]"""
    item: str | None = None
    """The item of the window, in a panel."""


@dataclass
class Errors:
    """Mean absolute errors over every test window, and the share of true values below each quantile."""

    unit: str
    """The unit, which follows "mean absolute error"."""
    by_step: np.ndarray
    """[H, C]"""
    windows: int
    examples: list[Example]
    """The best, the median and the worst window."""
    below: np.ndarray | None
    """[Q]: share of the true values below each quantile; None without quantiles."""
    by_item: list[tuple[str, float]] = field(default_factory=list)
    """Items of a panel, the largest error first."""


class _Sums:
    """Running sums over windows."""

    def __init__(self):
        self.error: Any = 0.0
        self.known: Any = 0
        self.below: Any = 0
        self.seen = 0
        self.each: list[np.ndarray] = []

    def add(self, miss: np.ndarray, truth: np.ndarray, quantiles: np.ndarray | None):
        """Errors and truth [B, H, C], NaN where missing, and quantiles [B, H, C, Q] in the truth's units."""
        known = ~np.isnan(miss)
        self.error = self.error + np.where(known, miss, 0.0).sum(0)
        self.known = self.known + known.sum(0)
        self.each.append(mean_of_known(miss.reshape(len(miss), -1)))
        if quantiles is not None:
            # a channel without a value in the context has no forecast
            seen = ~np.isnan(truth) & ~np.isnan(quantiles).any(-1)
            self.below = self.below + (truth[..., None] <= quantiles)[seen].sum(0)
            self.seen += int(seen.sum())

    @property
    def by_step(self) -> np.ndarray:
        """[H, C], NaN where nothing is known."""
        return np.where(self.known > 0, self.error / np.maximum(self.known, 1), np.nan)

    @property
    def shares_below(self) -> np.ndarray | None:
        """[Q]: share of the true values below each quantile; None without quantiles."""
        return self.below / self.seen if self.seen else None

    def chosen(self) -> dict[str, int]:
        """Indices of the best, the median and the worst window."""
        each = np.concatenate(self.each)
        order = np.argsort(each)[: (~np.isnan(each)).sum()].tolist()
        return {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]} if order else {}


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean along the last axis, ignoring NaN; NaN where all values are."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    return np.where(count > 0, np.where(known, values, 0.0).sum(-1) / np.maximum(count, 1), np.nan)


def series_errors(forecaster: Forecaster, task: SeriesTask) -> Errors:
    """Errors of every test window of a wide series, on standardised data."""
    windows = task.splits.test
    sums = _Sums()
    channels = len(task.columns)
    batch = max(1, min(256, _AT_ONCE // (windows.prediction_length * channels * len(REPORTED_LEVELS))))
    for past, observed, future in windows.batches(batch):
        points, quantiles = _forecast(forecaster, past, observed)
        truth = future.double().cpu().numpy()
        sums.add(np.abs(points - truth), truth, quantiles)
    each = np.concatenate(sums.each)
    examples = [_series_example(forecaster, task, label, place, each[place]) for label, place in sums.chosen().items()]
    return Errors("on standardised data", sums.by_step, len(each), examples, sums.shares_below)


def _forecast(forecaster: Forecaster, past: Tensor, observed: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
    """Points [B, H, C] and quantiles [B, H, C, Q] in the units of the lookbacks [B, L, C]."""
    core, config = forecaster.core, forecaster.model.config
    past, observed = past.double().cpu().masked_fill(~observed.cpu(), torch.nan), observed.cpu()
    units, outputs = run_windows(core.outputs, past, observed, reads_level=forecaster.model.reads_level)
    points = units.restore(outputs[0].cpu()).numpy()
    if not core.has_quantiles:
        return points, None
    outputs = tuple(output.cpu() for output in outputs)
    quantiles = calibrated_quantiles(units, past, outputs, config.quantile_levels, core.calibration, REPORTED_LEVELS)
    return points, quantiles.numpy()


def _series_example(forecaster: Forecaster, task: SeriesTask, label: str, index: int, error: float) -> Example:
    past, observed, future = next(task.splits.test.batches(1, first=index))
    points, quantiles = _forecast(forecaster, past, observed)
    restore = task.scaler.inverse_transform
    history = past.double().masked_fill(~observed, torch.nan)[0].cpu().numpy()
    if quantiles is not None:
        quantiles = np.stack([restore(quantiles[0, ..., place]) for place in range(len(REPORTED_LEVELS))], -1)
    truth = future[0].double().cpu().numpy()
    return Example(label, float(error), restore(history), restore(truth), restore(points[0]), quantiles)


def panel_errors(
    forecaster: Forecaster, panel: Panel, n_windows: int, step_size: int | None = None, batch_size: int | None = None
) -> Errors:
    """Errors of the last `n_windows` windows of a panel's items, in mean seasonal changes of each item and target."""
    horizon = forecaster.model.config.prediction_length
    step_size = step_size or horizon
    levels = REPORTED_LEVELS if forecaster.core.has_quantiles else ()
    panel = panel.at(np.flatnonzero(panel.lengths >= horizon + (n_windows - 1) * step_size + 2))
    frame = backtest(forecaster.core, panel, horizon, levels, n_windows, step_size, batch_size)
    shape = (n_windows, len(panel), len(panel.targets), horizon)

    def column(name: str) -> np.ndarray:  # [n_windows, items, H, C]
        return frame[name].to_numpy().reshape(shape).swapaxes(2, 3)

    truth, points = column(truth_column(panel)), column(POINTS)
    quantiles = np.stack([column(f"{level:g}") for level in levels], -1) if levels else None
    ends = panel.lengths - horizon - (n_windows - 1) * step_size
    scale = np.stack([_seasonal_change(panel.item(item)[:end], panel.seasonality) for item, end in enumerate(ends)])
    sums = _Sums()
    for window in range(n_windows):
        miss = np.abs(points[window] - truth[window]) / scale[:, None]
        sums.add(miss, truth[window], None if quantiles is None else quantiles[window])
    each = np.concatenate(sums.each).reshape(n_windows, -1)
    examples = []
    for label, place in sums.chosen().items():
        window, item = divmod(place, len(panel))
        cut = panel.lengths[item] - horizon - (n_windows - 1 - window) * step_size
        spread = None if quantiles is None else quantiles[window, item]
        values = (panel.item(item)[:cut], truth[window, item], points[window, item], spread)
        examples.append(Example(label, float(each[window, item]), *values, item=str(panel.ids[item])))
    by_item = mean_of_known(each.T)
    order = [item for item in np.argsort(-by_item) if not np.isnan(by_item[item])]
    named = [(str(panel.ids[item]), float(by_item[item])) for item in order]
    return Errors("in mean seasonal changes of the item", sums.by_step, each.size, examples, sums.shares_below, named)


def _seasonal_change(values: np.ndarray, seasonality: int) -> np.ndarray:
    """[C]: mean absolute seasonal change of the known rows [rows, C]; NaN where nothing changes."""
    period = seasonality if len(values) > seasonality else 1
    change = mean_of_known(np.abs(values[period:] - values[:-period]).T)
    return np.where(change > 0, change, np.nan)


def held_back_windows(task: PanelTask) -> int:
    """Number of consecutive windows at the end of every item that training has not seen, at least one."""
    windows = task.splits.test
    _, cuts = np.unique(windows.items.cpu().numpy(), return_counts=True)
    return max(1, int((cuts.min() + windows.prediction_length - 1) // windows.prediction_length))


@dataclass
class Features:
    """The distance between both branches, before and after training."""

    distance: dict[str, list[float]]
    """"before" and "after" -> one number per depth: mean distance of tokens' features, relative to their norm."""
    planes: dict[str, list[tuple[np.ndarray, np.ndarray]]]
    """"before" and "after" -> time and text tokens [tokens, 2] of each depth, on their two principal axes."""


def has_both_branches(model: LlataForPrediction) -> bool:
    """Whether a textual branch was trained, and is still part of the model."""
    return model.config.has_text_branch and not model.config.merged


def branch_features(trained: LlataForPrediction, task: SeriesTask | PanelTask, seed: int) -> Features:
    """Features of both branches on a sample of test windows, before training (rebuilt from the seed) and after."""
    torch.manual_seed(seed)
    models = {"before": LlataForPrediction.from_backbone(copy.deepcopy(trained.config)), "after": trained}
    past, beside = _sample(task)
    found = {name: _both_branches(model, past, *beside) for name, model in models.items()}
    distance = {
        name: [
            float((time - text).norm(dim=-1).mean() / torch.cat((time, text)).norm(dim=-1).mean())
            for time, text in pairs
        ]
        for name, pairs in found.items()
    }
    return Features(distance, {name: [_plane(*pair) for pair in pairs] for name, pairs in found.items()})


def _sample(task: SeriesTask | PanelTask) -> tuple[Tensor, list[Tensor | None]]:
    """Lookbacks in their own units, and what `time_tokens` takes beside them: their observed mask, and covariates."""
    windows = task.splits.test
    indices = np.unique(np.linspace(0, len(windows) - 1, _SAMPLE).astype(int))
    batches = [next(windows.batches(1, first=int(index))) for index in indices]
    past, observed = (torch.cat(parts) for parts in list(zip(*batches, strict=True))[:2])
    values = past.double().masked_fill(~observed, torch.nan)
    covariates = windows.covariates(indices.tolist()) if isinstance(task, PanelTask) else {}
    lookbacks = WindowUnits.of(values).remove(values)
    return lookbacks, [None if observed.all() else observed, *(covariates.get(name) for name in COVARIATE_INPUTS)]


@torch.no_grad()
def _both_branches(model: LlataForPrediction, past: Tensor, *beside: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    # the twin pass exists only in training mode; dropout is switched off
    model.train()
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    time, _, _ = model.time_tokens(past, *beside)
    text = model.cross_attention(time, model.prototypes)
    features = model.backbone(torch.cat((time, text)))
    model.eval()
    return [tuple(part.flatten(0, 1).float() for part in feature.chunk(2)) for feature in features]


def _plane(time: Tensor, text: Tensor) -> tuple[np.ndarray, np.ndarray]:
    both = torch.cat((time, text))
    both = both - both.mean(0)
    _, _, axes = torch.linalg.svd(both, full_matrices=False)
    flat = (both @ axes[:2].T).numpy()
    return flat[: len(time)], flat[len(time) :]


@dataclass
class Attention:
    """The prototypes that each channel's tokens attend to, largest share first."""

    rows: list[tuple[str, list[tuple[int, float, list[str]]]]]
    """(channel, [(prototype, share of the attention, nearest words)])."""


@torch.no_grad()
def prototype_attention_of(model: LlataForPrediction, task: SeriesTask | PanelTask) -> Attention:
    """Mean attention of every channel to the word prototypes, over a sample of test windows."""
    past, beside = _sample(task)
    time, _, _ = model.time_tokens(past, *beside)
    # the covariates' tokens come before the targets'
    time = time[:, model.config.num_covariate_tokens :]
    shares = _attention_shares(model, time)  # [rows, T, V]
    channels = len(task.columns)
    # variate tokens: one token per channel; patch tokens: one row per channel
    by_channel = shares.mean(0) if model.config.variate_tokens else shares.mean(1).unflatten(0, (-1, channels)).mean(0)
    words = _nearest_words(model)
    rows = []
    for name, share in zip(task.columns, by_channel, strict=True):
        top = share.topk(min(_TOP_PROTOTYPES, len(share)))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        rows.append((name, [(index, weight, words(index)) for index, weight in pairs]))
    return Attention(rows)


def _attention_shares(model: LlataForPrediction, time: Tensor) -> Tensor:
    """time [rows, T, D] -> attention over the prototypes, averaged over heads [rows, T, V]."""
    cross, D = model.cross_attention, time.shape[-1]
    heads, width = cross.num_heads, D // cross.num_heads
    q = cross.q_proj(time).unflatten(-1, (heads, width))  # [rows, T, A, E]
    k = cross.kv_proj(model.prototypes)[:, :D].unflatten(-1, (heads, width))  # [V, A, E]
    return (torch.einsum("rtae,vae->rtav", q, k) / width**0.5).softmax(-1).mean(2)


def _nearest_words(model: LlataForPrediction):
    """prototype -> the words with the most similar embeddings; none if the backbone has no tokenizer here."""
    config = model.config
    tokenizer = read_tokenizer(config.backbone)
    embeddings = None
    if tokenizer is not None:
        seed = config.backbone_seed
        embeddings = load_backbone_weights(config.backbone, config.backbone_config, seed=seed).word_embeddings
    if tokenizer is None or embeddings is None:
        return lambda index: []
    directions = nn.functional.normalize(embeddings.float(), dim=-1)

    def words(index: int) -> list[str]:
        nearest = (directions @ model.prototypes[index].cpu()).topk(_TOP_WORDS).indices.tolist()
        found = [str(tokenizer.decode([token])) for token in nearest]
        return [word.strip() or repr(word) for word in found]

    return words
