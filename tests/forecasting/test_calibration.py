"""Calibration on validation and other origins: the unit of a window's errors, whose errors count, what is saved."""

import numpy as np
import pytest
import torch

from llata_fast.data.units import WindowUnits
from llata_fast.forecasting.calibration import CALIBRATED_LEVELS, Calibration, calibrated_quantiles, season_ratio
from llata_fast.linear_start import Behind

SEASON, L, H, C = 4, 24, 3, 2


class Lookbacks:
    """Validation windows with lookbacks [N, L, C], and the errors when their mean is the forecast."""

    def __init__(self, past, errors):
        self.past, self.errors = past, errors

    def __len__(self):
        return len(self.past)

    def stretches(self, indices):
        past = self.past[indices]
        return past, past.mean(1, keepdim=True) + self.errors[indices]

    def covariates(self, indices):
        return {}


def by_the_mean(inputs):
    return (torch.zeros(len(inputs["past_values"]), H, C),)


def lookbacks(generator, number):
    """Lookbacks that vary in how seasonal they are."""
    noise = torch.randn(number, L, C, generator=generator).double()
    season = torch.randn(number, SEASON, C, generator=generator).double().repeat(1, L // SEASON, 1)
    share = torch.rand(number, 1, C, generator=generator).double()
    return 3 + share * noise + (1 - share) * season


def calibrated(errors_of, groups=4, number=600):
    """Calibrate on validation and `groups` - 1 origins; errors are `errors_of(past)` times normal noise."""
    generator = torch.Generator().manual_seed(5)
    parts = []
    for _ in range(groups):
        past = lookbacks(generator, number)
        parts.append((past, errors_of(past) * torch.randn(number, H, C, generator=generator).double()))
    behind = [Behind(past, errors, torch.arange(H)) for past, errors in parts[1:]]
    return Calibration.of(by_the_mean, Lookbacks(*parts[0]), None, behind=behind, season=SEASON)


def deviation(past):
    return past.std(1, correction=0, keepdim=True)


def move(past):
    return (past[:, SEASON:] - past[:, :-SEASON]).square().mean(1, keepdim=True).sqrt()


def test_seasonal_moves_are_measured_in_deviations():
    past = lookbacks(torch.Generator().manual_seed(0), 50)
    everything = torch.ones_like(past, dtype=torch.bool)
    ratio = season_ratio(past, everything, SEASON)
    torch.testing.assert_close(ratio, (move(past) / deviation(past)).clamp(min=0.05))
    torch.testing.assert_close(season_ratio(1e6 * past - 5, everything, SEASON), ratio)
    repeated = torch.arange(SEASON).repeat(L // SEASON).double()[None, :, None]
    assert season_ratio(repeated, repeated > -1, SEASON).item() == pytest.approx(0.05)
    # pairs with a gap are left out; with no pair at all, or in a constant window, the ratio is unknown
    gaps = everything.clone()
    gaps[:, 5:9] = False
    assert season_ratio(past.masked_fill(~gaps, torch.nan), gaps, SEASON).isfinite().all()
    alone = torch.arange(L)[None, :, None] < SEASON
    assert season_ratio(repeated, alone, SEASON).item() == season_ratio(0 * repeated, repeated > -1, SEASON).item() == 1


@pytest.mark.parametrize("unit, power", [(deviation, 0.0), (move, 1.0)])
def test_the_unit_is_the_one_that_errors_scale_with(unit, power):
    # if all groups had the same mix, no unit would have better coverage than another
    generator = torch.Generator().manual_seed(1)
    parts = []
    for place in range(4):
        past = lookbacks(generator, 600)
        season = past[:, :SEASON].repeat(1, L // SEASON, 1)
        past = past.lerp(season, 0.9) if place % 2 else past
        parts.append((past, unit(past) * torch.randn(600, H, C, generator=generator).double()))
    behind = [Behind(past, errors, torch.arange(H)) for past, errors in parts[1:]]
    calibration = Calibration.of(by_the_mean, Lookbacks(*parts[0]), None, behind=behind, season=SEASON)
    assert calibration.power == power
    # intervals for new windows have the same coverage for any mix
    for past, errors in parts:
        units = WindowUnits.of(past)
        quantiles = calibrated_quantiles(units, past, by_the_mean({"past_values": past}), None, calibration, [0.1, 0.9])
        truth = units.level + errors
        covered = (truth > quantiles[..., 0]) & (truth < quantiles[..., 1])
        assert covered.double().mean().item() == pytest.approx(0.8, abs=0.03)


def test_origins_count_as_much_as_validation():
    """Validation errors are four times those at the origins; the interval reflects both together."""
    generator = torch.Generator().manual_seed(2)
    past = [lookbacks(generator, 400) for _ in range(3)]
    errors = [
        size * deviation(part) * torch.rand(400, H, C, generator=generator).double()
        for part, size in zip(past, (4.0, 1.0, 1.0), strict=True)
    ]
    behind = [Behind(part, error, torch.arange(H)) for part, error in zip(past[1:], errors[1:], strict=True)]
    calibration = Calibration.of(by_the_mean, Lookbacks(past[0], errors[0]), None, behind=behind)
    assert calibration.num_windows == 1200 and calibration.power == 0
    pooled = np.sort(torch.cat([error / deviation(part) for part, error in zip(past, errors, strict=True)])[:, 0, 0])
    offset = calibration.offsets[0, 0, CALIBRATED_LEVELS.index(0.9)].item()
    assert offset == pytest.approx(pooled[int(np.ceil(1201 * 0.9)) - 1], rel=1e-4)
    alone = Calibration.of(by_the_mean, Lookbacks(past[0], errors[0]), None)
    assert alone.offsets[0, 0, CALIBRATED_LEVELS.index(0.9)] > offset + 0.2


def test_validation_uses_no_more_windows_than_the_origins():
    generator = torch.Generator().manual_seed(3)
    past, few = lookbacks(generator, 300), lookbacks(generator, 100)
    behind = [Behind(few, torch.zeros(100, H, C).double(), torch.arange(H))]
    windows = Lookbacks(past, torch.zeros(300, H, C).double())
    assert Calibration.of(by_the_mean, windows, None, behind=behind, season=SEASON).num_windows == 200


def test_the_unit_is_saved(tmp_path):
    calibration = calibrated(move)
    calibration.power = 0.5
    calibration.save(tmp_path / "calibration.npz")
    restored = Calibration.load(tmp_path / "calibration.npz")
    assert (restored.season, restored.power, restored.num_windows) == (SEASON, 0.5, 2400)
    torch.testing.assert_close(restored.offsets, calibration.offsets)
