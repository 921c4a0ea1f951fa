"""The linear forecast: least squares against numpy and scikit-learn, and the linear skip in both branches."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from tiny import all_windows, tiny_model, waves, window

from llata_fast.data import WindowDataset
from llata_fast.evaluation.baselines import score, seasonal_naive
from llata_fast.linear import LeastSquares
from llata_fast.modeling import LlataForPrediction

pytestmark = pytest.mark.usefixtures("plain_ops")

L, H, C = 8, 3, 2
PATCHES = {"patch_length": 4, "patch_stride": 3}


@pytest.mark.parametrize("tokens", [{}, PATCHES], ids=["variates", "patches"])
def test_linear_skip_adds_a_linear_forecast_to_both_branches(backbone, tokens):
    model = tiny_model(backbone, linear_skip=True, **tokens)
    past, _ = window()
    mask = torch.ones_like(past, dtype=torch.bool)
    mask[0, 3, 1] = False
    without = model(past, past_observed_mask=mask)
    torch.nn.init.normal_(model.skip.shared)
    added = model(past, past_observed_mask=mask)
    _, loc, scale = model.time_tokens(past, mask)
    centred = (past - loc[:, None]).masked_fill(~mask, 0)
    inputs = torch.cat((centred, loc[:, None], torch.ones_like(loc)[:, None]), 1)
    linear = torch.einsum("lh,blc->bhc", model.skip.shared, inputs)
    for branch in ("prediction_outputs", "text_outputs"):
        torch.testing.assert_close(added[branch] - without[branch], linear, rtol=1e-4, atol=1e-3)


def test_linear_skip_survives_a_round_trip_and_a_merge(backbone, tmp_path):
    model = tiny_model(backbone, linear_skip=True)
    torch.nn.init.normal_(model.skip.shared)
    model.skip.learned_share.fill_(0.25)
    past, _ = window()
    forecast = model.eval()(past).prediction_outputs
    model.save_pretrained(tmp_path / "run")
    restored = LlataForPrediction.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(restored(past).prediction_outputs, forecast)
    torch.testing.assert_close(restored.merge()(past).prediction_outputs, forecast, rtol=1e-5, atol=1e-4)


def test_maps_of_each_channel(backbone, tmp_path):
    """The head starts at zero, so the first forecast is that of the skip, `alone`."""
    past, _ = window()
    B, _, C = past.shape
    model = tiny_model(backbone, linear_skip=True, num_channels=C).eval()
    for maps in (model.skip.shared, model.skip.own):
        torch.nn.init.normal_(maps)
    mean = past.mean(1, keepdim=True)
    inputs = torch.cat((past - mean, mean, torch.ones_like(mean)), 1)
    expected = mean + torch.einsum("blc,clh->bhc", inputs, model.skip.shared + model.skip.own)
    forecast = model(past).prediction_outputs
    torch.testing.assert_close(forecast, expected, rtol=1e-4, atol=1e-3)
    observed = torch.ones_like(past, dtype=torch.bool)
    torch.testing.assert_close(model.skip.alone(past, observed), expected, rtol=1e-4, atol=1e-3)
    # a series with other channels uses only the shared map
    fewer = mean + torch.einsum("blc,lh->bhc", inputs, model.skip.shared)
    torch.testing.assert_close(model(past[..., :2]).prediction_outputs, fewer[..., :2], rtol=1e-4, atol=1e-3)
    model.save_pretrained(tmp_path / "run")
    restored = LlataForPrediction.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(restored(past).prediction_outputs, forecast)


def test_the_share_scales_the_learned_part(backbone):
    past, _ = window()
    model = tiny_model(backbone, linear_skip=True).eval()
    torch.nn.init.normal_(model.head.weight)
    whole, start = model(past).prediction_outputs, past.mean(1, keepdim=True)
    model.skip.learned_share.fill_(0.25)
    torch.testing.assert_close(model(past).prediction_outputs, torch.lerp(start, whole, 0.25), rtol=1e-4, atol=1e-3)


def test_with_a_share_of_zero_the_language_model_does_not_run(backbone, tmp_path):
    past, _ = window()
    model = tiny_model(backbone, linear_skip=True)
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.skip.shared)
    ran = []
    count = lambda *_: ran.append(1)
    model.backbone.register_forward_hook(count)
    model.skip.learned_share.fill_(0)
    expected = model.eval()(past).prediction_outputs
    model.skip.keep(0.0)
    assert ran.pop() and torch.equal(model(past).prediction_outputs, expected) and not ran
    model.save_pretrained(tmp_path / "run")
    restored = LlataForPrediction.from_pretrained(tmp_path / "run")
    restored.backbone.register_forward_hook(count)
    assert torch.equal(restored(past).prediction_outputs, expected) and not ran
    model.train()(past)
    assert ran.pop(), "what is trained does"
    with_head = tiny_model(backbone, linear_skip=True, quantile_levels=[0.5]).eval()
    with_head.skip.keep(0.0)
    with_head.backbone.register_forward_hook(count)
    assert with_head(past).quantile_outputs is not None and ran, "quantiles come from its features"


def test_bf16_leaves_the_linear_forecast_exact(backbone):
    """bf16 has no value between 1016 and 1024, and fewer than three digits for a season's weights."""
    model = tiny_model(backbone, linear_skip=True, num_channels=3).eval()
    for maps in (model.skip.shared, model.skip.own):
        torch.nn.init.normal_(maps)
    past = window()[0] + 970
    expected = model(past).prediction_outputs
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(past).prediction_outputs, expected)


@pytest.mark.parametrize("gaps", [[], [(20, 0), (21, 0), (40, 1)]], ids=["complete", "gaps"])
def test_linear_is_ridge_regression(gaps):
    windows = waves(gaps=gaps)
    models = {flag: LeastSquares(per_channel=flag, ridge=0.5).fit(windows, batch_size=7) for flag in (False, True)}
    past, observed, future = all_windows(windows)
    channels = []
    for channel in range(C):
        seen = np.where(observed[..., channel], past[..., channel], np.nan)
        mean = np.nanmean(seen, 1, keepdims=True)
        inputs = np.where(np.isnan(seen), mean, seen) - mean
        target = future[..., channel].numpy() - mean
        complete = ~np.isnan(target).any(1)
        channels.append((inputs, mean, inputs[complete], target[complete]))
    # the shared map is fitted on the windows of all channels
    shared = ridge_regression(*(np.concatenate(parts) for parts in list(zip(*channels, strict=True))[2:]))
    for channel, (inputs, mean, seen, target) in enumerate(channels):
        forecast = models[False](past, observed)[..., channel]
        np.testing.assert_allclose(forecast, shared.predict(inputs) + mean, rtol=1e-4)
        # a channel's own map is fitted on what the shared map leaves
        own = ridge_regression(seen, target - shared.predict(seen))
        forecast = models[True](past, observed)[..., channel]
        np.testing.assert_allclose(forecast, shared.predict(inputs) + own.predict(inputs) + mean, rtol=1e-4)


def ridge_regression(inputs, targets):
    return Ridge(0.5, fit_intercept=False, solver="cholesky").fit(inputs, targets)


def test_scaled_windows_of_any_size_count_alike():
    values = waves().values
    larger = values * torch.tensor([1.0, 1000.0])
    scaled, again = (LeastSquares(unit="deviation").fit(WindowDataset(rows, L, H)) for rows in (values, larger))
    torch.testing.assert_close(again.shared, scaled.shared, rtol=1e-3, atol=1e-5)
    plain, unequal = (LeastSquares().fit(WindowDataset(rows, L, H)) for rows in (values, larger))
    assert not torch.allclose(unequal.shared, plain.shared, atol=0.01), "the large channel has the say"
    past, observed, _ = all_windows(WindowDataset(larger, L, H))
    mean, deviation = past.mean(1, keepdim=True), (past.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    expected = torch.einsum("blc,lh->bhc", (past - mean) / deviation, again.shared) * deviation + mean
    torch.testing.assert_close(again(past, observed), expected, rtol=1e-4, atol=1e-3)


def test_windows_in_units_of_their_level_count_alike():
    values = waves().values
    one, other = values[:, :1], 1000 * values[:, 1:]
    both, alone = (
        LeastSquares(unit="level", ridge=1e-3).fit(WindowDataset(torch.cat(rows, 1), L, H))
        for rows in ((one, other), (one, other / 1000))
    )
    torch.testing.assert_close(both.shared, alone.shared, rtol=1e-3, atol=1e-4)
    past, observed, _ = all_windows(WindowDataset(one, L, H))
    torch.testing.assert_close(both(1000 * past, observed), 1000 * both(past, observed))
    with pytest.raises(ValueError, match="for centred windows"):
        LeastSquares(centred=False, unit="deviation")


def test_linear_learns_a_wave():
    """On a noiseless wave it is exact at any level; a seasonal naive forecast with a wrong period is not."""
    values = torch.sin(2 * torch.pi * torch.arange(80.0) / 8)[:, None].expand(-1, C)
    windows = WindowDataset(values.contiguous(), L, H)
    model = LeastSquares(ridge=1e-9).fit(windows)
    past, observed, future = all_windows(windows)
    torch.testing.assert_close(model(past, observed), future, rtol=0, atol=1e-4)
    torch.testing.assert_close(model(past + 700, observed), future + 700, rtol=0, atol=1e-3)
    assert score(model, windows, ["a", "b"])["mse"] < 1e-6 < score(seasonal_naive(5, H), windows, ["a", "b"])["mse"]


@pytest.mark.parametrize("centred", [True, False])
def test_one_map_forecasts_any_number_of_channels(centred):
    model = LeastSquares(centred=centred).fit(waves())
    past, observed, _ = all_windows(waves())
    more = torch.cat((past, past[..., :1]), 2), torch.cat((observed, observed[..., :1]), 2)
    forecast = model(*more)
    torch.testing.assert_close(forecast[..., :C], model(past, observed))
    torch.testing.assert_close(forecast[..., C], forecast[..., 0])


def test_dlinear_is_least_squares_with_a_constant():
    windows = waves()
    past, observed, future = all_windows(windows)
    inputs, targets = past.transpose(1, 2).reshape(-1, L), future.transpose(1, 2).reshape(-1, H)
    design = np.concatenate((inputs.double().numpy(), np.ones((len(inputs), 1))), 1)
    weight, *_ = np.linalg.lstsq(design, targets.double().numpy(), rcond=None)
    expected = (design @ weight).reshape(-1, C, H).transpose(0, 2, 1)
    forecast = LeastSquares(centred=False, ridge=1e-9).fit(windows)(past, observed)
    np.testing.assert_allclose(forecast.numpy(), expected, rtol=1e-3, atol=1e-3)
