"""The linear forecast that both branches add to."""

import pytest
import torch
from tiny import tiny_model, window

from llata_fast.modeling import LlataForPrediction

pytestmark = pytest.mark.usefixtures("plain_ops")

PATCHES = {"patch_length": 4, "patch_stride": 3}


@pytest.mark.parametrize("tokens", [{}, PATCHES], ids=["variates", "patches"])
def test_linear_skip_adds_a_linear_forecast_to_both_branches(backbone, tokens):
    model = tiny_model(backbone, linear_skip=True, **tokens)
    past, _ = window()
    mask = torch.ones_like(past, dtype=torch.bool)
    mask[0, 3, 1] = False
    without = model(past, past_observed_mask=mask)
    torch.nn.init.normal_(model.skip.linear.weight)
    added = model(past, past_observed_mask=mask)
    _, loc, scale = model.embed(past, mask)
    normalised = ((past - loc[:, None]) / scale[:, None]).masked_fill(~mask, 0)
    linear = torch.einsum("hl,blc->bhc", model.skip.linear.weight, normalised) * scale[:, None]
    for branch in ("prediction_outputs", "text_outputs"):
        torch.testing.assert_close(added[branch] - without[branch], linear, rtol=1e-4, atol=1e-3)


def test_linear_skip_survives_a_round_trip_and_a_merge(backbone, tmp_path):
    model = tiny_model(backbone, linear_skip=True)
    torch.nn.init.normal_(model.skip.linear.weight)
    past, _ = window()
    forecast = model.eval()(past).prediction_outputs
    model.save_pretrained(tmp_path / "run")
    restored = LlataForPrediction.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(restored(past).prediction_outputs, forecast)
    torch.testing.assert_close(restored.merge()(past).prediction_outputs, forecast, rtol=1e-5, atol=1e-4)


def test_skip_of_each_channel(backbone, tmp_path):
    past, _ = window()
    C = past.shape[2]
    model = tiny_model(backbone, linear_skip=True, skip_channels=C).eval()
    torch.nn.init.normal_(model.skip.linear.weight)
    shared = model(past).prediction_outputs
    torch.nn.init.normal_(model.skip.own)
    own = model(past).prediction_outputs
    _, loc, scale = model.embed(past, None)
    normalised = (past - loc[:, None]) / scale[:, None]
    added = torch.einsum("chl,blc->bhc", model.skip.own, normalised) * scale[:, None]
    torch.testing.assert_close(own - shared, added, rtol=1e-4, atol=1e-3)
    # a series of other channels has the shared map alone
    fewer = past[..., : C - 1]
    torch.testing.assert_close(model(fewer).prediction_outputs, forecast_without_own(model, fewer))
    model.save_pretrained(tmp_path / "run")
    restored = LlataForPrediction.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(restored(past).prediction_outputs, own)


def forecast_without_own(model, past):
    own, model.skip.own = model.skip.own, None
    try:
        return model(past).prediction_outputs
    finally:
        model.skip.own = own


def test_bf16_takes_nothing_from_the_linear_forecast(backbone):
    """bf16 has no value between 1016 and 1024, nor three digits for a season's weights."""
    model = tiny_model(backbone, linear_skip=True, skip_channels=3, skip_level=0.5, zero_head=True).eval()
    for parameter in model.skip.parameters():
        torch.nn.init.normal_(parameter)
    past = window()[0] + 970
    expected = model(past).prediction_outputs
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(past).prediction_outputs, expected)
