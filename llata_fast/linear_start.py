"""Choose the linear part of a forecaster: forms fitted in closed form, mixed by their errors at several origins.

A linear forecast of a lookback is its mean plus a map of [lookback - mean, mean, 1]. The forms differ in three ways:
one map for all channels or one per channel, whether the level stays or returns to that of the training rows, and the
size of the penalty. Of a series with a season, each is also fitted to what the mean season of the rows leaves
(`mean_season`). Further forms repeat the last season, or are the linear baselines: the same maps by plain least
squares. None is best everywhere: returning to the level halves the error on one series and doubles it on another, and
a single validation split cannot tell which. So each form is fitted on the rows before several origins in the training
rows and scored on the rows after each; a fit on all training rows is scored on the validation rows. The reference is
the baseline that is best in validation. The mixture chosen is the one whose worst ratio to it, in squared and absolute
error at every origin, is least, so it departs from the baseline only if no ratio gets worse by more than half a
percent. A mixture of linear maps is again a linear map, around a share of the mean season. Errors count in the unit in
which forecasts are scored: M4's in that of MASE.

Letters: B windows, L lookback, H horizon, C channels, F forms.
"""

import functools
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
from .mean_season import Around, mean_season, place_in_season, season_from

SHARED, OWN = "one map, level stays", "own maps, level stays"
SHARED_RETURN, OWN_RETURN = "one map, level returns", "own maps, level returns"
SEASON = "last season repeated"
AROUND = " around the mean season"
"""Ends the name of a form that is fitted to what the mean season leaves."""

_SHARED_OF = {SHARED: SHARED, OWN: SHARED, SHARED_RETURN: SHARED_RETURN, OWN_RETURN: SHARED_RETURN}

BASELINES = {SHARED: "linear", OWN: "linear_per_channel", SHARED_RETURN: "dlinear"}
"""Form fitted by plain least squares -> its name as a baseline in `evaluation.baselines`."""

ORIGINS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Origins, as shares of the training rows that lie before them."""

RIDGES = (1e3, 1.0)
"""Penalties on a map's deviation from keeping the level, and on a channel's deviation from the shared map.

The last one is also the baselines'.
"""

# at most this many windows for a fit and for a score, and eight times as many of a single channel, as neighbouring
# windows hardly differ; of a scored window this many steps, and of all errors this many
_FITTED, _SCORED, _STEPS, _ERRORS = 16384, 160, 24, 8192
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


class Form(NamedTuple):
    """A fitted form."""

    name: str
    weight: Tensor
    """[C or 1, L + 2, S], float64: the map of a lookback minus its `season`."""
    shared: Tensor
    """[1, L + 2, S]: the map for a series with any channels, and no season."""
    season: Tensor | None = None
    """[P, C]"""


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
    around: Around | None = None
    """What the mean season adds for the training series' channels, fp32."""
    fitted_behind: list[tuple[Tensor, Tensor, Around | None, Tensor]] = field(default_factory=list)
    """For each origin in the training rows: windows after it, map [C or 1, L + 2, S] and season of the rows before it,
    steps."""

    def __call__(self, past: Tensor, observed: Tensor) -> Tensor:
        """Lookbacks [B, L, C] and their observed mask -> forecasts [B, H, C], in the units of the windows."""
        weight = self.shared if self.own is None else self.shared + self.own
        return _forecast(past, observed, weight, self.around)

    def behind_origins(self, train: WindowDataset | PanelWindows) -> list[Behind]:
        """Errors after each origin in the training windows, of a start fitted on the rows before it."""
        found = []
        for indices, weight, around, steps in self.fitted_behind:
            past, future = train.stretches(indices.tolist())
            forecast = _forecast(past.nan_to_num(), ~past.isnan(), weight, around)
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
    """All forms, and their errors."""

    forms: list[Form]
    """F of them, fitted on all training rows; the first are the baselines."""
    origins: list[tuple[str, int]]
    """Name and number of scored windows, validation last."""
    scored: list[Tensor]
    """Errors [F, M] after each origin."""
    yardstick: int
    """Index of the baseline with the least squared error in validation."""
    before: list[tuple[Tensor, list[Form]]]
    """For each origin but the last: windows after it, and the forms fitted before it for `_STEPS` steps."""

    @property
    def names(self) -> list[str]:
        """Of the forms; those that differ in their penalty share one."""
        return [form.name for form in self.forms]


def measure_forms(
    train: Any,
    validation: Any,
    *,
    own: bool = False,
    seasonality: int = 1,
    unit: Literal["deviation"] | None = None,
) -> Measured:
    """Fit every form with each of `RIDGES` before each origin and score it after; arguments as for `choose_start`."""
    fitting = _Fitting(own, seasonality, unit)
    origins, scored, fitted = [], [], []
    for name, before, behind, rows in _origins(train):
        origins.append((name, len(behind)))
        forms = fitting.fit(train, before, rows, _STEPS)
        fitted.append((behind, forms))
        scored.append(fitting.errors(forms, train, behind))
    rows = train.values if isinstance(train, WindowDataset) else None
    forms = fitting.fit(train, _spread(range(len(train)), _most(_FITTED, train)), rows)
    behind = _spread(range(len(validation)), _most(_SCORED, validation))
    origins.append(("validation", len(behind)))
    scored.append(fitting.errors(forms, validation, behind))
    baselines = [place for place, form in enumerate(forms) if form.name in BASELINES.values()]
    windows = _spread(range(len(validation)), _PICKED)
    squared = fitting.squared_errors([forms[place] for place in baselines], validation, windows)
    return Measured(forms, origins, scored, baselines[int(squared.argmin())], fitted)


def choose_of(measured: Measured, weigh: Callable[[list[str], list[Tensor], int], Tensor] | None = None) -> LinearStart:
    """Mix the measured forms with `weigh(names, errors by origin, yardstick)`, by default `mixture`."""
    forms, named, scored, yardstick, before = measured
    shares = weigh(measured.names, scored, yardstick) if weigh else mixture(scored, yardstick)
    parts = dict.fromkeys(measured.names, 0.0)
    for form, share in zip(forms, shares.tolist(), strict=True):
        parts[form.name] += share
    relative = (
        relative_errors(shares, errors, yardstick).max().item() if errors.shape[1] else float("nan")
        for errors in scored
    )
    origins = [Origin(*which, error) for which, error in zip(named, relative, strict=True)]
    shared = _total(shares, [form.shared for form in forms])
    H = shared.shape[-1]
    weight, around = _mixed(shares, forms, torch.arange(H))
    start = LinearStart(
        shared[0].float(),
        (weight - shared).float() if any(form.weight is not form.shared for form in forms) else None,
        parts,
        origins,
        forms[yardstick].name,
        around=None if around is None else Around(*(part.float() for part in around)),
    )
    steps = _spread(range(H), _STEPS)
    start.fitted_behind = [(windows, *_mixed(shares, fitted, steps), steps) for windows, fitted in before]
    return start


def _mixed(shares: Tensor, forms: list[Form], steps: Tensor) -> tuple[Tensor, Around | None]:
    """The mixture as one map [C or 1, L + 2, S] of the lookback as it is, and what its mean season adds to that."""
    weight = _total(shares, [form.weight for form in forms])
    length = weight.shape[-2] - 2
    added = [None if form.season is None else Around.of(form.season, form.weight, steps, length) for form in forms]
    seasonal = torch.tensor([around is not None for around in added])
    around = [around for around in added if around is not None]
    if not around:
        return weight, None
    return weight, Around(around[0].season, _total(shares[seasonal], [part.effect for part in around]))


def _total(shares: Tensor, parts: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, (share * part for share, part in zip(shares, parts, strict=True)))


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
        skip.take(start.shared, start.own, start.around)
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


def _origins(train: Any) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """For each origin with enough of both: name, windows that end before it and begin after it, rows before it."""
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
            fitted, scored = _spread(range(before), _most(_FITTED, train)), _spread(behind, _most(_SCORED, train))
            yield name, fitted, scored, train.values[: cut + L]


def _most(number: int, windows: Any) -> int:
    """`number` windows, or as many as have `8 * number` channels if they have fewer."""
    return max(number, 8 * number // windows[0]["future_values"].shape[1])


def _spread(indices: range, most: int) -> Tensor:
    """At most `most` of the indices, evenly spaced."""
    number = min(len(indices), most)
    return torch.linspace(indices[0], indices[-1], number, dtype=torch.float64).round().long()


class _Batch(NamedTuple):
    """Windows as the forms see them."""

    inputs: Tensor
    """[C, B, L + 2], without their season where that is left out."""
    target: Tensor
    """[C, B, S], minus the lookback's mean."""
    unit: Tensor | None
    """[C, B]: the target's unit in the one that forecasts are scored in; None where they are the same."""


class _Fitting:
    """How the forms are fitted and scored."""

    def __init__(self, own: bool, seasonality: int, unit: str | None):
        self.own, self.seasonality, self.unit = own, seasonality, unit

    def fit(self, windows: Any, indices: Tensor, rows: Tensor | None, most_steps: int | None = None) -> list[Form]:
        """The forms fitted on the windows `indices`, for `most_steps` of their steps or all of them.

        The mean season is that of `rows` [T, C]; None, for windows of several series, leaves out its forms.
        """
        H = windows[0]["future_values"].shape[0]
        plain, unweighted = self._solved(windows, indices, most_steps, None)
        forms = [self._form(BASELINES[form], form, unweighted) for form in unweighted if form in BASELINES]
        forms += [self._form(form, form, maps) for maps in plain for form in maps]
        L = plain[0][SHARED].shape[-2] - 2
        if not 1 < self.seasonality <= L:
            return forms
        if self.own and rows is not None:
            season = mean_season(rows, self.seasonality)
            around, unweighted_around = self._solved(windows, indices, most_steps, season)
            for maps, without in ((unweighted_around, unweighted), *zip(around, plain, strict=True)):
                forms += [Form(form + AROUND, maps[form], without[_SHARED_OF[form]], season) for form in maps]
        steps = _spread(range(H), most_steps or H)
        repeated = torch.zeros(1, L + 2, len(steps), dtype=torch.float64)
        repeated[0, L - self.seasonality + steps % self.seasonality, torch.arange(len(steps))] = 1
        return [*forms, Form(SEASON, repeated, repeated)]

    def _form(self, name: str, form: str, maps: dict[str, Tensor]) -> Form:
        return Form(name, maps[form], maps[_SHARED_OF[form]])

    def _solved(
        self, windows: Any, indices: Tensor, most_steps: int | None, season: Tensor | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """{form: map} for each of `RIDGES`, and by plain least squares, of windows minus their `season` [P, C]."""
        gram, moment = self._moments(windows, indices, most_steps, season, {})
        unweighted = self._solve(gram, moment, RIDGES[-1])
        for _ in range(_ROUNDS):
            fitted = self._solve(gram, moment, RIDGES[0])
            gram, moment = self._moments(windows, indices, most_steps, season, fitted)
        return [self._solve(gram, moment, ridge) for ridge in RIDGES], unweighted

    def _moments(
        self,
        windows: Any,
        indices: Tensor,
        most_steps: int | None,
        season: Tensor | None,
        maps: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Sums of squares of inputs [C or 1, L + 2, L + 2], and products with targets [C or 1, L + 2, steps]."""
        gram: Any = 0.0
        moment: Any = 0.0
        weights = complete_windows = 0.0
        for part in indices.split(_BATCH):
            inputs, target, _ = self._batch(windows, part, most_steps, season)
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

    def errors(self, forms: list[Form], windows: Any, indices: Tensor) -> Tensor:
        """Errors [F, M] at `_STEPS` steps of the windows `indices`, without missing values."""
        errors = torch.cat(list(self._errors(forms, windows, indices)), 1)
        if not errors.shape[1]:
            return errors
        return errors[:, _spread(range(errors.shape[1]), _ERRORS)].double()

    def squared_errors(self, forms: list[Form], windows: Any, indices: Tensor) -> Tensor:
        """Sums [F] of the squares of all these errors."""
        return torch.stack([part.double().square().sum(1) for part in self._errors(forms, windows, indices)]).sum(0)

    def _errors(self, forms: list[Form], windows: Any, indices: Tensor) -> Iterator[Tensor]:
        H = windows[0]["future_values"].shape[0]
        steps = _spread(range(H), _STEPS)
        maps = [(form.weight[..., steps] if form.weight.shape[-1] == H else form.weight).float() for form in forms]
        season = next((form.season for form in forms if form.season is not None), None)
        for part in indices.split(_BATCH):
            whole = self._batch(windows, part, _STEPS, None)
            left = whole if season is None else self._batch(windows, part, _STEPS, season)
            errors = []
            for form, weight in zip(forms, maps, strict=True):
                batch = whole if form.season is None else left
                errors.append(torch.matmul(batch.inputs, weight) - batch.target)
            scored = torch.stack(errors)
            if whole.unit is not None:
                scored = scored * whole.unit[..., None]
            yield scored[:, ~whole.target.isnan()]

    def _batch(self, windows: Any, indices: Tensor, most_steps: int | None, season: Tensor | None) -> "_Batch":
        batch = windows.__getitems__(indices)
        past, future, level = batch["past_values"], batch["future_values"], batch.get("window_level")
        observed = batch.get("past_observed_mask")
        if level is None:
            past = fill_with_mean(past, torch.ones_like(past, dtype=torch.bool) if observed is None else observed)
            level = past.mean(1)
            # the same lower bound as in the instance norm
            size = (past.var(1, correction=0) + 1e-5).sqrt()
            past, future = past - level[:, None], future - level[:, None]
        else:
            size = batch["window_scale"]
            past = past * size[:, None]
        unit = None
        if self.unit == "deviation":
            past, future = past / size[:, None], future / size[:, None]
            unit = (size / batch["insample_scale"]).T if "insample_scale" in batch else None
        steps = _spread(range(future.shape[1]), most_steps or future.shape[1])
        future = future[:, steps]
        if season is not None:
            first = place_in_season(past, observed, season)
            before = season_from(season, first, torch.arange(past.shape[1]))
            mean = before.mean(1, keepdim=True)
            past, level = past - (before - mean), level - mean[:, 0]
            future = future - (season_from(season, first, past.shape[1] + steps) - mean)
        inputs = torch.cat((past, level[:, None], torch.ones_like(level)[:, None]), 1)
        return _Batch(inputs.float().permute(2, 0, 1), future.float().permute(2, 0, 1), unit)


def _forecast(past: Tensor, observed: Tensor, weight: Tensor, around: Around | None) -> Tensor:
    """Lookbacks [B, L, C], a map [L + 2, S] or one per channel, and a mean season -> forecasts [B, S, C]."""
    inputs, mean = level_inputs(past, observed)
    forecast = mean + _mapped(inputs, weight.to(inputs))
    if around is None:
        return forecast
    return forecast + around(inputs[:, :-2], observed).transpose(1, 2).to(forecast)


def _mapped(inputs: Tensor, weight: Tensor) -> Tensor:
    """inputs [B, L + 2, C] times maps [L + 2, H], or one map per channel -> [B, H, C]."""
    return torch.matmul(inputs.permute(2, 0, 1), weight).permute(1, 2, 0)


def _padded(weight: Tensor, rows: int) -> Tensor:
    return torch.nn.functional.pad(weight, (0, 0, 0, rows - weight.shape[-2]))
