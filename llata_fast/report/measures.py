"""What the report of a run shows, measured on its test windows: errors, intervals, features, prototypes."""

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbone.loading import load_backbone_weights
from ..backbone.tokenizer import read_tokenizer
from ..data.units import WindowUnits
from ..evaluation.tasks import SeriesTask
from ..forecasting.forecaster import Forecaster
from ..modeling import LlataForPrediction

_BATCH = 256
# of the test split, evenly spaced: features and attention are means that a few hundred windows settle
_SAMPLE = 64
_TOP_PROTOTYPES, _TOP_WORDS = 3, 6


@dataclass
class Example:
    """A test window in the units of the series."""

    label: str
    error: float
    """Mean absolute error of the window, on standardised data."""
    history: np.ndarray
    """[L, C]"""
    truth: np.ndarray
    """[H, C], NaN where missing."""
    forecast: np.ndarray
    """[H, C]"""


@dataclass
class Errors:
    """Mean absolute errors on standardised data over every test window."""

    by_step: np.ndarray
    """[H, C]"""
    windows: int
    examples: list[Example] = field(default_factory=list)
    """The best window, the median one and the worst."""


def test_errors(forecaster: Forecaster, task: SeriesTask) -> Errors:
    """Errors of the test split by step and channel, and its best, median and worst windows."""
    total: Any = 0.0
    count: Any = 0.0
    errors = []
    for past, observed, future in task.splits.test.batches(_BATCH):
        miss = (forecaster(past, observed).cpu() - future).abs()
        known = ~miss.isnan()
        total = total + miss.nan_to_num().double().sum(0)
        count = count + known.double().sum(0)
        errors.append(miss.nanmean((1, 2)))
    each = torch.cat(errors)
    order = each.nan_to_num(nan=torch.inf).argsort()[: int((~each.isnan()).sum())].tolist()
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    examples = [_example(forecaster, task, label, index, float(each[index])) for label, index in chosen.items()]
    return Errors((total / count).numpy(), len(each), examples)


def _example(forecaster: Forecaster, task: SeriesTask, label: str, index: int, error: float) -> Example:
    past, observed, future = next(task.splits.test.batches(1, first=index))
    restore = task.splits.scaler.inverse_transform
    forecast = forecaster(past, observed).cpu()
    history = past.double().masked_fill(~observed, torch.nan)
    history, truth, forecast = (restore(values[0].double().numpy()) for values in (history, future, forecast))
    return Example(label, error, history, truth, forecast)


@dataclass
class Features:
    """How far apart both branches are, before training and after."""

    distance: dict[str, list[float]]
    """"before" and "after" -> one number a depth: the mean distance of a token's features, by their mean length."""
    plane: dict[str, tuple[np.ndarray, np.ndarray]]
    """Of the last depth, time and text tokens [tokens, 2] on their two principal axes."""


def has_both_branches(model: LlataForPrediction) -> bool:
    """Whether a textual branch was trained beside the temporal one, and is still there."""
    return model.config.has_text_branch and not model.config.merged


def branch_features(trained: LlataForPrediction, task: SeriesTask) -> Features:
    """Features of both branches over a sample of test windows, of a model as training begins and as it ended."""
    torch.manual_seed(0)
    models = {"before": LlataForPrediction.from_backbone(copy.deepcopy(trained.config)), "after": trained}
    inputs = _sample(task)
    found = {name: _both_branches(model, *inputs) for name, model in models.items()}
    distance = {
        name: [
            float((time - text).norm(dim=-1).mean() / torch.cat((time, text)).norm(dim=-1).mean())
            for time, text in pairs
        ]
        for name, pairs in found.items()
    }
    return Features(distance, {name: _plane(*pairs[-1]) for name, pairs in found.items()})


def _sample(task: SeriesTask) -> tuple[Tensor, Tensor | None]:
    windows = task.splits.test
    indices = np.unique(np.linspace(0, len(windows) - 1, _SAMPLE).astype(int))
    batches = [next(windows.batches(1, first=int(index))) for index in indices]
    past, observed = (torch.cat(parts) for parts in list(zip(*batches, strict=True))[:2])
    values = past.double().masked_fill(~observed, torch.nan)
    return WindowUnits.of(values).remove(values), None if observed.all() else observed


@torch.no_grad()
def _both_branches(model: LlataForPrediction, past: Tensor, observed: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    # the twin pass is that of training; chance has no part in it
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    time, _, _ = model.embed(past, observed)
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
    """Which prototypes the tokens of a channel ask, most first."""

    rows: list[tuple[str, list[tuple[int, float, list[str]]]]]
    """(channel, [(prototype, share of the attention, the words nearest to it)])."""


@torch.no_grad()
def prototype_attention_of(model: LlataForPrediction, task: SeriesTask) -> Attention:
    """Mean attention of every channel to the word prototypes, over a sample of test windows."""
    past, observed = _sample(task)
    time, _, _ = model.embed(past, observed)
    shares = _attention_shares(model, time)  # [rows, T, V]
    channels = len(task.columns)
    # variate tokens: a token a channel; patch tokens: a row a channel
    by_channel = shares.mean(0) if model.config.variate_tokens else shares.mean(1).unflatten(0, (-1, channels)).mean(0)
    words = _nearest_words(model)
    rows = []
    for name, share in zip(task.columns, by_channel, strict=True):
        top = share.topk(min(_TOP_PROTOTYPES, len(share)))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        rows.append((name, [(index, weight, words(index)) for index, weight in pairs]))
    return Attention(rows)


def _attention_shares(model: LlataForPrediction, time: Tensor) -> Tensor:
    """time [rows, T, D] -> softmax over the prototypes, mean over heads [rows, T, V]."""
    cross, D = model.cross_attention, time.shape[-1]
    heads, width = cross.num_heads, D // cross.num_heads
    q = cross.q_proj(time).unflatten(-1, (heads, width))  # [rows, T, A, E]
    k = cross.kv_proj(model.prototypes)[:, :D].unflatten(-1, (heads, width))  # [V, A, E]
    return (torch.einsum("rtae,vae->rtav", q, k) / width**0.5).softmax(-1).mean(2)


def _nearest_words(model: LlataForPrediction):
    """prototype -> the words whose embeddings point its way; nothing where the backbone has no tokenizer here."""
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
        return [tokenizer.decode([token]).strip() or repr(tokenizer.decode([token])) for token in nearest]

    return words
