"""Linear forecasts of several forms, each fitted in closed form.

A linear forecast of a lookback is its mean plus a map of [lookback - mean, mean, 1]. The forms differ in three ways:
one map for all channels or one per channel, whether the level stays or returns to that of the training rows, and the
size of the penalty. Of a series with a season, each is also fitted to what the mean season of the rows leaves
(`mean_season`). Further forms repeat the last season, or are the linear baselines: the same maps by plain least
squares. Errors count in the unit in which forecasts are scored: M4's in that of MASE.

Letters: B windows, L lookback, H horizon, S forecast steps, C channels, P steps of a season, F forms.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .linear import fill_with_mean, solve_ridge
from .mean_season import mean_season, place_in_season, season_from

SHARED, OWN = "one map, level stays", "own maps, level stays"
SHARED_RETURN, OWN_RETURN = "one map, level returns", "own maps, level returns"
SEASON = "last season repeated"
AROUND = " around the mean season"
"""Ends the name of a form that is fitted to what the mean season leaves."""

_SHARED_OF = {SHARED: SHARED, OWN: SHARED, SHARED_RETURN: SHARED_RETURN, OWN_RETURN: SHARED_RETURN}

BASELINES = {SHARED: "linear", OWN: "linear_per_channel", SHARED_RETURN: "dlinear"}
"""Form fitted by plain least squares -> its name as a baseline in `evaluation.baselines`."""

RIDGES = (1e3, 1.0)
"""Penalties on a map's deviation from keeping the level, and on a channel's deviation from the shared map.

The last one is also the baselines'.
"""

STEPS = 24
"""At most this many steps of a window are scored, and fitted for that."""

# at most this many errors of a form are kept for the choice
_ERRORS = 8192
_BATCH = 256
# squared errors let a few wild windows dominate: each window is weighted by its inverse error, in this many rounds
_ROUNDS = 3


class Form(NamedTuple):
    """A fitted form."""

    name: str
    weight: Tensor
    """[C or 1, L + 2, S], float64: the map of a lookback minus its `season`."""
    shared: Tensor
    """[1, L + 2, S]: the map for a series with any channels, and no season."""
    season: Tensor | None = None
    """[P, C]"""


class _Batch(NamedTuple):
    """Windows as the forms see them."""

    inputs: Tensor
    """[C, B, L + 2], without their season where that is left out."""
    target: Tensor
    """[C, B, S], minus the lookback's mean."""
    unit: Tensor | None
    """[C, B]: the target's unit in the one that forecasts are scored in; None where they are the same."""


class Fitting:
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
        steps = spread(range(H), most_steps or H)
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
            inputs, target, _ = self._seen(windows.__getitems__(part), most_steps, season)
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
        """Errors [F, M] at `STEPS` steps of the windows `indices`, without missing values."""
        errors = torch.cat(list(self._errors(forms, windows, indices)), 1)
        if not errors.shape[1]:
            return errors
        return errors[:, spread(range(errors.shape[1]), _ERRORS)].double()

    def squared_errors(self, forms: list[Form], windows: Any, indices: Tensor) -> Tensor:
        """Sums [F] of the squares of all these errors."""
        return torch.stack([part.double().square().sum(1) for part in self._errors(forms, windows, indices)]).sum(0)

    def _errors(self, forms: list[Form], windows: Any, indices: Tensor) -> Iterator[Tensor]:
        H = windows[0]["future_values"].shape[0]
        steps = spread(range(H), STEPS)
        maps = [(form.weight[..., steps] if form.weight.shape[-1] == H else form.weight).float() for form in forms]
        season = next((form.season for form in forms if form.season is not None), None)
        for part in indices.split(_BATCH):
            batch = windows.__getitems__(part)
            whole = self._seen(batch, STEPS, None)
            left = whole if season is None else self._seen(batch, STEPS, season)
            errors = []
            for form, weight in zip(forms, maps, strict=True):
                inputs, target, _ = whole if form.season is None else left
                errors.append(torch.matmul(inputs, weight) - target)
            scored = torch.stack(errors)
            if whole.unit is not None:
                scored = scored * whole.unit[..., None]
            yield scored[:, ~whole.target.isnan()]

    def _seen(self, batch: dict[str, Tensor], most_steps: int | None, season: Tensor | None) -> _Batch:
        """A batch of windows as the forms see it, without its `season` [P, C] if one is given."""
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
        steps = spread(range(future.shape[1]), most_steps or future.shape[1])
        future = future[:, steps]
        if season is not None:
            first = place_in_season(past, observed, season)
            before = season_from(season, first, torch.arange(past.shape[1]))
            mean = before.mean(1, keepdim=True)
            past, level = past - (before - mean), level - mean[:, 0]
            future = future - (season_from(season, first, past.shape[1] + steps) - mean)
        inputs = torch.cat((past, level[:, None], torch.ones_like(level)[:, None]), 1)
        return _Batch(inputs.float().permute(2, 0, 1), future.float().permute(2, 0, 1), unit)


def spread(indices: range, most: int) -> Tensor:
    """At most `most` of the indices, evenly spaced."""
    number = min(len(indices), most)
    return torch.linspace(indices[0], indices[-1], number, dtype=torch.float64).round().long()


def _padded(weight: Tensor, rows: int) -> Tensor:
    return torch.nn.functional.pad(weight, (0, 0, 0, rows - weight.shape[-2]))
