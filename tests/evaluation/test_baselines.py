"""Baselines against numpy and scikit-learn: they must not be weaker than they claim to be."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from llata_fast.data import WindowDataset
from llata_fast.evaluation.baselines import RIDGES, LinearBaseline, batches, score, seasonal_naive

L, H, C = 8, 3, 2


def make_windows(rows=60, gaps=()):
    hours = torch.arange(rows)[:, None]
    values = torch.sin(2 * torch.pi * hours / torch.tensor([4, 6])) + 0.3 * torch.randn(rows, C) + 5
    for row, channel in gaps:
        values[row, channel] = torch.nan
    return WindowDataset(values, L, H)


def all_windows(windows):
    ((past, observed, future),) = batches(windows, len(windows))
    return past, observed, future


@given(seasonality=st.integers(1, 12), horizon=st.integers(1, 30))
def test_seasonal_naive_repeats_the_last_period(seasonality, horizon):
    past = torch.arange(2.0 * L * C).reshape(2, L, C)
    forecast = seasonal_naive(seasonality, horizon)(past, torch.ones_like(past, dtype=torch.bool))
    # a period longer than the context is all of it
    period = past[:, -min(seasonality, L) :].numpy()
    np.testing.assert_array_equal(forecast.numpy(), np.tile(period, (1, horizon, 1))[:, :horizon])


def test_seasonal_naive_fills_a_gap_with_the_mean():
    past = torch.tensor([1.0, 2.0, 3.0, 0.0, 5.0, 0.0])[None, :, None]
    observed = torch.tensor([1, 1, 1, 0, 1, 0], dtype=torch.bool)[None, :, None]
    assert seasonal_naive(3, 4)(past, observed).flatten().tolist() == [2.75, 5.0, 2.75, 2.75]
    assert seasonal_naive(3, 1)(past, torch.zeros_like(observed)).item() == 0


@pytest.mark.parametrize("gaps", [[], [(20, 0), (21, 0), (40, 1)]], ids=["complete", "gaps"])
def test_linear_is_ridge_regression(gaps):
    windows = make_windows(gaps=gaps)
    models = {flag: LinearBaseline(per_channel=flag, ridge=0.5).fit(windows, batch_size=7) for flag in (False, True)}
    past, observed, future = all_windows(windows)
    channels = []
    for channel in range(C):
        seen = np.where(observed[..., channel], past[..., channel], np.nan)
        mean = np.nanmean(seen, 1, keepdims=True)
        inputs = np.where(np.isnan(seen), mean, seen) - mean
        target = future[..., channel].numpy() - mean
        complete = ~np.isnan(target).any(1)
        channels.append((inputs, mean, inputs[complete], target[complete]))
    # one map for all channels has seen the windows of each
    shared = ridge_regression(*(np.concatenate(parts) for parts in list(zip(*channels, strict=True))[2:]))
    for channel, (inputs, mean, seen, target) in enumerate(channels):
        forecast = models[False](past, observed)[..., channel]
        np.testing.assert_allclose(forecast, shared.predict(inputs) + mean, rtol=1e-4)
        # a channel's own map is what it has beyond that
        own = ridge_regression(seen, target - shared.predict(seen))
        forecast = models[True](past, observed)[..., channel]
        np.testing.assert_allclose(forecast, shared.predict(inputs) + own.predict(inputs) + mean, rtol=1e-4)


def ridge_regression(inputs, targets):
    return Ridge(0.5, fit_intercept=False, solver="cholesky").fit(inputs, targets)


def test_maps_of_the_channels_are_no_worse_in_validation_than_the_shared_one():
    train, validation = make_windows(30), make_windows(200)
    shared, own = (LinearBaseline(per_channel=flag).fit(train, validation=validation) for flag in (False, True))
    torch.testing.assert_close(own.shared, shared.shared)
    errors = [score(model, validation, ["a", "b"])["mse"] for model in (own, shared)]
    # the largest ridge leaves almost nothing of a channel's own
    assert errors[0] <= errors[1] * (1 + 1e-4)


def test_scaled_windows_of_any_size_count_alike():
    values = make_windows().values
    larger = values * torch.tensor([1.0, 1000.0])
    scaled, again = (LinearBaseline(scaled=True).fit(WindowDataset(rows, L, H)) for rows in (values, larger))
    torch.testing.assert_close(again.shared, scaled.shared, rtol=1e-3, atol=1e-5)
    plain, unequal = (LinearBaseline().fit(WindowDataset(rows, L, H)) for rows in (values, larger))
    assert not torch.allclose(unequal.shared, plain.shared, atol=0.01), "the large channel has the say"
    past, observed, _ = all_windows(WindowDataset(larger, L, H))
    mean, deviation = past.mean(1, keepdim=True), (past.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    expected = torch.einsum("blc,lh->bhc", (past - mean) / deviation, again.shared.float()) * deviation + mean
    torch.testing.assert_close(again(past, observed), expected, rtol=1e-4, atol=1e-3)


def test_linear_learns_a_wave():
    """On a noiseless wave it is exact, on any level; the naive forecast of a wrong period is not."""
    values = torch.sin(2 * torch.pi * torch.arange(80.0) / 8)[:, None].expand(-1, C)
    windows = WindowDataset(values.contiguous(), L, H)
    model = LinearBaseline(ridge=1e-9).fit(windows)
    past, observed, future = all_windows(windows)
    torch.testing.assert_close(model(past, observed), future, rtol=0, atol=1e-4)
    torch.testing.assert_close(model(past + 700, observed), future + 700, rtol=0, atol=1e-3)
    assert score(model, windows, ["a", "b"])["mse"] < 1e-6 < score(seasonal_naive(5, H), windows, ["a", "b"])["mse"]


def test_every_window_is_scored_once():
    windows = make_windows(gaps=[(30, 1)])
    naive = seasonal_naive(4, H)
    scores = score(naive, windows, ["a", "b"])
    for batch_size in (1, 7, 1000):
        assert sum(len(past) for past, _, _ in batches(windows, batch_size)) == len(windows)
        again = score(naive, windows, ["a", "b"], batch_size)
        assert again.pop("per_channel") == {
            name: pytest.approx(errors, rel=1e-12) for name, errors in scores["per_channel"].items()
        }
        assert again == pytest.approx({name: scores[name] for name in ("mse", "mae")}, rel=1e-12)
    past, observed, future = all_windows(windows)
    error = (naive(past, observed) - future).double().numpy()
    assert scores["mse"] == pytest.approx(np.nanmean(error**2))
    assert scores["mae"] == pytest.approx(np.nanmean(np.abs(error)))
    assert scores["per_channel"]["b"]["mse"] == pytest.approx(np.nanmean(error[..., 1] ** 2))


def test_balance_moves_the_shared_map_towards_the_channel_that_can_be_forecast():
    hours = torch.arange(300)[:, None]
    values = torch.cat((torch.sin(2 * torch.pi * hours / 4), 3 * torch.randn(300, 1)), 1)
    windows = WindowDataset(values, L, H)
    plain, balanced = (LinearBaseline(balance=p).fit(windows) for p in (0.0, 1.0))
    assert plain.channel_weights.tolist() == [1, 1]
    assert balanced.channel_weights.mean().item() == pytest.approx(1)
    wave = [score(model, windows, ["wave", "noise"])["per_channel"]["wave"]["mse"] for model in (plain, balanced)]
    assert wave[1] < wave[0] / 2


@pytest.mark.parametrize("centred", [True, False])
def test_one_map_forecasts_any_number_of_channels(centred):
    model = LinearBaseline(centred=centred).fit(make_windows())
    past, observed, _ = all_windows(make_windows())
    more = torch.cat((past, past[..., :1]), 2), torch.cat((observed, observed[..., :1]), 2)
    forecast = model(*more)
    torch.testing.assert_close(forecast[..., :C], model(past, observed))
    torch.testing.assert_close(forecast[..., C], forecast[..., 0])


def test_dlinear_is_least_squares_with_a_constant():
    windows = make_windows()
    past, observed, future = all_windows(windows)
    inputs, targets = past.transpose(1, 2).reshape(-1, L), future.transpose(1, 2).reshape(-1, H)
    design = np.concatenate((inputs.double().numpy(), np.ones((len(inputs), 1))), 1)
    weight, *_ = np.linalg.lstsq(design, targets.double().numpy(), rcond=None)
    expected = (design @ weight).reshape(-1, C, H).transpose(0, 2, 1)
    forecast = LinearBaseline(centred=False, ridge=1e-9).fit(windows)(past, observed)
    np.testing.assert_allclose(forecast.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_validation_chooses_the_ridge():
    train, validation = make_windows(30), make_windows(200)
    chosen = LinearBaseline().fit(train, validation=validation)
    errors = {r: score(LinearBaseline(ridge=r).fit(train), validation, ["a", "b"])["mse"] for r in RIDGES}
    assert chosen.ridge == min(errors, key=errors.get)
    assert score(chosen, validation, ["a", "b"])["mse"] == pytest.approx(min(errors.values()))


def test_a_constant_channel_does_not_outweigh_the_others():
    values = make_windows().values
    balanced = LinearBaseline(balance=0.5).fit(WindowDataset(values, L, H))
    constant = torch.zeros(len(values), 1)
    wider = LinearBaseline(balance=0.5).fit(WindowDataset(torch.cat((values, constant), 1), L, H))
    torch.testing.assert_close(wider.channel_weights[:C], balanced.channel_weights)
    torch.testing.assert_close(wider.shared, balanced.shared)
    alone = LinearBaseline(balance=0.5).fit(WindowDataset(constant, L, H))
    assert alone.channel_weights.tolist() == [1] and alone.weight.isfinite().all()
