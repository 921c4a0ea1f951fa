"""Windows in their own units: neither the unit nor the level of a series reaches the model or is lost on the way."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_backbone, tiny_model

from llata_fast.data.units import WindowUnits, forecast_windows

UNITS = st.floats(-9, 9).map(lambda exponent: 10.0**exponent)
LEVELS = st.floats(-1e9, 1e9)
"""In standard deviations of the window."""
L, H, C = 12, 5, 2


def draw_windows(seed, gaps):
    draws = np.random.default_rng(seed)
    past = torch.from_numpy(draws.normal(size=(3, L, C)).cumsum(1) * draws.lognormal(size=(3, 1, C)))
    observed = torch.ones(3, L, C, dtype=torch.bool)
    for row, channel in gaps:
        observed[0, row, channel] = False
    return past, observed


WINDOWS = st.builds(
    draw_windows,
    st.integers(0, 10_000),
    # leaves at least one observed value
    st.lists(st.tuples(st.integers(1, L - 1), st.integers(0, C - 1)), max_size=8),
)


@given(WINDOWS, UNITS, LEVELS)
def test_units_follow_the_series(windows, k, c):
    past, observed = windows
    past = past.masked_fill(~observed, torch.nan)
    units = WindowUnits.of(past)
    c = c * k * units.scale
    moved = WindowUnits.of(k * past + c)
    tolerance = 1e-6 * k * units.scale
    assert ((moved.level - (k * units.level + c)).abs() <= tolerance).all()
    assert ((moved.scale - k * units.scale).abs() <= tolerance).all()
    assert (moved.remove(k * past + c) - units.remove(past)).abs().max() < 2e-6
    np.testing.assert_allclose(units.level[:, 0], np.nanmean(past, 1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(units.scale[:, 0], np.nanstd(past, 1), rtol=1e-12, atol=1e-12)
    restored = units.restore(units.remove(past))
    assert ((restored - past).abs() <= 1e-6 * units.scale + 1e-12)[observed].all()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose linear skip does not use the level."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llata_fast.kernels._launch.ENABLED", False)
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("units")
        model = tiny_model(random_backbone(folder), context_length=L, prediction_length=H, linear_skip=True).eval()
        torch.nn.init.normal_(model.skip.shared[:L])
        yield model


@torch.inference_mode()
def forecast(model, past, observed):
    return forecast_windows(lambda inputs: model(**inputs).prediction_outputs, past, observed)


@given(WINDOWS, UNITS, LEVELS)
def test_a_forecast_is_the_same_in_any_unit_and_at_any_level(model, windows, k, c):
    past, observed = windows
    scale = WindowUnits.of(past.masked_fill(~observed, torch.nan)).scale
    plain, moved = forecast(model, past, observed), forecast(model, k * past + c * k * scale, observed)
    assert moved.dtype == torch.float64
    assert ((moved - (k * plain + c * k * scale)).abs() <= 1e-5 * k * scale).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -1e300, 1e-300])
def test_a_constant_window_is_forecast_by_its_level(model, value):
    past = torch.full((1, L, C), value, dtype=torch.float64)
    assert (forecast(model, past, torch.ones(1, L, C, dtype=torch.bool)) == value).all()


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_squares_neither_overflow_nor_vanish(size):
    past = torch.tensor([-1.0, 0.0, 1.0, 0.0], dtype=torch.float64)[None, :, None] * size
    units = WindowUnits.of(past)
    assert units.level.item() == 0 and units.scale.item() == pytest.approx(size * 0.5**0.5, rel=1e-12)
    torch.testing.assert_close(units.remove(past)[0, :, 0], torch.tensor([-1.0, 0, 1, 0]) * 2**0.5)


def test_an_unobserved_channel_has_no_forecast(model):
    past, observed = draw_windows(0, [])
    observed[1, :, 0] = False
    outcome = forecast(model, past, observed).clone()
    assert outcome[1, :, 0].isnan().all()
    outcome[1, :, 0] = 0
    assert outcome.isfinite().all()


def test_training_and_forecasting_use_the_same_windows(model):
    """The loss of a batch of windows equals that of forecasts in the series' units."""
    from llata_fast.data import WindowDataset

    windows = WindowDataset(100 + torch.randn(40, C, dtype=torch.float64).cumsum(0), L, H)
    batch = windows.__getitems__(range(len(windows)))
    ((past, observed, future),) = windows.batches(len(windows))
    error = (forecast(model, past, observed) - future).square().mean().item()
    with torch.inference_mode():
        assert model(**batch).loss.item() == pytest.approx(error, rel=1e-4)
