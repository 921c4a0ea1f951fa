"""The choice of a linear start: its forms against least squares, the mixture against scipy, and what series choose."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from tiny import tiny_model

from llata_fast import linear_start
from llata_fast.data import WindowDataset
from llata_fast.linear_start import (
    OWN,
    OWN_RETURN,
    SEASON,
    SHARED_RETURN,
    best_in_validation,
    choose_of,
    choose_start,
    measure_forms,
    mixture,
    start_linear_part,
)

pytestmark = pytest.mark.usefixtures("plain_ops")

L, H, ROWS = 12, 4, 1200


def splits(values):
    """Training and validation windows of values [rows, C], standardised with the training rows."""
    border = int(len(values) * 0.8)
    values = (values - values[:border].mean(0)) / values[:border].std(0, correction=0).clamp(min=1e-9)
    return WindowDataset(values[:border], L, H), WindowDataset(values[border - L :], L, H)


def errors_of(start, windows):
    """Mean squared errors of a start and of the lookback's mean as a forecast."""
    past, observed, future = next(windows.batches(len(windows)))
    mean = past.mean(1, keepdim=True)
    return [(what - future).square().mean().item() for what in (start(past, observed), mean)]


def test_the_mixture_is_optimal():
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(3, 400, generator=generator).double()
    scored = [torch.stack([truth[0], 0.8 * truth[1] + 0.2 * k, 0.9 * truth[2]]) for k in range(4)]

    def objective(shares):
        worst = torch.stack([linear_start.relative_error(torch.as_tensor(shares), errors) for errors in scored])
        return (linear_start._SOFTNESS * (worst / linear_start._SOFTNESS).logsumexp(0)).item()

    found = mixture(scored)
    assert found.sum().item() == pytest.approx(1) and (found >= 0).all()
    inside = {"type": "eq", "fun": lambda shares: shares.sum() - 1}
    best = minimize(objective, np.full(3, 1 / 3), bounds=[(0, 1)] * 3, constraints=[inside], method="SLSQP")
    assert objective(found) == pytest.approx(best.fun, abs=2e-3)


def test_a_form_that_fails_at_one_origin_gets_little_weight():
    good, wild = torch.randn(1, 500).double(), torch.randn(1, 500).double()
    scored = [torch.cat((good, 0.9 * wild)) for _ in range(5)]
    assert mixture(scored)[1] > 0.4
    scored[2] = torch.cat((good, 5 * wild))
    assert mixture(scored)[1] < 0.15


def test_series_choose_differently():
    noise = torch.randn(ROWS, 2, dtype=torch.float64)
    walk, back = (choose_start(*splits(values), seasonality=1) for values in (noise.cumsum(0), noise))
    assert back.mixture[SHARED_RETURN] > walk.mixture[SHARED_RETURN]
    # one map cannot fit both a wave and its mirrored double step, so each channel needs its own
    steps = torch.arange(ROWS, dtype=torch.float64)[:, None]
    waves = torch.sin(2 * torch.pi * steps / torch.tensor([[3.0, 7.0]])) + 0.3 * noise
    own = choose_start(*splits(waves), own=True)
    assert own.mixture[OWN] + own.mixture[OWN_RETURN] > 0.5
    errors, without = (errors_of(start, splits(waves)[1]) for start in (own, choose_start(*splits(waves))))
    assert errors[0] < without[0] < without[1]


def test_short_series_repeat_their_season():
    steps = torch.arange(ROWS) % 6
    season = torch.randn(6, dtype=torch.float64)[steps][:, None] + 0.01 * torch.randn(ROWS, 1, dtype=torch.float64)
    few = WindowDataset(season[:40], L, H), WindowDataset(season[40:400], L, H)
    start = choose_start(*few, seasonality=6)
    assert start.mixture[SEASON] > 0.8
    assert SEASON not in choose_start(*few, seasonality=L + 1).mixture, "longer than the lookback"
    assert [origin.name for origin in start.origins] == ["validation"], "too few rows for others"


def test_gaps_and_constants_give_finite_forecasts():
    values = torch.randn(ROWS, 3, dtype=torch.float64).cumsum(0)
    values[100:160, 0] = torch.nan
    values[:, 1] = 0
    train, validation = WindowDataset(values[:900], L, H), WindowDataset(values[900:], L, H)
    start = choose_start(train, validation, own=True)
    assert start.shared.isfinite().all() and start.own.isfinite().all()
    assert [origin.name for origin in start.origins] == [
        *("row 450", "row 540", "row 630", "row 720", "row 810"), "validation"
    ]  # fmt: skip


def test_size_and_level_do_not_matter_in_units_of_the_deviation():
    values = torch.randn(ROWS, 1, dtype=torch.float64).cumsum(0)
    starts = []
    for moved in (values, 1000 * values + 7):
        windows = WindowDataset(moved[:900], L, H), WindowDataset(moved[900:], L, H)
        starts.append(choose_start(*windows, unit="deviation"))
    torch.testing.assert_close(starts[0].shared, starts[1].shared, rtol=1e-2, atol=1e-4)
    assert SHARED_RETURN not in starts[0].mixture
    assert (starts[0].shared[L:] == 0).all()


def test_a_model_starts_as_the_chosen_mixture(backbone):
    values = torch.randn(400, 3, dtype=torch.float64).cumsum(0) / 10
    train, validation = (WindowDataset(part, 12, 5) for part in values.split((300, 100)))
    model = tiny_model(backbone, linear_skip=True, num_channels=3).eval()
    start = start_linear_part(model, train, validation)
    past, _, _ = next(train.batches(20))
    mean = past.mean(1, keepdim=True)
    inputs = torch.cat((past - mean, mean, torch.ones_like(mean)), 1).float()
    expected = mean.float() + torch.einsum("blc,clh->bhc", inputs, start.shared + start.own)
    torch.testing.assert_close(model(past.float()).prediction_outputs, expected, rtol=1e-3, atol=1e-3)
    assert "validation" in start.lines()[1] and sum(start.mixture.values()) == pytest.approx(1)
    assert start_linear_part(tiny_model(backbone), train, validation) is None


def test_errors_at_an_origin_are_of_maps_fitted_before_it():
    values = torch.randn(ROWS, 2, dtype=torch.float64).cumsum(0)
    values[300, 1] = torch.nan
    other = values.clone()
    other[810:] += 40
    windows = [(WindowDataset(series[:900], L, H), WindowDataset(series[900:], L, H)) for series in (values, other)]
    first, second = (measure_forms(*pair, own=True) for pair in windows)
    for (_, maps), (_, maps_of_other) in zip(first.before, second.before, strict=True):
        for weight, of_other in zip(maps, maps_of_other, strict=True):
            torch.testing.assert_close(weight, of_other)
    start = choose_of(first)
    shares = mixture(first.scored, best_in_validation(first.scored))
    behind = start.behind_origins(windows[0][0])
    assert len(behind) == len(first.scored) - 1 == 5
    for part, scored in zip(behind, first.scored, strict=False):
        assert part.past.shape[1:] == (L, 2) and part.errors.shape[1:] == (H, 2) and part.steps.tolist() == [0, 1, 2, 3]
        # the same errors; the choice keeps only those whose truth is known
        expected = (shares @ scored).square().mean().sqrt()
        torch.testing.assert_close(part.errors.square().nanmean().sqrt(), expected, rtol=1e-4, atol=0)
