"""The mean season of a series, as something that a linear forecast subtracts before it and adds again after it.

A lookback does not say where in the season it begins, and needs no calendar to find out: it begins where the mean
season fits it best. Idea: CycleNet (arXiv 2409.18479), which learns the season and reads the place from the index.

Letters: B windows, L lookback, S forecast steps, C channels, P steps of a season.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def mean_season(values: Tensor, length: int) -> Tensor:
    """Mean of each step of a season over rows [T, C], the first row's step first, minus the mean of all: [P, C].

    NaN is a missing value; a step that was never observed is 0.
    """
    seasons = torch.nn.functional.pad(values, (0, 0, 0, -len(values) % length), value=torch.nan)
    means = seasons.unflatten(0, (-1, length)).nanmean(0)
    return (means - means.nanmean(0)).nan_to_num(nan=0.0)


def place_in_season(moves: Tensor, observed: Tensor | None, season: Tensor) -> Tensor:
    """The step of the season [P, C] at which lookbacks begin: [B], the one with the least squared distance.

    `moves` [B, L, C] are the lookbacks minus their means, 0 where `observed` (bool) is False.
    """
    P = len(season)
    steps = torch.arange(P, device=season.device)
    shifted = season[(steps[:, None] + steps) % P].flatten(1)  # [P, P * C]
    score = _by_step(moves.to(season.dtype), P) @ shifted.T
    if observed is not None:
        score = score - _by_step(observed.to(season.dtype), P) @ shifted.square().T / 2
    # all that is observed fits equally often at every step if whole seasons are; otherwise the distance counts
    elif moves.shape[1] % P:
        score = score - _by_step(torch.ones_like(moves[:1], dtype=season.dtype), P) @ shifted.square().T / 2
    return score.argmax(1)


def season_from(season: Tensor, first: Tensor, steps: Tensor) -> Tensor:
    """The season [P, C] at `steps` [S] after the steps `first` [B]: [B, S, C]."""
    return season[(first[:, None] + steps) % len(season)]


class Around(NamedTuple):
    """What a mean season adds to a linear forecast of the lookback as it is."""

    season: Tensor
    """[P, C]"""
    effect: Tensor
    """[P, C, S], by the step at which the lookback begins."""

    @classmethod
    def of(cls, season: Tensor, weight: Tensor, steps: Tensor, length: int) -> "Around":
        """Of a map [C or 1, L + 2, S] that forecasts `steps` [S] of lookbacks of `length` minus their season."""
        first = torch.arange(len(season), device=season.device)
        before = season_from(season, first, torch.arange(length, device=season.device))
        mean = before.mean(1, keepdim=True)
        inputs = torch.cat((before - mean, mean, torch.zeros_like(mean)), 1)
        forecast = torch.matmul(inputs.permute(2, 0, 1), weight).permute(1, 0, 2)  # [P, C, S]
        after = season_from(season, first, length + steps) - mean
        return cls(season, after.transpose(1, 2) - forecast)

    def __call__(self, moves: Tensor, observed: Tensor | None) -> Tensor:
        """The effect [B, C, S] for lookbacks as in `place_in_season`."""
        return self.effect[place_in_season(moves, observed, self.season)]


def _by_step(values: Tensor, length: int) -> Tensor:
    """Sums of values [B, L, C] over the rows of each step of a season, the first row's step first: [B, P * C]."""
    padded = torch.nn.functional.pad(values, (0, 0, 0, -values.shape[1] % length))
    return padded.unflatten(1, (-1, length)).sum(1).flatten(1)
