"""The mean season: where lookbacks begin in it, and what it adds to a linear forecast."""

import pytest
import torch
from tiny import tiny_model

from llata_fast.data import WindowDataset
from llata_fast.linear_forms import AROUND
from llata_fast.linear_start import choose_start, start_linear_part
from llata_fast.mean_season import Around, mean_season, place_in_season, season_from

P, L, H, C, ROWS = 6, 15, 4, 2, 1200


def seasonal(noise=1.0, seed=0):
    """Rows [ROWS, C] of a season of P steps with a mean of 0, in noise; and the season [P, C]."""
    generator = torch.Generator().manual_seed(seed)
    season = torch.randn(P, C, generator=generator, dtype=torch.float64)
    season -= season.mean(0)
    rows = season.repeat(ROWS // P, 1)
    return rows + noise * torch.randn(rows.shape, generator=generator, dtype=torch.float64), season


@pytest.mark.parametrize("rows", [ROWS, ROWS - 4], ids=["whole seasons", "a part of one"])
def test_the_mean_of_every_step_is_found_in_spite_of_gaps(rows):
    values, season = seasonal(noise=0.0)
    values = values[:rows] + 7
    values[3::5, 0] = torch.nan
    torch.testing.assert_close(mean_season(values, P), season)
    values[2::P, 1] = torch.nan
    found = mean_season(values, P)
    assert found[2, 1] == 0 and found.isfinite().all(), "a step that was never observed"


@pytest.mark.parametrize("length", [2 * P, L], ids=["whole seasons", "a part of one"])
@pytest.mark.parametrize("gaps", [False, True])
def test_a_lookback_begins_where_the_season_fits_best(length, gaps):
    values, season = seasonal(noise=0.3)
    past = values.unfold(0, length, 1).transpose(1, 2)
    observed = None
    if gaps:
        observed = torch.rand(past.shape, generator=torch.Generator().manual_seed(1)) > 0.2
        past = past.where(observed, 0)
    places = place_in_season(past, observed, season)
    assert (places == torch.arange(len(past)) % P).float().mean() > 0.99
    # by its definition
    known = torch.ones_like(past) if observed is None else observed
    distances = [
        ((past - season_from(season, torch.tensor([place]), torch.arange(length))) * known).square().sum((1, 2))
        for place in range(P)
    ]
    assert torch.equal(places, torch.stack(distances, 1).argmin(1))


def test_a_map_around_a_season_forecasts_what_the_season_leaves():
    values, season = seasonal()
    past = values.unfold(0, L, 1).transpose(1, 2) + 3
    weight, steps = torch.randn(C, L + 2, 3, dtype=torch.float64), torch.tensor([0, 2, 7])

    def mapped(lookbacks, constant):
        mean = lookbacks.mean(1, keepdim=True)
        inputs = torch.cat((lookbacks - mean, mean, torch.full_like(mean, constant)), 1)
        return mean + torch.einsum("blc,cls->bsc", inputs, weight)

    moves = past - past.mean(1, keepdim=True)
    first = place_in_season(moves, None, season)
    expected = mapped(past - season_from(season, first, torch.arange(L)), 1) + season_from(season, first, L + steps)
    added = Around.of(season, weight, steps, L)(moves, None)
    torch.testing.assert_close(mapped(past, 1) + added.transpose(1, 2), expected)


def test_a_noisy_season_is_forecast_by_its_mean():
    """A map of the lookback adds up the noise of as many seasons as it sees."""
    values, _ = seasonal()
    windows = WindowDataset(values[:800], L, H), WindowDataset(values[800:], L, H)
    start = choose_start(*windows, own=True, seasonality=P)
    around = sum(share for form, share in start.mixture.items() if form.endswith(AROUND))
    assert around > 0.5 and start.around is not None
    past, observed, future = next(windows[1].batches(400))
    without = choose_start(*windows, own=True, seasonality=1)
    error, other = ((begun(past, observed) - future).square().mean() for begun in (start, without))
    assert error < 1.15 < 1.2 < other


def test_a_model_starts_around_the_season(backbone):
    values, _ = seasonal()
    values = values + 5
    windows = WindowDataset(values[:800], 12, 5), WindowDataset(values[800:], 12, 5)
    sizes = {"num_channels": C, "season_length": P}
    with pytest.raises(ValueError, match="season_length"):
        start_linear_part(tiny_model(backbone, linear_skip=True, num_channels=C), *windows, seasonality=P)
    model = tiny_model(backbone, linear_skip=True, **sizes).eval()
    start = start_linear_part(model, *windows, seasonality=P)
    assert model.skip.season_effect.any() and model.reads_level
    past, observed, _ = next(windows[0].batches(50))
    observed[1:20, 3, 0] = False
    past[1:20, 3, 0] = 0
    expected = start(past, observed).float()
    forecast = model(past.float(), past_observed_mask=observed).prediction_outputs
    torch.testing.assert_close(forecast, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.skip.alone(past, observed).float(), expected, rtol=1e-3, atol=1e-3)
    # a series with other channels has another season
    plain = choose_start(*windows, own=True, seasonality=P).shared
    torch.testing.assert_close(model.skip.shared, plain)
    one = past[20:, :, :1]
    inputs = torch.cat((one - one.mean(1, keepdim=True), one.mean(1, keepdim=True), torch.ones(len(one), 1, 1)), 1)
    alone = one.mean(1, keepdim=True) + torch.einsum("blc,lh->bhc", inputs.float(), plain)
    torch.testing.assert_close(model(one.float()).prediction_outputs, alone.float(), rtol=1e-3, atol=1e-3)


def test_a_season_longer_than_the_lookback_has_no_place(backbone):
    sizes = [tiny_model(backbone, linear_skip=True, num_channels=1, season_length=n).skip.season for n in (1, 12, 13)]
    assert sizes[0] is None and sizes[1].shape == (12, 1) and sizes[2] is None
