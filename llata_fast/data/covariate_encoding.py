"""Encode covariates for a model: standardised numbers, category codes, and windows of both.

Numbers are standardised by their column's mean and deviation in the training rows. A column of positive numbers that
varies more between items than within them (such as prices) is encoded relative to its level in the window instead, so
that 10 % off means the same at any price. Categories seen in training are 1, 2, ..., others 0; missing values are NaN.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .calendar import calendar_names
from .covariates import Covariates
from .panel import Panel

FARTHEST = 10.0
"""Numbers are clipped to this many standard deviations."""


@dataclass(frozen=True)
class Scale:
    """How a numeric column is standardised."""

    mean: float
    scale: float
    """Above 0; if `relative`, the deviation of the relative values."""
    relative: bool = False


@dataclass(frozen=True)
class CovariateEncoding:
    """A run's encoding of its covariates; its `to_dict` is stored in the run's folder.

    Raises:
        InputError: a column has neither a scale nor categories, or both, or a field has the wrong type.
    """

    known: tuple[str, ...]
    past: tuple[str, ...]
    static: tuple[str, ...]
    calendar: tuple[str, ...]
    """The part of `known` that is computed from timestamps."""
    numbers: dict[str, Scale]
    categories: dict[str, tuple[str, ...]]

    def __post_init__(self):
        for column in (*self.known, *self.past, *self.static):
            if (column in self.numbers) == (column in self.categories):
                raise InputError(f"covariate {column!r} must be either numeric or a category")
        for column, scale in self.numbers.items():
            if not (np.isfinite(scale.mean) and np.isfinite(scale.scale) and scale.scale > 0):
                raise InputError(f"covariate {column!r}: mean and scale must be finite, and the scale above 0")

    @classmethod
    def fit(cls, panel: Panel, ends: np.ndarray) -> "CovariateEncoding":
        """Fit on each item's rows before `ends` [items], for a panel with covariates."""
        covariates = panel.covariates
        assert covariates is not None
        items = np.repeat(np.arange(len(panel)), np.diff(covariates.offsets))
        seen = np.arange(len(items)) - covariates.offsets[items] < ends[items]
        together = np.zeros(len(panel), dtype=np.int64)
        tables = (
            (covariates.columns, covariates.values, seen, items),
            (covariates.static, covariates.static_values, ends > 0, together),
        )
        numbers, categories = {}, {}
        for columns, table, rows, groups in tables:
            for place, column in enumerate(columns):
                values = np.where(rows, table[:, place], np.nan)
                if column in covariates.categories:
                    categories[column] = _found(values, covariates.categories[column])
                else:
                    numbers[column] = _scale(values, groups)
        return cls(covariates.known, covariates.past, covariates.static, covariates.calendar, numbers, categories)

    @property
    def given(self) -> tuple[str, ...]:
        """The known columns that a table must contain."""
        return self.known[: len(self.known) - len(self.calendar)]

    @property
    def sizes(self) -> dict[str, list[int]]:
        """Role -> number of categories of each column, 0 for a numeric one; a model is built from these sizes."""
        roles = {"known": self.known, "past": self.past, "static": self.static}
        return {role: [len(self.categories.get(name, ())) for name in names] for role, names in roles.items()}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Any) -> "CovariateEncoding":
        """Raises InputError if `state` is not the output of `to_dict`."""
        try:
            return cls(
                **{name: tuple(map(str, state[name])) for name in ("known", "past", "static", "calendar")},
                numbers={name: Scale(**scale) for name, scale in state["numbers"].items()},
                categories={name: tuple(map(str, texts)) for name, texts in state["categories"].items()},
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"the covariates' description is invalid: {error}") from None

    def check(self, panel: Panel):
        """Raise InputError if the panel lacks a covariate, or has it in another role or of another kind."""
        covariates = panel.covariates
        needed = {"known": self.given, "past": self.past, "static": self.static}
        there_are = (
            {}
            if covariates is None
            else {"known": covariates.given, "past": covariates.past, "static": covariates.static}
        )
        for role, columns in needed.items():
            there = there_are.get(role, ())
            for column in columns:
                if column not in there:
                    raise InputError(
                        f"{panel.name}: the run was trained with {column!r} as one of its {role}_covariates, but it is "
                        "missing here"
                    )
        if lacking := set(self.calendar) - set(() if covariates is None else covariates.calendar):
            raise InputError(
                f"{panel.name}: the run was trained with the calendar's {', '.join(calendar_names(sorted(lacking)))}: "
                "give calendar"
            )
        if covariates is not None:
            for column in (*self.given, *self.past, *self.static):
                if (column in covariates.categories) != (column in self.categories):
                    kinds = ("numbers", "categories") if column in self.numbers else ("categories", "numbers")
                    raise InputError(
                        f"{panel.name}, column {column!r}: the run was trained with {kinds[0]}, but here are {kinds[1]}"
                    )

    def encode(self, covariates: Covariates) -> tuple[np.ndarray, np.ndarray]:
        """Values [rows, K] and items' values [items, S], in this column order; relative ones are left unscaled."""
        places = {name: place for place, name in enumerate(covariates.columns)}
        dynamic = [
            self._encode(name, covariates.values[:, places[name]], covariates) for name in (*self.known, *self.past)
        ]
        places = {name: place for place, name in enumerate(covariates.static)}
        static = [self._encode(name, covariates.static_values[:, places[name]], covariates) for name in self.static]
        rows, items = len(covariates.values), len(covariates.static_values)
        return _stacked(dynamic, rows), _stacked(static, items)

    def _encode(self, column: str, values: np.ndarray, covariates: Covariates) -> np.ndarray:
        if column in self.categories:
            known = {text: place for place, text in enumerate(self.categories[column], start=1)}
            lookup = np.array([*(known.get(text, 0) for text in covariates.categories[column]), np.nan])
            return lookup[np.where(np.isnan(values), len(lookup) - 1, values).astype(np.int64)]
        scale = self.numbers[column]
        if scale.relative:
            return values
        return np.clip((values - scale.mean) / scale.scale, -FARTHEST, FARTHEST)

    @property
    def relative(self) -> list[tuple[int, float]]:
        """Indices among the K columns of those encoded relative to their level, with their scales."""
        columns = enumerate((*self.known, *self.past))
        return [
            (place, self.numbers[name].scale)
            for place, name in columns
            if name in self.numbers and self.numbers[name].relative
        ]


def _stacked(columns: list[np.ndarray], rows: int) -> np.ndarray:
    return np.stack(columns, 1) if columns else np.zeros((rows, 0))


def _found(values: np.ndarray, texts: tuple[str, ...]) -> tuple[str, ...]:
    places = np.unique(values[~np.isnan(values)]).astype(np.int64)
    return tuple(texts[place] for place in places)


def _scale(values: np.ndarray, items: np.ndarray) -> Scale:
    """The scale of values [rows] that belong to items [rows]; 1 if they are constant."""
    known = ~np.isnan(values)
    values, items = values[known], items[known]
    if not len(values):
        return Scale(0.0, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = float(values.mean()), float(values.std())
    if not np.isfinite(deviation):
        # squares of very large numbers overflow
        size = float(np.abs(values).max())
        mean, deviation = float((values / size).mean() * size), float((values / size).std() * size)
    counts = np.bincount(items)
    if (counts > 0).sum() > 1 and values.min() > 0:
        level = np.bincount(items, values)[items] / counts[items]
        between, within = level.std(), (values - level).std()
        if between > within > 0:
            return Scale(0.0, float((values / level - 1).std()), relative=True)
    return Scale(mean, deviation if values.min() < values.max() and deviation > 0 else 1.0)


class WindowCovariates:
    """Covariates for windows of a panel's items, by the names of the model's inputs."""

    def __init__(self, panel: Panel, encoding: CovariateEncoding):
        """Raises InputError as `CovariateEncoding.check` does."""
        encoding.check(panel)
        assert panel.covariates is not None
        values, static = encoding.encode(panel.covariates)
        self.values, self.static = torch.from_numpy(values), torch.from_numpy(static).float()
        self.offsets = torch.from_numpy(panel.covariates.offsets)
        self.encoding, self.num_known, self.relative = encoding, len(encoding.known), encoding.relative

    def of(
        self, items: Tensor, cuts: Tensor, context_length: int, prediction_length: int, seen: Tensor | None = None
    ) -> dict[str, Tensor]:
        """past_covariates [B, L, K], future_covariates [B, H, K'] and static_covariates [B, S], fp32, without empty
        ones.

        The windows belong to `items` [B] and start forecasting at rows `cuts` [B]. Covariates not known in advance end
        before rows `seen` [B], by default the cuts.
        """
        result = {}
        if self.values.shape[1]:
            steps = torch.arange(-context_length, prediction_length, device=self.values.device)
            rows, first = cuts[:, None] + steps, self.offsets[items][:, None]
            inside = (rows >= 0) & (rows + first < self.offsets[items + 1][:, None])
            values = self.values[(rows + first).clamp(0, len(self.values) - 1)]
            values = values.masked_fill(~inside[..., None], torch.nan)
            unseen = rows >= (cuts if seen is None else seen)[:, None]
            values[..., self.num_known :].masked_fill_(unseen[..., None], torch.nan)
            for place, scale in self.relative:
                relative = _relative(values[..., place], context_length) / scale
                values[..., place] = relative.clamp(-FARTHEST, FARTHEST)
            past, future = values.float().split((context_length, prediction_length), 1)
            result["past_covariates"] = past
            if self.num_known:
                result["future_covariates"] = future[..., : self.num_known]
        if self.static.shape[1]:
            result["static_covariates"] = self.static[items]
        return result

    def to(self, device: torch.device | str) -> "WindowCovariates":
        for name in ("values", "static", "offsets"):
            setattr(self, name, getattr(self, name).to(device))
        return self


def _relative(values: Tensor, context_length: int) -> Tensor:
    """values [B, L + H] divided by their mean in the lookback (or in the horizon, if that is empty), minus 1."""
    past = values[:, :context_length].nanmean(1, keepdim=True)
    level = torch.where(past.isnan(), values.nanmean(1, keepdim=True), past)
    return values / torch.where(level > 0, level, torch.nan) - 1
