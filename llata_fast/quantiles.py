"""Quantiles beside the point forecast: a separate head, trained with the pinball loss."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class QuantileHead(nn.Module):
    """Last features [rows, width] of a channel -> offsets of the quantiles from the point forecast, [rows, H, Q], fp32.

    Initially the offsets are the quantiles of a normal distribution with the window's standard deviation.
    """

    def __init__(self, width: int, prediction_length: int, levels: Sequence[float]):
        super().__init__()
        self.linear = nn.Linear(width, prediction_length * len(levels))
        self.num_levels = len(levels)
        nn.init.zeros_(self.linear.weight)
        normal = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64))
        with torch.no_grad():
            self.linear.bias.copy_(normal.float().repeat(prediction_length))

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features).float().unflatten(-1, (-1, self.num_levels))


def in_order(quantiles: Tensor) -> Tensor:
    """Sort quantiles [..., Q] so that they never cross; sorting never increases the pinball loss.

    Chernozhukov et al., Econometrica 2010, https://arxiv.org/abs/0704.3649
    """
    return quantiles.sort(-1).values


def pinball_loss(quantiles: Tensor, target: Tensor, levels: Sequence[float]) -> Tensor:
    """Mean over levels q of 2 max(q e, (q - 1) e), e = target - quantile: fp32 scalar; the absolute error at q = 0.5.

    quantiles are [B, H, C, Q]; target is [B, H, C], where NaN marks a missing value, which adds nothing. The sum is
    divided by B * H * C * Q, missing values included.
    """
    error = target.float()[..., None] - quantiles.float()
    error = torch.where(error.isnan() & target.isnan()[..., None], 0.0, error)
    level = torch.tensor(levels, dtype=error.dtype, device=error.device)
    loss = 2 * torch.maximum(level * error, (level - 1) * error)
    return loss.mean()
