"""Standardise windows by their own level and scale, so that a model sees only how a series moves.

A model computes in fp32, and the eps of its instance norm is an absolute number. So its inputs are first standardised
in
float64: forecast(k * x + c) is then k * forecast(x) + c for any unit k and level c of a file.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class WindowUnits(NamedTuple):
    """The level and scale of windows [..., L, C], float64."""

    level: Tensor
    """[..., 1, C]: mean of the observed values; NaN if there are none."""
    scale: Tensor
    """[..., 1, C]: their (biased) standard deviation; 0 for a constant window or one without observed values."""

    @classmethod
    def of(cls, past: Tensor) -> "WindowUnits":
        """Units of float64 windows [..., L, C], NaN where missing."""
        observed = ~past.isnan()
        any_observed = observed.any(-2, keepdim=True)
        first = past.gather(-2, observed.to(torch.uint8).argmax(-2, keepdim=True)).where(any_observed, torch.nan)
        count = observed.sum(-2, keepdim=True).clamp(min=1)
        # differences stay exact when the level is much larger than they are, so a constant window gives 0
        moves = (past - first).where(observed, 0.0)
        # squares of very large values overflow, those of very small ones vanish
        size = moves.abs().amax(-2, keepdim=True)
        moves = moves / torch.where(size > 0, size, 1.0)
        mean = moves.sum(-2, keepdim=True) / count
        deviation = ((moves - mean).where(observed, 0.0).square().sum(-2, keepdim=True) / count).sqrt()
        return cls(first + size * mean, size * deviation)

    def remove(self, values: Tensor) -> Tensor:
        """Standardise values [..., steps, C], fp32: 0 where missing, and everywhere in a constant window."""
        return self.divide(values - self.level, self.scale)

    @staticmethod
    def divide(moves: Tensor, scale: Tensor, has_missing: bool = True) -> Tensor:
        """`remove` for values whose level is already subtracted."""
        quotients = (moves / torch.where(scale > 0, scale, torch.inf)).float()
        return quotients.nan_to_num_(nan=0.0) if has_missing else quotients

    def restore(self, values: Tensor) -> Tensor:
        """Standardised values [B, steps, C] or quantiles [B, steps, C, Q] -> original units, float64."""
        level, scale = (part[..., None] if values.ndim > part.ndim else part for part in self)
        return level + scale * values.double()


Outputs = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]
"""A model as a function: the inputs of a `WindowDataset` without targets -> forecasts [B, H, C] and, if it has them,
quantiles [B, H, C, Q]."""


def run_windows(
    model: Outputs,
    past: Tensor,
    observed: Tensor,
    *,
    reads_level: bool = False,
    covariates: Mapping[str, Tensor] | None = None,
) -> tuple[WindowUnits, tuple[Tensor, ...]]:
    """The units of windows [B, L, C], and the outputs of `model` in these units, float64.

    `observed` (bool) marks which of the float64 values are present. A model that `reads_level` needs standardised
    values. `covariates` are further inputs, by name.
    """
    past = past.double().masked_fill(~observed, torch.nan)
    units = WindowUnits.of(past)
    inputs = {"past_values": units.remove(past), **(covariates or {})}
    if not observed.all():
        inputs["past_observed_mask"] = observed
    if not reads_level:
        return units, tuple(output.double() for output in model(inputs))
    scale = units.scale[:, 0].float()
    inputs |= {"window_level": units.level[:, 0].nan_to_num(nan=0.0).float(), "window_scale": scale}
    divisor = torch.where(scale > 0, scale, torch.inf).double()[:, None]
    return units, tuple(
        output.double() / (divisor if output.ndim == 3 else divisor[..., None]) for output in model(inputs)
    )


def forecast_windows(
    model: Callable[[dict[str, Tensor]], Tensor],
    past: Tensor,
    observed: Tensor,
    *,
    reads_level: bool = False,
    covariates: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Forecasts [B, H, C] of windows [B, L, C] with any unit and level, in the windows' units; both float64.

    Args:
        model: maps the inputs of a `WindowDataset` without targets to forecasts [B, H, C].
        past: values [B, L, C]; `observed` (bool) marks which are present.
        reads_level: the model reads the windows' level, so `past` must be standardised.
        covariates: the windows' covariates, by name.

    A constant channel is forecast by its level, and a channel without observed values by NaN.
    """
    units, (forecast,) = run_windows(
        lambda inputs: (model(inputs),), past, observed, reads_level=reads_level, covariates=covariates
    )
    return units.restore(forecast)
