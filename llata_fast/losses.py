"""Forecast losses over observed values."""

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss}


def forecast_loss(kind: str, prediction: Tensor, target: Tensor, channel_weights: Tensor | None = None) -> Tensor:
    """Loss `kind` of prediction against target, both [B, H, C] -> fp32 scalar; channels weigh `channel_weights` [C].

    NaN in target marks a missing value; it adds nothing. The sum is divided by B * H * C, missing values counted in,
    so that the mean over micro-batches and ranks is the loss of the global batch whatever is missing where.
    """
    observed = ~torch.isnan(target)
    target = torch.where(observed, target.float(), 0.0)
    error = LOSSES[kind](torch.where(observed, prediction.float(), 0.0), target, reduction="none")
    return error.mean() if channel_weights is None else (error * channel_weights).mean()
