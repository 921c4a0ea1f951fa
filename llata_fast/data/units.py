"""The level and the unit of a window, so that neither reaches a model: it sees how a series moves.

A model computes in fp32, and the eps of its instance norm is an absolute number. What it is fed is therefore measured
in float64 first: forecast(k * x + c) is then k * forecast(x) + c whatever the unit k and the level c of a file.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class WindowUnits(NamedTuple):
    """What windows [..., L, C] are measured by, float64."""

    level: Tensor
    """[..., 1, C]: mean of the observed values; NaN where there are none."""
    scale: Tensor
    """[..., 1, C]: their (biased) standard deviation; 0 for a constant window, and where nothing is observed."""

    @classmethod
    def of(cls, past: Tensor) -> "WindowUnits":
        """Units of float64 windows [..., L, C], NaN where missing."""
        observed = ~past.isnan()
        any_observed = observed.any(-2, keepdim=True)
        first = past.gather(-2, observed.to(torch.uint8).argmax(-2, keepdim=True)).where(any_observed, torch.nan)
        count = observed.sum(-2, keepdim=True).clamp(min=1)
        # differences are exact where a level is far above them: a constant window's are 0
        moves = (past - first).where(observed, 0.0)
        # squares of the largest values overflow, those of the smallest vanish
        size = moves.abs().amax(-2, keepdim=True)
        moves = moves / torch.where(size > 0, size, 1.0)
        mean = moves.sum(-2, keepdim=True) / count
        deviation = ((moves - mean).where(observed, 0.0).square().sum(-2, keepdim=True) / count).sqrt()
        return cls(first + size * mean, size * deviation)

    def remove(self, values: Tensor) -> Tensor:
        """Values [..., steps, C] in these units, fp32: 0 where missing, and throughout a constant window."""
        return self.divide(values - self.level, self.scale)

    @staticmethod
    def divide(moves: Tensor, scale: Tensor, has_missing: bool = True) -> Tensor:
        """What `remove` makes of values less their level."""
        quotients = (moves / torch.where(scale > 0, scale, torch.inf)).float()
        return quotients.nan_to_num_(nan=0.0) if has_missing else quotients

    def restore(self, values: Tensor) -> Tensor:
        """Values [B, steps, C] or quantiles [B, steps, C, Q] in these units -> in the windows' own, float64."""
        level, scale = (part[..., None] if values.ndim > part.ndim else part for part in self)
        return level + scale * values.double()


Outputs = Callable[[dict[str, Tensor | None]], tuple[Tensor, ...]]
"""A model: from inputs as a `WindowDataset` makes them, less the targets, to forecasts [B, H, C] and, where it has
them, quantiles [B, H, C, Q]."""


def run_windows(
    model: Outputs,
    past: Tensor,
    observed: Tensor,
    *,
    reads_level: bool = False,
    covariates: Mapping[str, Tensor] | None = None,
) -> tuple[WindowUnits, tuple[Tensor, ...]]:
    """The units of windows [B, L, C], and what `model` makes of them in these units, float64.

    `observed`, bool, says which of the float64 values are there. A model that `reads_level` takes standardised ones.
    `covariates` are inputs, too, by name.
    """
    past = past.double().masked_fill(~observed, torch.nan)
    units = WindowUnits.of(past)
    inputs = {"past_values": units.remove(past), "past_observed_mask": None if observed.all() else observed}
    inputs |= covariates or {}
    if not reads_level:
        return units, tuple(output.double() for output in model(inputs))
    scale = units.scale[:, 0].float()
    inputs |= {"window_level": units.level[:, 0].nan_to_num(nan=0.0).float(), "window_scale": scale}
    divisor = torch.where(scale > 0, scale, torch.inf).double()[:, None]
    return units, tuple(
        output.double() / (divisor if output.ndim == 3 else divisor[..., None]) for output in model(inputs)
    )


def forecast_windows(
    model: Callable[[dict[str, Tensor | None]], Tensor],
    past: Tensor,
    observed: Tensor,
    *,
    reads_level: bool = False,
    covariates: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Forecast [B, H, C] of windows [B, L, C] of any unit and level, in theirs, both float64.

    Args:
        model: from inputs as a `WindowDataset` makes them, less the targets, to forecasts [B, H, C].
        past: values [B, L, C]; `observed`, bool, says which are there.
        reads_level: the model reads the windows' level, so that `past` must be in standardised units.
        covariates: inputs that go with the windows, by name.

    A constant channel is forecast by its level, one that has no observed value by NaN.
    """
    units, (forecast,) = run_windows(
        lambda inputs: (model(inputs),), past, observed, reads_level=reads_level, covariates=covariates
    )
    return units.restore(forecast)
