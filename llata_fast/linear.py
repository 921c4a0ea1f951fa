"""A linear forecast of the lookback: fitted in closed form, and added to what the language model forecasts."""

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import InputError
from .metrics import ForecastMetrics

RIDGES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
"""Penalties that validation chooses from."""

# share of a channel's squares that rounding may leave of its errors
_EXACT = 1e-9


class LeastSquares:
    """Ridge regression from L values to H: one map for all channels, or one for each.

    Solved in closed form in float64: the exact minimum, no seed, no schedule. Windows with a missing target are left
    out. Toner and Darlow (arXiv 2403.14587) show that the linear forecasters of the literature are all this model.

    A fitted one is a function of past values [B, L, C] and their observed mask -> forecast [B, H, C].
    """

    def __init__(
        self,
        per_channel: bool = False,
        *,
        balance: float = 0.0,
        ridge: float = 1.0,
        centred: bool = True,
        unit: Literal["deviation", "level"] | None = None,
    ):
        """How the maps are fitted.

        Args:
            per_channel: a map for each channel: the one for all plus what ridge regression finds beyond it in the
                channel's windows. A large ridge leaves the one for all.
            balance: p; the map for all channels weighs each by (error of a map of its own)**-p.
            ridge: the penalty, unless `fit` gets validation windows to choose it on.
            centred: the map sees a window minus its mean. Otherwise it sees the window and a constant: DLinear (arXiv
                2205.13504), whose two linear layers, on a moving average and on what it leaves, can be any one linear
                map and nothing else.
            unit: what a window is measured in, for series of different sizes: the standard deviation of its lookback
                or the size of its mean.
        """
        if unit == "deviation" and not centred:
            raise ValueError("unit 'deviation' is for centred windows: a constant has none")
        self.per_channel, self.balance, self.ridge = per_channel, balance, ridge
        self.centred, self.unit = centred, unit
        self.shared: Tensor | None = None
        self.weight: Tensor | None = None
        self.channel_weights: Tensor | None = None

    def fit(self, train: Any, validation: Any = None, batch_size: int = 1024) -> "LeastSquares":
        """Learn from every window of `train`; with `validation` the ridge is the best of `RIDGES` on its windows.

        Both are windows as `llata_fast.data` makes them. Sets `shared` [L, H] (L + 1 rows unless centred), `weight`
        [C, L, H] and `channel_weights` [C] of mean 1, float64.
        """
        gram: Any = 0.0
        moment: Any = 0.0
        power: Any = 0.0
        for past, observed, future in train.batches(batch_size):
            inputs, mean, unit = self._inputs(past, observed)
            target = ((future - mean) / unit).double()
            complete = ~target.isnan().any(1)  # [B, C]
            inputs = inputs * complete[:, None]
            target = target.nan_to_num() * complete[:, None]
            gram = gram + torch.einsum("blc,bmc->clm", inputs, inputs)
            moment = moment + torch.einsum("blc,bhc->clh", inputs, target)
            power = power + target.square().sum((0, 1))
        error = power - (self._solve(gram, moment) * moment).sum((1, 2))
        shares = _shares(error, power, self.balance)
        self.channel_weights = shares / shares.mean()
        pooled = [torch.einsum("c,cij->ij", self.channel_weights, sums)[None] for sums in (gram, moment)]
        self._settle(lambda: self._solve(*pooled).expand(len(shares), -1, -1), validation, batch_size)
        self.shared = self.weight[0]
        if self.per_channel:
            rest = moment - gram @ self.shared
            self._settle(lambda: self.shared + self._solve(gram, rest), validation, batch_size)
        return self

    def _settle(self, solve: Callable[[], Tensor], validation: Any, batch_size: int):
        """Keep the maps [C, L, H] of `solve`, with the ridge that is best in validation."""

        def error(ridge: float) -> float:
            self.ridge = ridge
            self.weight = solve()
            metrics = ForecastMetrics([str(channel) for channel in range(len(self.weight))])
            for past, observed, future in validation.batches(batch_size):
                metrics.update(self(past, observed), future)
            return metrics.compute()["mse"]

        if validation is not None:
            self.ridge = min(RIDGES, key=error)
        self.weight = solve()

    def _solve(self, gram: Tensor, moment: Tensor) -> Tensor:
        ridge = self.ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        # not linalg.solve: MKL's LU of several matrices fails in a process that DeepSpeed has started
        return torch.cholesky_solve(moment, torch.linalg.cholesky(gram + ridge))

    def __call__(self, past: Tensor, observed: Tensor) -> Tensor:
        inputs, mean, unit = self._inputs(past, observed)
        # a map for all channels is one for those of another series, too
        weight = self.weight if self.per_channel else self.weight[:1].expand(inputs.shape[2], -1, -1)
        return torch.einsum("blc,clh->bhc", inputs, weight).to(past.dtype) * unit + mean

    def _inputs(self, past: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the map reads [B, L, C] or [B, L + 1, C], float64, and the windows' level and unit [B, 1, C]."""
        filled = fill_with_mean(past, observed)
        mean = filled.mean(1, keepdim=True)
        unit = torch.ones_like(mean)
        if self.unit == "deviation":
            # the least that instance norm divides by
            unit = (filled.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        elif self.unit == "level":
            unit = torch.where(mean == 0, 1, mean.abs())
        if self.centred:
            return ((filled - mean) / unit).double(), mean, unit
        return (torch.cat((filled, torch.ones_like(mean)), 1) / unit).double(), torch.zeros_like(mean), unit


def _shares(error: Tensor, power: Tensor, balance: float) -> Tensor:
    """error [C] ** -balance; what is forecast exactly, as a constant is, would outweigh all else and gets the mean."""
    exact = error <= _EXACT * power
    shares = error.masked_fill(exact, 1.0) ** -balance
    return shares.masked_fill(exact, shares[~exact].mean()) if not exact.all() else shares


def fill_with_mean(past: Tensor, observed: Tensor) -> Tensor:
    """Lookbacks [B, L, C] whose missing values are the mean of the window's others; 0 where there are none."""
    mean = (past * observed).sum(1, keepdim=True) / observed.sum(1, keepdim=True).clamp(min=1)
    return torch.where(observed, past, mean)


class LinearSkip(nn.Module):
    """A linear forecast of the normalised lookback: past_values [B, L, C] -> [B, C, H], fp32.

    What the published method does not have: what is linear in a series (seasons, trends) is then not left to the
    language model, as in the residual connection of TiDE (arXiv 2304.08424). With `num_channels` each channel's map
    differs from the shared one by its own [H, L]; a series of another number of channels is forecast by the shared
    one. With `level` the lookback's mean, which the instance norm takes away, has a say: series return to their mean.
    Zero at first; `start_at_least_squares` moves it to the solution.
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

    def forward(
        self,
        past_values: Tensor,
        observed_mask: Tensor | None,
        loc: Tensor,
        scale: Tensor,
        series_loc: Tensor,
        series_scale: Tensor,
    ) -> Tensor:
        """loc and scale [B, C] are those of `past_values`; the level is read from those of the series."""
        normalised = (past_values.float() - loc[:, None]) / scale[:, None]
        if observed_mask is not None:
            normalised = normalised.masked_fill(~observed_mask, 0)
        with _without_autocast(past_values.device.type):
            normalised = normalised.transpose(1, 2).to(self.linear.weight.dtype)
            forecast = self._forecast(normalised)
            if self.level is not None:
                level = self.level(series_loc[..., None].to(forecast.dtype))
                # a constant window is forecast by its level alone
                forecast = forecast + level / torch.where(series_scale > 0, series_scale, torch.inf)[..., None]
            return forecast.float()

    def _forecast(self, normalised: Tensor) -> Tensor:
        """normalised [B, C, L] -> [B, C, H]"""
        forecast = self.linear(normalised)
        if self.own is not None and len(self.own) == normalised.shape[1]:
            forecast = forecast + torch.einsum("bcl,chl->bch", normalised, self.own)
        return forecast

    @torch.no_grad()
    def start_at(self, fitted: LeastSquares):
        """Forecast as `fitted`, which is centred, does; raises InputError where its channels are not the skip's."""
        self.linear.weight.copy_(fitted.shared.T)
        if self.own is not None:
            if len(self.own) != len(fitted.weight):
                raise InputError(f"the skip has {len(self.own)} channels of its own, the series {len(fitted.weight)}")
            self.own.copy_((fitted.weight - fitted.shared).transpose(1, 2))

    @torch.no_grad()
    def return_to_level(self, fitted: LeastSquares, share: float):
        """Make the forecast `share` that of `fitted`, which is not centred: of the lookback as it is and a constant."""
        weight, constant = fitted.shared[:-1].float(), fitted.shared[-1].float()
        self.linear.weight.lerp_(weight.T, share)
        if self.own is not None:
            self.own.mul_(1 - share)
        # of the lookback's mean: what the map makes of it, less the mean itself, which the instance norm adds
        self.level.weight.copy_(share * (weight.sum(0) - 1)[:, None])
        self.level.bias.copy_(share * constant)


def start_at_least_squares(
    model: nn.Module, train: Any, validation: Any = None, unit: Literal["deviation"] | None = None
):
    """What a forecaster takes from a linear forecast of its windows: the skip's start and the weights of the channels.

    With `validation` its windows choose the ridge penalties; `unit` as in `LeastSquares`. Raises InputError where the
    model has a skip for each of another number of channels.
    """
    config, skip = model.config, model.skip
    if skip is None and not config.channel_balance:
        return
    own = skip is not None and skip.own is not None
    linear = LeastSquares(own, balance=config.channel_balance, unit=unit).fit(train, validation)
    if skip is not None:
        skip.start_at(linear)
        if config.skip_level:
            skip.return_to_level(LeastSquares(centred=False).fit(train), config.skip_level)
    if config.channel_balance:
        model.channel_weights = linear.channel_weights.float()


def _without_autocast(device_type: str):
    """The level and a season's weights are what bf16 has too few digits for; what lies behind does not mend it."""
    # the meta device, for one, knows no autocast
    if not torch.amp.is_autocast_available(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)
