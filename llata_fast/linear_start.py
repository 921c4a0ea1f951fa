"""Choose the linear part of a forecaster: forms fitted in closed form, mixed by their errors at several origins.

A linear forecast of a lookback is its mean plus a map of [lookback - mean, mean, 1]. The forms differ in three ways:
one map for all channels or one per channel, whether the level stays or returns to that of the training rows, and the
size of the penalty. Further forms repeat the last season, or are the linear baselines: the same maps by plain least
squares. None is best everywhere: returning to the level halves the error on one series and doubles it on another, and
a single validation split cannot tell which. So each form is fitted on the rows before several origins in the training
rows and scored on the rows after each; a fit on all training rows is scored on the validation rows. The reference is
the baseline that is best in validation. The mixture chosen is the one whose worst ratio to it, in squared and absolute
error at every origin, is least, so it departs from the baseline only if no ratio gets worse by more than half a
percent. A mixture of linear maps is again a linear map.

Letters: B windows, L lookback, H horizon, C channels, F forms.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .covariate_tokens import moving
from .data.panel_windows import PanelWindows
from .data.windows import WindowDataset
from .linear import LinearSkip, fill_with_mean, level_inputs, solve_ridge
from .linear_covariates import ROUNDS, Residuals, WithoutEffect
from .linear_mixture import mixture, relative_errors

SHARED, OWN = "one map, level stays", "own maps, level stays"
SHARED_RETURN, OWN_RETURN = "one map, level returns", "own maps, level returns"
SEASON = "last season repeated"

BASELINES = {SHARED: "linear", OWN: "linear_per_channel", SHARED_RETURN: "dlinear"}
"""Form fitted by plain least squares -> its name as a baseline in `evaluation.baselines`."""

_OF_CHANNELS = (OWN, OWN_RETURN, BASELINES[OWN])

ORIGINS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Origins, as shares of the training rows that lie before them."""

RIDGES = (1e3, 1.0)
"""Penalties on a map's deviation from keeping the level, and on a channel's deviation from the shared map.

The last one is also the baselines'.
"""

# at most this many windows for a fit, windows and steps for a score; neighbouring windows hardly differ
_FITTED, _SCORED, _STEPS, _ERRORS = 16384, 160, 24, 4096
_BATCH = 256
# number of validation windows on which the baselines are compared
_PICKED = 1024
# squared errors let a few wild windows dominate: each window is weighted by its inverse error, in this many rounds
_ROUNDS = 3


class Origin(NamedTuple):
    """The mixture's score at one origin."""

    name: str
    windows: int
    error: float
    """Worst ratio to `LinearStart.yardstick`, over mean squared and mean absolute error."""


class Behind(NamedTuple):
    """The windows after an origin, and their errors under a start fitted on the rows before it."""

    past: Tensor
    """[N, L, C], NaN where missing."""
    errors: Tensor
    """[N, S, C]"""
    steps: Tensor
    """[S], indices into the horizon."""


@dataclass
class LinearStart:
    """A chosen linear forecast: mean + [lookback - mean, mean, 1] @ weight."""

    shared: Tensor
    """[L + 2, H], fp32: the map for a series with any channels."""
    own: Tensor | None
    """[C, L + 2, H]: each channel's correction to the shared map."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Share of each form, summed over its penalties."""
    origins: list[Origin] = field(default_factory=list)
    yardstick: str = ""
    """The baseline that is best in validation; errors are relative to its."""
    seasonality: int = 1
    fitted_behind: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    """For each origin in the training rows: windows after it, map [C or 1, L + 2, S] of the rows before it, steps."""

    def __call__(self, past: Tensor, observed: Tensor) -> Tensor:
        """Lookbacks [B, L, C] and their observed mask -> forecasts [B, H, C], in the units of the windows."""
        inputs, mean = level_inputs(past, observed)
        weight = self.shared if self.own is None else self.shared + self.own
        return mean + _mapped(inputs.float(), weight).to(past.dtype)

    def behind_origins(self, train: WindowDataset | PanelWindows) -> list[Behind]:
        """Errors after each origin in the training windows, of a start fitted on the rows before it."""
        found = []
        for indices, weight, steps in self.fitted_behind:
            past, future = train.stretches(indices.tolist())
            inputs, mean = level_inputs(past.nan_to_num(), ~past.isnan())
            forecast = mean + _mapped(inputs, weight.to(inputs))
            found.append(Behind(past, future[:, steps] - forecast, steps))
        return found

    def to_dict(self) -> dict[str, dict[str, float]]:
        return {"mixture": self.mixture, "origins": {origin.name: origin.error for origin in self.origins}}

    def lines(self) -> list[str]:
        """Log lines that describe the choice and its scores."""
        parts = (f"{share:.2f} x {form}" for form, share in self.mixture.items() if share)
        errors = (f"{origin.name} {origin.error:.3f}" for origin in self.origins)
        return [
            f"linear start: {' + '.join(parts)}",
            f"its error relative to {self.yardstick}, the best baseline in validation, by origin: {', '.join(errors)}",
        ]


def choose_start(
    train: Any,
    validation: Any,
    *,
    own: bool = False,
    seasonality: int = 1,
    unit: Literal["deviation"] | None = None,
) -> LinearStart:
    """Fit the forms on `train` and mix them by their errors.

    Args:
        train: windows as made by `llata_fast.data`; only those of a single series, which are in order, have origins.
        validation: the windows after them; the last origin.
        own: also fit one map per channel.
        seasonality: steps per season, repeated if the lookback holds at least one.
        unit: "deviation", for series of different sizes: a window's errors are in standard deviations of its lookback,
            and no form returns to a level.
    """
    start = choose_of(measure_forms(train, validation, own=own, seasonality=seasonality, unit=unit))
    start.seasonality = seasonality
    return start


class Measured(NamedTuple):
    """The forms (those with a map with each of `RIDGES`), the baselines, and the errors of all."""

    forms: list[str]
    """F names, one for each form and penalty."""
    maps: list[Tensor]
    """Fitted on all training rows: [C or 1, L + 2, H], float64."""
    origins: list[tuple[str, int]]
    """Name and number of scored windows, validation last."""
    scored: list[Tensor]
    """Errors [F, M] after each origin."""
    yardstick: int
    """Index of the baseline with the least squared error in validation."""
    before: list[tuple[Tensor, list[Tensor]]]
    """For each origin but the last: windows after it, and the maps fitted before it for `_STEPS` steps."""


def measure_forms(
    train: Any,
    validation: Any,
    *,
    own: bool = False,
    seasonality: int = 1,
    unit: Literal["deviation"] | None = None,
) -> Measured:
    """Fit every form with each of `RIDGES` before each origin and score it after; arguments as for `choose_start`."""
    forms = _Forms(own, seasonality, unit)
    origins, scored, fitted = [], [], []
    for name, before, behind in _origins(train):
        origins.append((name, len(behind)))
        maps = [weight for _, weight in forms.fit(train, before, _STEPS)]
        fitted.append((behind, maps))
        scored.append(forms.errors(maps, train, behind))
    names, maps = map(list, zip(*forms.fit(train, _spread(range(len(train)), _FITTED)), strict=True))
    behind = _spread(range(len(validation)), _SCORED)
    origins.append(("validation", len(behind)))
    scored.append(forms.errors(maps, validation, behind))
    baselines = [place for place, form in enumerate(names) if form in BASELINES.values()]
    windows = _spread(range(len(validation)), _PICKED)
    squared = forms.squared_errors([maps[place] for place in baselines], validation, windows)
    return Measured(names, maps, origins, scored, baselines[int(squared.argmin())], fitted)


def choose_of(measured: Measured, weigh: Callable[[list[str], list[Tensor], int], Tensor] | None = None) -> LinearStart:
    """Mix the measured forms with `weigh(forms, errors by origin, yardstick)`, by default `mixture`."""
    names, maps, named, scored, yardstick, before = measured
    shares = weigh(names, scored, yardstick) if weigh else mixture(scored, yardstick)
    parts = dict.fromkeys(names, 0.0)
    for name, share in zip(names, shares.tolist(), strict=True):
        parts[name] += share
    # in the list, the shared form stands right before its per-channel form
    places = range(len(names))
    shared_of = [maps[place - 1] if names[place] in _OF_CHANNELS else maps[place] for place in places]
    shared = _weighted(shares, [weight[0] for weight in shared_of])
    beyond = None
    if not parts.keys().isdisjoint(_OF_CHANNELS):
        beyond = _weighted(shares, [maps[place] - shared_of[place] for place in places])
    relative = (
        relative_errors(shares, errors, yardstick).max().item() if errors.shape[1] else float("nan")
        for errors in scored
    )
    origins = [Origin(*which, error) for which, error in zip(named, relative, strict=True)]
    start = LinearStart(shared.float(), None if beyond is None else beyond.float(), parts, origins, names[yardstick])
    for indices, fitted in before:
        start.fitted_behind.append((indices, _weighted(shares, fitted), _spread(range(shared.shape[-1]), _STEPS)))
    return start


def _weighted(shares: Tensor, maps: list[Tensor]) -> Tensor:
    """The sum of maps, each times its share."""
    total = sum(share * weight for share, weight in zip(shares, maps, strict=True))
    assert isinstance(total, Tensor), "there is a map"
    return total


@torch.no_grad()
def start_linear_part(
    model: nn.Module,
    train: Any,
    validation: Any,
    *,
    seasonality: int = 1,
    unit: Literal["deviation"] | None = None,
) -> LinearStart | None:
    """Choose the model's linear skip as `choose_start` does; None if it has none."""
    skip = model.skip
    if not isinstance(skip, LinearSkip):
        return None

    def choose(train: Any, validation: Any) -> LinearStart:
        start = choose_start(train, validation, own=skip.own is not None, seasonality=seasonality, unit=unit)
        skip.shared.copy_(start.shared)
        if start.own is not None and skip.own is not None:
            skip.own.copy_(start.own)
        return start

    start, effect = choose(train, validation), skip.covariates
    if effect is None:
        return start
    effect.fit(lambda: _residuals(skip, train), lambda: _residuals(skip, validation))
    for _ in range(ROUNDS - 1):
        start = choose(WithoutEffect(train, effect), WithoutEffect(validation, effect))
        effect.fit(lambda: _residuals(skip, train), lambda: _residuals(skip, validation))
    return start


def _residuals(skip: LinearSkip, windows: Any) -> Iterator[Residuals]:
    """Residuals of the linear forecast on windows of a panel; they still contain the covariates' effect."""
    for part in _spread(range(len(windows)), _FITTED).split(_BATCH):
        batch = windows.__getitems__(part)
        past, level, scale = batch["past_values"], batch["window_level"], batch["window_scale"]
        zero = torch.zeros_like(scale)
        forecast = skip(past, batch["past_observed_mask"], zero, zero + 1, level, scale).transpose(1, 2)
        yield Residuals(*moving(batch), batch["future_values"] - forecast * scale[:, None], scale)


def _origins(train: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, windows that end before it and windows that begin after it, for each origin with enough of both."""
    if not isinstance(train, WindowDataset):
        # windows of several series are not in order of time
        return
    L, H = train.context_length, train.prediction_length
    cuts = [int(len(train.values) * share) - L for share in ORIGINS]
    for cut, end in zip(cuts, [*cuts[1:], len(train)], strict=True):
        before = cut - H + 1
        if before >= max(30, H // 8) and cut < min(end, len(train)):
            name = f"row {cut + L:,}"
            behind = range(cut, min(end, len(train)))
            yield name, _spread(range(before), _FITTED), _spread(behind, _SCORED)


def _spread(indices: range, most: int) -> Tensor:
    """At most `most` of the indices, evenly spaced."""
    number = min(len(indices), most)
    return torch.linspace(indices[0], indices[-1], number, dtype=torch.float64).round().long()


class _Forms:
    """The forms and how to fit them: names and maps [C or 1, L + 2, steps], float64."""

    def __init__(self, own: bool, seasonality: int, unit: str | None):
        self.own, self.seasonality, self.unit = own, seasonality, unit

    def fit(self, windows: Any, indices: Tensor, most_steps: int | None = None) -> list[tuple[str, Tensor]]:
        """Maps fitted on the windows `indices`, for `most_steps` of their steps or all of them."""
        gram, moment = self._moments(windows, indices, most_steps, {})
        unweighted = self._solve(gram, moment, RIDGES[-1])
        for _ in range(_ROUNDS):
            fitted = self._solve(gram, moment, RIDGES[0])
            gram, moment = self._moments(windows, indices, most_steps, fitted)
        maps = [(BASELINES[form], weight) for form, weight in unweighted.items() if form in BASELINES]
        maps += [item for ridge in RIDGES for item in self._solve(gram, moment, ridge).items()]
        H = windows[0]["future_values"].shape[0]
        L = gram.shape[-1] - 2
        if 1 < self.seasonality <= L:
            steps = _spread(range(H), most_steps or H)
            repeated = torch.zeros(1, L + 2, len(steps), dtype=torch.float64)
            repeated[0, L - self.seasonality + steps % self.seasonality, torch.arange(len(steps))] = 1
            maps.append((SEASON, repeated))
        return maps

    def _moments(
        self, windows: Any, indices: Tensor, most_steps: int | None, maps: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Sums of squares of inputs [C or 1, L + 2, L + 2], and products with targets [C or 1, L + 2, steps]."""
        gram: Any = 0.0
        moment: Any = 0.0
        weights = complete_windows = 0.0
        for inputs, target in self._batches(windows, indices, most_steps):
            complete = ~target.isnan().any(2)  # [C, B]
            target = target.nan_to_num()
            weight = complete.float()
            if maps:
                best = maps.get(OWN, maps[SHARED]).float()
                error = (torch.matmul(inputs, best) - target).square().mean(2).sqrt()
                typical = (error * complete).sum() / complete.sum().clamp(min=1)
                weight = weight / (error + 0.1 * typical).clamp(min=1e-6)
            if not self.own:
                inputs, target, weight = (part.flatten(0, 1)[None] for part in (inputs, target, weight))
            weighted = (inputs * weight[..., None]).transpose(1, 2)
            gram = gram + (weighted @ inputs).double()
            moment = moment + (weighted @ target).double()
            weights, complete_windows = weights + weight.sum().item(), complete_windows + complete.sum().item()
        # the penalty counts windows of weight 1, scaled to all the windows that the indices sample
        scale = (int(indices[-1]) + 1) / len(indices) * complete_windows / weights if weights else 1.0
        return gram * scale, moment * scale

    def _solve(self, gram: Tensor, moment: Tensor, ridge: float) -> dict[str, Tensor]:
        maps = {}
        width = gram.shape[-1]
        for size, shared, own in ((width - 2, SHARED, OWN), (width, SHARED_RETURN, OWN_RETURN)):
            if size == width and self.unit is not None:
                continue
            squares, products = gram[:, :size, :size], moment[:, :size]
            common = solve_ridge(squares.sum(0, keepdim=True), products.sum(0, keepdim=True), ridge)
            maps[shared] = _padded(common, width)
            if self.own:
                maps[own] = _padded(common + solve_ridge(squares, products - squares @ common, ridge), width)
        return maps

    def errors(self, maps: list[Tensor], windows: Any, indices: Tensor) -> Tensor:
        """Errors [F, M] at `_STEPS` steps of the windows `indices`, without missing values."""
        errors = torch.cat(list(self._errors(maps, windows, indices)), 1)
        if not errors.shape[1]:
            return errors
        return errors[:, _spread(range(errors.shape[1]), _ERRORS)].double()

    def squared_errors(self, maps: list[Tensor], windows: Any, indices: Tensor) -> Tensor:
        """Sums [F] of the squares of all these errors."""
        return torch.stack([part.double().square().sum(1) for part in self._errors(maps, windows, indices)]).sum(0)

    def _errors(self, maps: list[Tensor], windows: Any, indices: Tensor) -> Iterator[Tensor]:
        H = windows[0]["future_values"].shape[0]
        steps = _spread(range(H), _STEPS)
        maps = [(weight[..., steps] if weight.shape[-1] == H else weight).float() for weight in maps]
        for inputs, target in self._batches(windows, indices, _STEPS):
            errors = torch.stack([torch.matmul(inputs, weight) - target for weight in maps])
            yield errors[:, ~target.isnan()]

    def _batches(self, windows: Any, indices: Tensor, most_steps: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs [C, B, L + 2], and targets minus the lookback's mean [C, B, steps]."""
        for part in indices.split(_BATCH):
            batch = windows.__getitems__(part)
            past, future, level = batch["past_values"], batch["future_values"], batch.get("window_level")
            if level is None:
                observed = batch.get("past_observed_mask", torch.ones_like(past, dtype=torch.bool))
                past = fill_with_mean(past, observed)
                level = past.mean(1)
                # the same lower bound as in the instance norm
                size = (past.var(1, correction=0) + 1e-5).sqrt()
                past, future = past - level[:, None], future - level[:, None]
            else:
                size = batch["window_scale"]
                past = past * size[:, None]
            if self.unit == "deviation":
                past, future = past / size[:, None], future / size[:, None]
            steps = _spread(range(future.shape[1]), most_steps or future.shape[1])
            inputs = torch.cat((past, level[:, None], torch.ones_like(level)[:, None]), 1)
            yield inputs.float().permute(2, 0, 1), future[:, steps].float().permute(2, 0, 1)


def _mapped(inputs: Tensor, weight: Tensor) -> Tensor:
    """inputs [B, L + 2, C] times maps [L + 2, H], or one map per channel -> [B, H, C]."""
    return torch.matmul(inputs.permute(2, 0, 1), weight).permute(1, 2, 0)


def _padded(weight: Tensor, rows: int) -> Tensor:
    return torch.nn.functional.pad(weight, (0, 0, 0, rows - weight.shape[-2]))
