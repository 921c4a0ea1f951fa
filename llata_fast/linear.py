"""What the published method does not have: a linear forecast that the language model only adds to."""

import contextlib

import torch
from torch import Tensor, nn


class LinearSkip(nn.Module):
    """A linear forecast of the normalised lookback: past_values [B, L, C] -> [B, C, H], fp32.

    What is linear in a series (seasons, trends) is then not left to the language model, as in the residual connection
    of TiDE (arXiv 2304.08424). With `num_channels` each channel's map differs from the shared one by its own [H, L]; a
    series of another number of channels is forecast by the shared one. With `level` the lookback's mean, which the
    instance norm takes away, has a say: series return to their mean. Zero at first; training starts it at the
    least-squares solution.
    """

    def __init__(self, context_length: int, prediction_length: int, num_channels: int = 0, level: bool = False):
        super().__init__()
        self.linear = nn.Linear(context_length, prediction_length, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.own = nn.Parameter(torch.zeros(num_channels, prediction_length, context_length)) if num_channels else None
        self.level = nn.Linear(1, prediction_length) if level else None
        if level:
            nn.init.zeros_(self.level.weight)
            nn.init.zeros_(self.level.bias)

    def forward(self, past_values: Tensor, observed_mask: Tensor | None, loc: Tensor, scale: Tensor) -> Tensor:
        normalised = (past_values.float() - loc[:, None]) / scale[:, None]
        if observed_mask is not None:
            normalised = normalised.masked_fill(~observed_mask, 0)
        with _without_autocast(past_values.device.type):
            return self._forecast(normalised.transpose(1, 2).to(self.linear.weight.dtype), loc, scale).float()

    def _forecast(self, normalised: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """normalised [B, C, L] -> [B, C, H]"""
        forecast = self.linear(normalised)
        if self.own is not None and len(self.own) == normalised.shape[1]:
            forecast = forecast + torch.einsum("bcl,chl->bch", normalised, self.own)
        if self.level is not None:
            forecast = forecast + self.level(loc[..., None].to(forecast.dtype)) / scale[..., None]
        return forecast


def _without_autocast(device_type: str):
    """The level and a season's weights are what bf16 has too few digits for; what lies behind does not mend it."""
    # the meta device, for one, knows no autocast
    if not torch.amp.is_autocast_available(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)
