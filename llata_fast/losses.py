"""Forecast losses over observed values."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError


def _smape(prediction: Tensor, target: Tensor) -> Tensor:
    """In percent, 0 to 200. The denominator carries no gradient: a forecast must not gain by growing."""
    size = prediction.detach().abs() + target.detach().abs()
    return 200 * (prediction - target).abs() / torch.where(size > 0, size, 1)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "mse": F.mse_loss,
    "smape": lambda prediction, target, reduction: _smape(prediction, target),
    # of values that `forecast_loss` has divided by the in-sample scale
    "mase": F.l1_loss,
}


def forecast_loss(
    kind: str,
    prediction: Tensor,
    target: Tensor,
    insample_scale: Tensor | None = None,
    *,
    has_missing: bool = True,
) -> Tensor:
    """Loss `kind` of prediction against target, both [B, H, C] -> fp32 scalar.

    NaN in target marks a missing value (unless not `has_missing`: then it is an error, and the loss NaN); it adds
    nothing. The sum is divided by B * H * C, missing values counted in, so that the mean over micro-batches and ranks
    is the loss of the global batch whatever is missing where.

    mase divides errors by `insample_scale` [B, C]: each series' mean absolute error of the seasonal-naive forecast
    inside its sample. Raises InputError where that is not given.
    """
    prediction, target = prediction.float(), target.float()
    if has_missing:
        observed = ~torch.isnan(target)
        target = torch.where(observed, target, 0.0)
        prediction = torch.where(observed, prediction, 0.0)
    if kind == "mase":
        if insample_scale is None:
            raise InputError("the mase loss needs insample_scale [B, C], which only the M4 data sets carry")
        prediction, target = prediction / insample_scale[:, None], target / insample_scale[:, None]
    return LOSSES[kind](prediction, target, reduction="none").mean()
