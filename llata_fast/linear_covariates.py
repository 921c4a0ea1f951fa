"""A linear effect of covariates, fitted by ridge regression on the residuals of a linear forecast.

    forecast += deviation of the lookback * sum_f weight[c, f, h] * feature[f, h]

The feature of a known covariate is its value at the step minus its mean in the lookback. A past covariate uses its last
value instead, at every step. Each category is a feature of its own. A number gives a second feature, in units of its
deviation in the lookback: if it drives the series, it also causes the series' deviation. All steps share a weight, and
each step may add a correction under a stronger ridge. Validation chooses between no effect, the shared weight and
several ridges. Forecast and effect are fitted in turn, each on the residuals of the other. Idea: TimesFM's covariates,
https://github.com/google-research/timesfm (Apache-2.0).

Letters: B windows, L lookback, H horizon, C channels, F features.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .covariate_tokens import Sizes, moving
from .linear import LeastSquares, deviation, solve_ridge

MOST_CATEGORIES = 64
"""A column with more categories gets no features."""

_BATCH = 256

LEAST_DEVIATION = 0.1
"""Lower bound of a lookback's deviation, in units of the covariate, where a number is divided by it."""

RIDGE_BASELINE = "ridge_covariates"
"""Name of `RidgeOnResiduals` among the baselines."""

RIDGE, STEP_RIDGES = 10.0, (30.0, 300.0, 3000.0)
"""Penalties, in windows, on the shared weight and on each step's correction to it."""

ROUNDS = 2
"""How many times forecast and effect are fitted in turn."""


class Residuals(NamedTuple):
    """Residuals of a forecast of windows."""

    past: Tensor | None
    """[B, L, K] past values of all covariates and [B, H, K'] future values of the known ones; None without any."""
    future: Tensor | None
    errors: Tensor
    """[B, H, C], NaN where nothing was observed; `deviations` [B, C] are the lookbacks', in the same units."""
    deviations: Tensor


class LinearCovariates(nn.Module):
    """The effect found by `fit`, zero until then."""

    weight: Tensor

    def __init__(self, sizes: Sizes, prediction_length: int, num_channels: int):
        super().__init__()
        self.sizes = sizes
        features = sum(_width(size) for role in ("known", "past") for size in sizes[role])
        self.register_buffer("weight", torch.zeros(num_channels, features, prediction_length))

    def forward(self, past: Tensor | None, future: Tensor | None) -> Tensor:
        """past [B, L, K], future [B, H, known] -> [B, C, H], in deviations of the lookbacks, fp32."""
        features = self.features(past, future)
        return torch.einsum("bhf,cfh->bch", features.to(self.weight.dtype), self.weight).float()

    def of(self, inputs: Mapping[str, Any]) -> Tensor:
        """The effect [B, H, C] of the covariates among a model's inputs, in deviations of the lookbacks."""
        return self(*moving(inputs)).transpose(1, 2)

    def features(self, past: Tensor | None, future: Tensor | None) -> Tensor:
        """[B, H, F] in the precision of `past`; 0 where the step's value is missing."""
        assert past is not None
        H = self.weight.shape[-1]
        parts = []
        for place, size in enumerate([*self.sizes["known"], *self.sizes["past"]]):
            if not _width(size):
                continue
            known = place < len(self.sizes["known"])
            before = _expanded(past[..., place], size)  # [B, L, width]
            if known:
                assert future is not None
                behind = _expanded(future[..., place], size)
            else:
                behind = _last(before)[:, None].expand(-1, H, -1)
            mean = before.nanmean(1, keepdim=True).nan_to_num(nan=0.0)
            moves = (behind - mean).nan_to_num(nan=0.0)
            parts.append(moves)
            if not size:
                deviation = (before - mean).square().nanmean(1, keepdim=True).nan_to_num(nan=0.0).sqrt()
                parts.append(moves / deviation.clamp(min=LEAST_DEVIATION))
        return torch.cat(parts, 2)

    @torch.no_grad()
    def fit(self, train: Callable[[], Iterator[Residuals]], validation: Callable[[], Iterator[Residuals]]):
        """Fit the effect on the residuals of training windows; validation chooses how much of it to keep."""
        candidates = _solve(self, train)
        errors = torch.zeros(len(candidates), dtype=torch.float64)
        for part in validation():
            features = self.features(part.past, part.future).double()
            effects = torch.einsum("bhf,wcfh->wbhc", features, candidates) * part.deviations[:, None].double()
            left = part.errors.double() - effects
            errors += left.square().nansum((1, 2, 3)).cpu()
        self.weight.copy_(candidates[errors.argmin()])


class RidgeOnResiduals:
    """The covariate baseline: a least-squares map of the lookback, plus the effect fitted on its residuals.

    A function of past values [B, L, C], their observed mask and covariates by name -> forecast [B, H, C].
    """

    takes_covariates = True

    def __init__(self, sizes: Sizes, train: Any, validation: Any):
        """Fit on windows of a panel whose covariates have these `sizes`."""
        C = train[0]["past_values"].shape[-1]
        self.effect = LinearCovariates(sizes, train.prediction_length, C)
        for _ in range(ROUNDS):
            self.linear = LeastSquares(unit="deviation").fit(WithoutEffect(train, self.effect))
            self.effect.fit(lambda: self._residuals(train), lambda: self._residuals(validation))

    @torch.no_grad()
    def __call__(self, past: Tensor, observed: Tensor, **covariates: Tensor | None) -> Tensor:
        forecast = self.linear(past, observed)
        return forecast + deviation(past, observed) * self.effect.of(covariates).to(forecast.dtype)

    def _residuals(self, windows: Any) -> Iterator[Residuals]:
        for start in range(0, len(windows), _BATCH):
            batch = windows.__getitems__(range(start, min(start + _BATCH, len(windows))))
            scale = batch["window_scale"]
            forecast = self.linear((batch["past_values"] * scale[:, None]).double(), batch["past_observed_mask"])
            yield Residuals(*moving(batch), batch["future_values"] - forecast, scale)


def _solve(part: LinearCovariates, train: Callable[[], Iterator[Residuals]]) -> Tensor:
    """Weights [candidates, C, F, H], float64: no effect, one shared by all steps, and one for each of STEP_RIDGES."""
    gram: Tensor | float = 0.0
    moment: Tensor | float = 0.0
    for windows in train():
        features = part.features(windows.past, windows.future).double()
        observed = ~windows.errors.isnan()
        # a window whose lookback hardly varies says little about an effect in units of its deviation
        weights = windows.deviations[:, None].double() * observed  # [B, H, C]
        errors = windows.errors.double().nan_to_num(nan=0.0)
        inputs = features.permute(1, 0, 2)[None] * weights.permute(2, 1, 0)[..., None]  # [C, H, B, F]
        gram = gram + inputs.transpose(2, 3) @ inputs
        moment = moment + inputs.transpose(2, 3) @ errors.permute(2, 1, 0)[..., None]
    assert isinstance(gram, Tensor) and isinstance(moment, Tensor)
    shared = solve_ridge(gram.sum(1), moment.sum(1), RIDGE)  # [C, F, 1]
    left = moment - gram @ shared[:, None]
    beyond = [solve_ridge(gram, left, ridge)[..., 0].transpose(1, 2) for ridge in STEP_RIDGES]  # [C, F, H]
    shared = shared.expand_as(beyond[0])
    return torch.stack((torch.zeros_like(shared), shared, *(shared + weight for weight in beyond)))


class WithoutEffect:
    """Windows of a panel whose targets have a covariate effect subtracted."""

    def __init__(self, windows: Any, effect: LinearCovariates):
        self.windows, self.effect = windows, effect

    def __len__(self) -> int:
        return len(self.windows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.windows, name)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([range(len(self))[index]]).items()}

    def __getitems__(self, indices: Any) -> dict[str, Tensor]:
        batch = self.windows.__getitems__(indices)
        effect = batch["window_scale"][:, None] * self.effect.of(batch)
        return batch | {"future_values": batch["future_values"] - effect}

    def batches(self, batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for past, observed, future in self.windows.batches(batch_size, first):
            covariates = self.windows.covariates(range(first, first + past.shape[0]))
            first += past.shape[0]
            yield past, observed, future - deviation(past, observed) * self.effect.of(covariates)


def _width(size: int) -> int:
    """Number of features of a column."""
    return 2 if size == 0 else size if size <= MOST_CATEGORIES else 0


def _expanded(values: Tensor, size: int) -> Tensor:
    """Values [B, steps] -> [B, steps, width], NaN where missing; categories are one-hot."""
    if size == 0:
        return values[..., None]
    ones = (values[..., None] == torch.arange(1, size + 1, device=values.device)).to(values.dtype)
    return torch.where(values.isnan()[..., None], torch.nan, ones)


def _last(values: Tensor) -> Tensor:
    """The last observed of the values [B, L, width] -> [B, width]; NaN if there is none."""
    steps = torch.arange(values.shape[1], device=values.device)[:, None]
    last = torch.where(values.isnan(), -1, steps).amax(1, keepdim=True).clamp(min=0)
    return values.gather(1, last)[:, 0]
