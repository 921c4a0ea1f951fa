"""What a forecaster must beat: scored on the same windows, in the same units."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..data import WindowDataset
from ..metrics import ForecastMetrics

Forecast = Callable[[Tensor, Tensor], Tensor]
"""past values [B, L, C] and their observed mask -> forecast [B, H, C]"""


def seasonal_naive(seasonality: int, prediction_length: int) -> Forecast:
    """Repeat the last `seasonality` steps; a missing one is replaced by the window's mean."""

    def forecast(past: Tensor, observed: Tensor) -> Tensor:
        period = min(seasonality, past.shape[1])
        filled = _fill(past, observed)
        steps = torch.arange(prediction_length, device=past.device) % period
        return filled[:, past.shape[1] - period + steps]

    return forecast


_EXACT = 1e-9
"""Share of a channel's squares that rounding may leave of its errors."""

RIDGES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)


class LinearBaseline:
    """Ridge regression from L values to H on windows minus their mean: one map for all channels, or one for each.

    Solved in closed form in float64: the exact minimum, no seed, no schedule. Windows with a missing target are left
    out. Toner and Darlow (arXiv 2403.14587) show that the linear forecasters of the literature are all this model.
    """

    def __init__(
        self,
        per_channel: bool = False,
        balance: float = 0.0,
        ridge: float = 1.0,
        centred: bool = True,
        scaled: bool = False,
    ):
        """`balance` p: a map for all channels weighs each by (error of a map of its own)**-p.

        A map for each channel is the one for all plus what ridge regression finds beyond it in the channel's windows: a
        large ridge leaves the one for all. Without `centred` windows keep their mean and the map has a constant:
        DLinear (arXiv 2205.13504), whose two linear layers, on a moving average and on what it leaves, can be any one
        linear map and nothing else. `scaled` measures a window's errors in standard deviations of its lookback, for
        series of different sizes.
        """
        self.per_channel, self.balance, self.ridge = per_channel, balance, ridge
        self.centred, self.scaled = centred, scaled
        self.shared: Tensor | None = None
        self.weight: Tensor | None = None
        self.channel_weights: Tensor | None = None

    def fit(
        self, train: WindowDataset, batch_size: int = 1024, validation: WindowDataset | None = None
    ) -> "LinearBaseline":
        """Learn from every training window; with `validation` the ridge is the best of `RIDGES` on its windows."""
        gram = moment = power = 0.0
        for past, observed, future in batches(train, batch_size):
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
        self.channel_weights = shares / shares.mean()  # [C], mean 1
        pooled = [torch.einsum("c,cij->ij", self.channel_weights, sums)[None] for sums in (gram, moment)]
        self._settle(lambda: self._solve(*pooled).expand(len(shares), -1, -1), validation)
        self.shared = self.weight[0]  # [L, H]
        if self.per_channel:
            rest = moment - gram @ self.shared
            self._settle(lambda: self.shared + self._solve(gram, rest), validation)
        return self

    def _settle(self, solve: Callable[[], Tensor], validation: WindowDataset | None):
        """Keep the maps [C, L, H] of `solve`, with the ridge that is best in validation."""

        def error(ridge: float) -> float:
            self.ridge = ridge
            self.weight = solve()
            return score(self, validation, [str(channel) for channel in range(len(self.weight))])["mse"]

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
        filled = _fill(past, observed)
        unit = torch.ones_like(filled[:, :1])
        if not self.centred:
            return torch.cat((filled, unit), 1).double(), torch.zeros_like(unit), unit
        mean = filled.mean(1, keepdim=True)
        if self.scaled:
            # the least that instance norm divides by
            unit = (filled.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        return ((filled - mean) / unit).double(), mean, unit


def _shares(error: Tensor, power: Tensor, balance: float) -> Tensor:
    """error [C] ** -balance; what is forecast exactly, as a constant is, would outweigh all else and gets the mean."""
    exact = error <= _EXACT * power
    shares = error.masked_fill(exact, 1.0) ** -balance
    return shares.masked_fill(exact, shares[~exact].mean()) if not exact.all() else shares


def _fill(past: Tensor, observed: Tensor) -> Tensor:
    """Missing values replaced by the window's mean per channel."""
    mean = (past * observed).sum(1, keepdim=True) / observed.sum(1, keepdim=True).clamp(min=1)
    return torch.where(observed, past, mean)


def batches(windows: WindowDataset, batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(past, observed mask, future) for every window from `first` on, in order."""
    for start in range(first, len(windows), batch_size):
        batch = windows.__getitems__(range(start, min(start + batch_size, len(windows))))
        past = batch["past_values"]
        observed = batch.get("past_observed_mask")
        yield past, torch.ones_like(past, dtype=torch.bool) if observed is None else observed, batch["future_values"]


@torch.no_grad()
def score(
    forecast: Forecast, windows: WindowDataset, columns: list[str], batch_size: int = 1024, drop_last: bool = False
) -> dict:
    """{"mse", "mae", "per_channel"} of a forecast over every window; `drop_last` leaves out a last smaller batch."""
    metrics = ForecastMetrics(columns)
    for past, observed, future in batches(windows, batch_size):
        if drop_last and len(past) < batch_size:
            break
        metrics.update(forecast(past, observed), future)
    return {**metrics.compute(), "per_channel": metrics.per_channel}
