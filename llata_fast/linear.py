"""Linear forecasts of the lookback, fitted in closed form: a baseline, and a part added to the model's forecast."""

import contextlib
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from .mean_season import Around

if TYPE_CHECKING:
    from .linear_covariates import LinearCovariates


class LeastSquares:
    """Ridge regression from L values to H, with one map for all channels or one per channel.

    Solved in closed form in float64: the exact minimum, without seed or schedule. Windows with a missing target are
    left out. Toner and Darlow (arXiv 2403.14587) show that the published linear forecasters are all this model.

    Once fitted, an instance maps past values [B, L, C] and their observed mask to a forecast [B, H, C].
    """

    def __init__(
        self,
        per_channel: bool = False,
        *,
        ridge: float = 1.0,
        centred: bool = True,
        unit: Literal["deviation", "level"] | None = None,
    ):
        """Choose how the maps are fitted.

        Args:
            per_channel: fit one map per channel: the shared map plus a ridge regression on its residuals in that
                channel. A large ridge leaves the shared map alone.
            ridge: the penalty.
            centred: the map sees a window minus its mean. If False, it sees the window and a constant, as in DLinear
                (arXiv 2205.13504): its two linear layers, on a moving average and on the remainder, can represent any
                single linear map and nothing else.
            unit: scale of a window, for series of different sizes: the standard deviation of its lookback, or the
                absolute value of its mean.
        """
        if unit == "deviation" and not centred:
            raise ValueError("unit 'deviation' is for centred windows: a constant has none")
        self.per_channel, self.ridge = per_channel, ridge
        self.centred, self.unit = centred, unit
        # set by `fit`
        self.shared: Tensor
        self.weight: Tensor

    def fit(self, train: Any, batch_size: int = 1024) -> "LeastSquares":
        """Fit on every window of `train`, a dataset from `llata_fast.data`.

        Sets `shared` [L, H] (L + 1 rows unless centred) and `weight` [C, L, H], float64.
        """
        gram: Any = 0.0
        moment: Any = 0.0
        for past, observed, future in train.batches(batch_size):
            inputs, mean, unit = self._inputs(past, observed)
            target = ((future - mean) / unit).double()
            complete = ~target.isnan().any(1)  # [B, C]
            inputs = inputs * complete[:, None]
            target = target.nan_to_num() * complete[:, None]
            gram = gram + torch.einsum("blc,bmc->clm", inputs, inputs)
            moment = moment + torch.einsum("blc,bhc->clh", inputs, target)
        self.shared = self._solve(gram.sum(0, keepdim=True), moment.sum(0, keepdim=True))[0]
        self.weight = self.shared.expand(len(gram), -1, -1)
        if self.per_channel:
            self.weight = self.shared + self._solve(gram, moment - gram @ self.shared)
        return self

    def _solve(self, gram: Tensor, moment: Tensor) -> Tensor:
        return solve_ridge(gram, moment, self.ridge)

    def __call__(self, past: Tensor, observed: Tensor) -> Tensor:
        inputs, mean, unit = self._inputs(past, observed)
        # the shared map also serves a series with another number of channels
        weight = self.weight if self.per_channel else self.weight[:1].expand(inputs.shape[2], -1, -1)
        return torch.einsum("blc,clh->bhc", inputs, weight).to(past.dtype) * unit + mean

    def _inputs(self, past: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The map's inputs [B, L, C] or [B, L + 1, C], float64, and the windows' mean and unit [B, 1, C]."""
        filled = fill_with_mean(past, observed)
        mean = filled.mean(1, keepdim=True)
        unit = torch.ones_like(mean)
        if self.unit == "deviation":
            # the same lower bound as in the instance norm
            unit = (filled.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        elif self.unit == "level":
            unit = torch.where(mean == 0, 1, mean.abs())
        if self.centred:
            return ((filled - mean) / unit).double(), mean, unit
        return (torch.cat((filled, torch.ones_like(mean)), 1) / unit).double(), torch.zeros_like(mean), unit


def solve_ridge(gram: Tensor, moment: Tensor, penalty: float) -> Tensor:
    """Sums of squares [..., L, L] and cross products [..., L, H] -> maps [..., L, H]."""
    penalties = penalty * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    # not linalg.solve: MKL's batched LU fails in a process started by DeepSpeed
    return torch.cholesky_solve(moment, torch.linalg.cholesky(gram + penalties))


def fill_with_mean(past: Tensor, observed: Tensor) -> Tensor:
    """Lookbacks [B, L, C] with missing values replaced by the mean of the observed ones, or by 0 if there are none."""
    mean = (past * observed).sum(1, keepdim=True) / observed.sum(1, keepdim=True).clamp(min=1)
    return torch.where(observed, past, mean)


def level_inputs(past: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Lookbacks [B, L, C] -> [lookback - mean, mean, 1] as [B, L + 2, C], and the mean [B, 1, C]."""
    filled = fill_with_mean(past, observed)
    mean = filled.mean(1, keepdim=True)
    return torch.cat((filled - mean, mean, torch.ones_like(mean)), 1), mean


def deviation(past: Tensor, observed: Tensor) -> Tensor:
    """Standard deviation [B, 1, C] of the observed values of lookbacks [B, L, C]; 0 if there are none."""
    filled = fill_with_mean(past, observed)
    squares = (filled - filled.mean(1, keepdim=True)).square().sum(1, keepdim=True)
    return (squares / observed.sum(1, keepdim=True).clamp(min=1)).sqrt()


def _keep_share(skip: "LinearSkip", keys: Any):
    """Set `is_all` from a loaded share; a module-level function, so that the model can be pickled."""
    skip.keep(skip.learned_share.item())


class LinearSkip(nn.Module):
    """A linear forecast of the normalised lookback: past_values [B, L, C] -> [B, C, H], fp32.

    The published method has no such part. It relieves the language model of what is linear in a series (seasons,
    trends), like the residual connection of TiDE (arXiv 2304.08424). It reads the lookback plus the mean and deviation
    that the instance norm removes, so that a forecast can return to the series' level. With `num_channels`, each
    channel adds its own map to the shared one, and with `season_length` a mean season of that many steps; a series with
    another number of channels uses the shared map alone.
    Nothing here is trained: `linear_start` chooses the maps, which are zero until then.
    """

    OF_CHANNELS = ("own", "season", "season_effect")
    """Buffers that belong to a series' channels."""

    shared: Tensor
    own: Tensor | None
    season: Tensor | None
    season_effect: Tensor | None
    learned_share: Tensor

    def __init__(self, context_length: int, prediction_length: int, num_channels: int = 0, season_length: int = 0):
        super().__init__()
        sizes = (context_length + 2, prediction_length)
        self.register_buffer("shared", torch.zeros(*sizes))
        self.register_buffer("own", torch.zeros(num_channels, *sizes) if num_channels else None)
        season = torch.zeros(season_length, num_channels) if num_channels and season_length else None
        self.register_buffer("season", season)
        effect = None if season is None else torch.zeros(*season.shape, prediction_length)
        self.register_buffer("season_effect", effect)
        # share of the learned part in the forecast
        self.register_buffer("learned_share", torch.ones(()))
        self.is_all = False
        self.register_load_state_dict_post_hook(_keep_share)
        # the covariates' effect, in a model that has covariates
        self.covariates: LinearCovariates | None = None

    def take(self, shared: Tensor, own: Tensor | None, around: Around | None):
        """Use this linear forecast.

        Raises:
            ValueError: it goes around a mean season, which this skip has no place for.
        """
        self.shared.copy_(shared)
        if self.own is not None and own is not None:
            self.own.copy_(own)
        if around is None:
            return
        # the channels' maps are wrong without the season that they leave out
        if self.season is None or self.season_effect is None:
            raise ValueError("a start around a mean season needs a model with its season_length")
        self.season.copy_(around.season)
        self.season_effect.copy_(around.effect)

    def without_other_channels(self, state: dict[str, Tensor], prefix: str, *_: Any):
        """Drop from a state what belongs to the channels of a series unlike this one: a hook before it is loaded."""
        names = [f"{prefix}{name}" for name in self.OF_CHANNELS]
        shapes = [None if part is None else part.shape for part in (self.own, self.season, self.season_effect)]
        if [state[name].shape if name in state else None for name in names] != shapes:
            for name in names:
                state.pop(name, None)

    def keep(self, share: float):
        """Use this share of the learned part; with share 0 (`is_all`), the language model need not run."""
        self.learned_share.fill_(share)
        # reading the buffer in every batch would wait for the GPU
        self.is_all = share == 0

    def forward(
        self,
        past_values: Tensor,
        observed_mask: Tensor | None,
        loc: Tensor,
        scale: Tensor,
        series_loc: Tensor,
        series_scale: Tensor,
        *covariates: Tensor | None,
    ) -> Tensor:
        """loc and scale [B, C] are those of `past_values`; `series_loc` and `series_scale` are in the series' units.

        `covariates` are past and future ones, as for the model; without them their effect is left out.
        """
        normalised = (past_values.float() - loc[:, None]) / scale[:, None]
        if observed_mask is not None:
            normalised = normalised.masked_fill(~observed_mask, 0)
        # a constant window is forecast from its level alone
        unit = 1 / torch.where(series_scale > 0, series_scale, torch.inf)
        with _without_autocast(past_values.device.type):
            inputs = torch.cat((normalised, (series_loc * unit)[:, None], unit[:, None]), 1)
            forecast = self._forecast(inputs, observed_mask)
            return forecast + self.covariates(*covariates) if self.covariates is not None and covariates else forecast

    @property
    def reads_level(self) -> bool:
        """Whether any map has weights on the level, or a mean season is added."""
        maps = (part[..., -2:, :] for part in (self.shared, self.own) if part is not None)
        return any(part.any().item() for part in (*maps, self.season_effect) if part is not None)

    def alone(self, past: Tensor, observed: Tensor, *covariates: Tensor | None) -> Tensor:
        """The forecast [B, H, C] of standardised lookbacks [B, L, C] without the learned part."""
        inputs, mean = level_inputs(past, observed)
        forecast = mean + self._forecast(inputs.float(), observed).transpose(1, 2)
        if self.covariates is None:
            return forecast
        return forecast + deviation(past, observed) * self.covariates(*covariates).transpose(1, 2)

    def _forecast(self, inputs: Tensor, observed: Tensor | None) -> Tensor:
        """inputs [B, L + 2, C], the last of them 1 in units of the other ones -> [B, C, H], fp32."""
        by_channel = inputs.transpose(1, 2).to(self.shared.dtype)
        forecast = by_channel @ self.shared
        if self.own is None or len(self.own) != by_channel.shape[1]:
            return forecast.float()
        forecast = forecast + torch.einsum("bcl,clh->bch", by_channel, self.own)
        if self.season is None or self.season_effect is None:
            return forecast.float()
        one = inputs[:, -1:]
        moves = inputs[:, :-2] / torch.where(one > 0, one, torch.inf)
        effect = Around(self.season.float(), self.season_effect.float())(moves, observed)
        return forecast.float() + effect * one.transpose(1, 2)


def _without_autocast(device_type: str):
    """Disable autocast: bf16 has too few digits for the level and a season's weights."""
    # some devices, such as meta, do not support autocast
    if not torch.amp.is_autocast_available(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)
