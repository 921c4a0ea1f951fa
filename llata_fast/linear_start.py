"""Choose the linear part of a forecaster: the forms of `linear_forms`, mixed by their errors at several origins.

None of the forms is best everywhere: returning to the level halves the error on one series and doubles it on another,
and a single validation split cannot tell which. So each form is fitted on the rows before several origins in the
training rows and scored on two stretches of rows after each; a fit on all training rows is scored on the validation
rows. The reference is the baseline that is best in validation. The mixture chosen is the one whose worst ratio to it,
in squared and absolute error on every stretch, is least, so it departs from the baseline only if no ratio gets worse by
more than half a percent. A mixture of linear maps is again a linear map, around a share of the mean season.

Letters: B windows, L lookback, H horizon, S forecast steps, C channels, P steps of a season, F forms.
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
from .linear import LinearSkip, level_inputs
from .linear_covariates import ROUNDS, Residuals, WithoutEffect
from .linear_forms import BASELINES, STEPS, Fitting, Form, spread
from .linear_mixture import mixture, relative_errors
from .mean_season import Around

ORIGINS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Origins, as shares of the training rows that lie before them."""

# at most this many windows for a fit and for a score, and eight times as many of a single channel, as neighbouring
# windows hardly differ
_FITTED, _SCORED = 16384, 160
_BATCH = 256
# number of validation windows on which the baselines are compared
_PICKED = 1024


class Origin(NamedTuple):
    """The mixture's score on one stretch of rows after an origin."""

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
    """A chosen linear forecast: mean + [lookback - mean, mean, 1] @ weight, and what the mean season adds."""

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
        seasonality: steps per season. If the lookback holds one, a form repeats it; with `own` and a single series,
            others go around the mean season.
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
    """Name and number of windows of each stretch after an origin, validation last."""
    scored: list[Tensor]
    """Errors [F, M] in each stretch."""
    yardstick: int
    """Index of the baseline with the least squared error in validation."""
    before: list[tuple[Tensor, list[Form]]]
    """For each origin in the training rows: windows after it, and the forms fitted before it for `STEPS` steps."""

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
    """Fit every form before each origin and score it after; arguments as for `choose_start`."""
    fitting = Fitting(own, seasonality, unit)
    origins, scored, fitted = [], [], []
    for before, stretches, rows in _origins(train):
        forms = fitting.fit(train, before, rows, STEPS)
        fitted.append((torch.cat(list(stretches.values())), forms))
        for name, behind in stretches.items():
            origins.append((name, len(behind)))
            scored.append(fitting.errors(forms, train, behind))
    of_series = train.values if isinstance(train, WindowDataset) else None
    forms = fitting.fit(train, spread(range(len(train)), _most(_FITTED, train)), of_series)
    behind = spread(range(len(validation)), _most(_SCORED, validation))
    origins.append(("validation", len(behind)))
    scored.append(fitting.errors(forms, validation, behind))
    baselines = [place for place, form in enumerate(forms) if form.name in BASELINES.values()]
    windows = spread(range(len(validation)), _PICKED)
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
    steps = spread(range(H), STEPS)
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
    for part in spread(range(len(windows)), _FITTED).split(_BATCH):
        batch = windows.__getitems__(part)
        past, level, scale = batch["past_values"], batch["window_level"], batch["window_scale"]
        zero = torch.zeros_like(scale)
        forecast = skip(past, batch["past_observed_mask"], zero, zero + 1, level, scale).transpose(1, 2)
        yield Residuals(*moving(batch), batch["future_values"] - forecast * scale[:, None], scale)


def _origins(train: Any) -> Iterator[tuple[Tensor, dict[str, Tensor], Tensor]]:
    """For each origin with enough rows: windows that end before it, windows that begin after it, and the rows before.

    Those after it are two stretches, by name: over a shorter stretch, an error that is large for a while stands out.
    """
    if not isinstance(train, WindowDataset):
        # windows of several series are not in order of time
        return
    L, H = train.context_length, train.prediction_length
    cuts = [int(len(train.values) * share) - L for share in ORIGINS]
    for cut, end in zip(cuts, [*cuts[1:], len(train)], strict=True):
        before, end = cut - H + 1, min(end, len(train))
        if before >= max(30, H // 8) and cut < end:
            middle = (cut + end + 1) // 2
            halves = [half for half in (range(cut, middle), range(middle, end)) if half]
            stretches = {f"row {half[0] + L:,}": spread(half, _most(_SCORED, train)) for half in halves}
            yield spread(range(before), _most(_FITTED, train)), stretches, train.values[: cut + L]


def _most(number: int, windows: Any) -> int:
    """`number` windows, or as many as have `8 * number` channels if they have fewer."""
    return max(number, 8 * number // windows[0]["future_values"].shape[1])


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
