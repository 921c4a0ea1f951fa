"""The choice of a linear start: its forms and baselines against least squares, and what series choose."""

import pytest
import torch
from tiny import tiny_model

from llata_fast.data import WindowDataset
from llata_fast.linear import LeastSquares
from llata_fast.linear_forms import BASELINES, OWN, OWN_RETURN, SEASON, SHARED_RETURN
from llata_fast.linear_mixture import mixture, relative_errors
from llata_fast.linear_start import choose_of, choose_start, measure_forms, start_linear_part

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


def test_the_baselines_are_the_least_squares_ones():
    train, validation = splits(torch.randn(ROWS, 2, dtype=torch.float64).cumsum(0))
    measured = measure_forms(train, validation, own=True)
    past, observed, _ = next(validation.batches(50))
    mean = past.mean(1, keepdim=True)
    inputs = torch.cat((past - mean, mean, torch.ones_like(mean)), 1)
    kinds = {"linear": {}, "linear_per_channel": {"per_channel": True}, "dlinear": {"centred": False}}
    assert list(kinds) == list(BASELINES.values()) == measured.names[:3]
    for form, options in zip(measured.forms, kinds.values(), strict=False):
        forecast = mean + torch.einsum("blc,clh->bhc", inputs, form.weight.expand(2, -1, -1))
        expected = LeastSquares(**options).fit(train)(past, observed)
        torch.testing.assert_close(forecast, expected, rtol=1e-3, atol=1e-3)


def test_the_mixture_is_nowhere_worse_than_the_baseline_that_validation_picks():
    generator = torch.Generator().manual_seed(2)
    for values in (torch.randn(ROWS, 2, generator=generator), torch.randn(ROWS, 2, generator=generator).cumsum(0)):
        measured = measure_forms(*splits(values.double()), own=True, seasonality=3)
        start = choose_of(measured)
        squared = {
            form: errors.square().mean() for form, errors in zip(measured.names, measured.scored[-1], strict=True)
        }
        assert start.yardstick == min(BASELINES.values(), key=squared.__getitem__)
        assert all(origin.error <= 1.005 for origin in start.origins)
        yardstick = measured.names.index(start.yardstick)
        for shares in torch.eye(len(measured.forms), dtype=torch.float64):
            worst = max(relative_errors(shares, errors, yardstick).max() for errors in measured.scored)
            assert max(origin.error for origin in start.origins) <= worst + 5e-3, "some form alone does better"


def test_series_choose_differently():
    noise = torch.randn(ROWS, 2, dtype=torch.float64)
    walk, back = (choose_start(*splits(values), seasonality=1) for values in (noise.cumsum(0), noise))
    returns = [start.mixture[SHARED_RETURN] + start.mixture["dlinear"] for start in (back, walk)]
    assert returns[0] > returns[1]
    # one map cannot fit both a wave and its mirrored double step, so each channel needs its own
    steps = torch.arange(ROWS, dtype=torch.float64)[:, None]
    waves = torch.sin(2 * torch.pi * steps / torch.tensor([[3.0, 7.0]])) + 0.3 * noise
    own = choose_start(*splits(waves), own=True)
    assert own.mixture[OWN] + own.mixture[OWN_RETURN] + own.mixture["linear_per_channel"] > 0.5
    errors, without = (errors_of(start, splits(waves)[1]) for start in (own, choose_start(*splits(waves))))
    assert errors[0] < without[0] < without[1]


def test_short_series_repeat_their_season():
    steps = torch.arange(ROWS) % 6
    season = torch.randn(6, dtype=torch.float64)[steps][:, None] + 0.01 * torch.randn(ROWS, 1, dtype=torch.float64)
    few = WindowDataset(season[:40], L, H), WindowDataset(season[40:400], L, H)
    start = choose_start(*few, seasonality=6)
    assert start.mixture[SEASON] > 0.5
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
        *("row 450", "row 495", "row 540", "row 585", "row 630", "row 675", "row 720", "row 765", "row 810", "row 854"),
        "validation",
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
    for (_, forms), (_, forms_of_other) in zip(first.before, second.before, strict=True):
        for form, of_other in zip(forms, forms_of_other, strict=True):
            torch.testing.assert_close(form.weight, of_other.weight)
    start = choose_of(first)
    shares = mixture(first.scored, first.yardstick)
    behind = start.behind_origins(windows[0][0])
    assert 2 * len(behind) == len(first.scored) - 1 == 10
    for part, *halves in zip(behind, first.scored[:-1:2], first.scored[1:-1:2], strict=True):
        scored = torch.cat(halves, 1)
        assert part.past.shape[1:] == (L, 2) and part.errors.shape[1:] == (H, 2) and part.steps.tolist() == [0, 1, 2, 3]
        # the same errors; the choice keeps only those whose truth is known
        expected = (shares @ scored).square().mean().sqrt()
        torch.testing.assert_close(part.errors.square().nanmean().sqrt(), expected, rtol=1e-4, atol=0)
