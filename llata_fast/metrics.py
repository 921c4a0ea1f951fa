"""Streaming forecast errors over observed values: no forecast is stored; batch size and ranks change nothing."""

from collections.abc import Sequence

import torch
from torch import Tensor


class ForecastMetrics:
    """Running MSE and MAE per channel; NaN in a target marks a missing value, which is left out.

    An instance also serves as the Trainer's `compute_metrics` under `batch_eval_metrics`: called with each batch
    gathered from all ranks, it returns the result and resets at the last one.
    """

    def __init__(self, columns: Sequence[str]):
        """`columns` names the channels; a single name covers any number of channels."""
        self.columns = list(columns)
        self.per_channel: dict[str, dict[str, float]] = {}
        self._reset()

    def _reset(self):
        # fp64 sums [3, C]: squared errors, absolute errors, count
        self._sums = torch.zeros(3, len(self.columns), dtype=torch.float64)

    def update(self, prediction: Tensor, target: Tensor):
        """Add a batch: prediction and target [B, H, C]."""
        observed = ~torch.isnan(target)
        error = torch.where(observed, prediction.double() - target.double(), 0.0)
        sums = torch.stack([term.sum((0, 1)) for term in (error.square(), error.abs(), observed.double())])
        if len(self.columns) == 1:
            sums = sums.sum(1, keepdim=True)
        self._sums = self._sums.to(sums.device) + sums

    def compute(self) -> dict[str, float]:
        """MSE and MAE over all observed values, and for each column in `per_channel`; then reset.

        NaN if nothing was observed.
        """
        sums = self._sums.cpu()
        self._reset()
        mse, mae = (sums[:2] / sums[2]).tolist()
        self.per_channel = {
            column: {"mse": mse[channel], "mae": mae[channel]} for channel, column in enumerate(self.columns)
        }
        total = sums.sum(1)
        mse, mae = (total[:2] / total[2]).tolist()
        return {"mse": mse, "mae": mae}

    def __call__(self, batch, compute_result: bool = True) -> dict[str, float]:
        self.update(batch.predictions, batch.label_ids)
        return self.compute() if compute_result else {}
