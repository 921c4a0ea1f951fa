"""The loss of one branch's forecast; training computes both branches' at once by `kernels.forecast_losses`."""

from torch import Tensor

from .errors import InputError
from .kernels.forecast_losses import KINDS as LOSSES
from .kernels.forecast_losses import mean_distance

__all__ = ["LOSSES", "check_loss", "forecast_loss"]


def forecast_loss(kind: str, prediction: Tensor, target: Tensor, insample_scale: Tensor | None = None) -> Tensor:
    """Loss `kind` of prediction against target, both [B, H, C] -> fp32 scalar.

    NaN in target marks a missing value, which adds nothing. The sum is divided by B * H * C, missing values included,
    so that the mean over micro-batches and ranks equals the loss of the global batch wherever values are missing.

    mase divides errors by `insample_scale` [B, C]: each series' mean absolute in-sample error of the seasonal-naive
    forecast. Raises InputError if it is None.
    """
    check_loss(kind, insample_scale)
    return mean_distance(kind, prediction, target, insample_scale, has_missing=True)


def check_loss(kind: str | None, insample_scale: Tensor | None):
    """Raise InputError if a loss lacks the scale that it divides by; None means no loss."""
    if kind == "mase" and insample_scale is None:
        raise InputError("the mase loss needs insample_scale [B, C], which only the M4 datasets provide")
