"""The forecast losses against numpy; missing targets cost nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llata_fast.errors import InputError
from llata_fast.losses import LOSSES, forecast_loss

ORACLES = {
    "l1": lambda error: np.abs(error),
    "mse": lambda error: error**2,
    "smooth_l1": lambda error: np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5),
}


def pair(missing=0.3):
    """Prediction and target [B, H, C] with errors on both sides of smooth L1's kink and some missing targets."""
    prediction, target = torch.randn(2, 4, 6, 3).mul(2)
    return prediction.requires_grad_(), target.masked_fill(torch.rand(4, 6, 3) < missing, torch.nan)


def test_every_loss_has_an_oracle():
    # the tests below calculate M4's losses by hand
    assert ORACLES.keys() | {"smape", "mase"} == set(LOSSES)


@given(kind=st.sampled_from(sorted(ORACLES)), missing=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 999))
def test_numpy_agrees(kind, missing, seed):
    torch.manual_seed(seed)
    prediction, target = pair(missing)
    error = ORACLES[kind]((prediction - target).detach().double().numpy())
    # missing targets add nothing; the sum is divided by the number of all values, missing ones included
    expected = np.nansum(error) / error.size
    loss = forecast_loss(kind, prediction, target)
    torch.testing.assert_close(loss.item(), float(expected), rtol=1e-5, atol=1e-7)
    loss.backward()
    assert torch.equal(prediction.grad == 0, target.isnan())


@pytest.mark.parametrize("kind", ORACLES)
def test_mean_over_equal_parts_is_the_whole(kind):
    """Micro-batches and ranks with different numbers of missing values still average to the global batch's loss."""
    prediction, target = pair()
    parts = [forecast_loss(kind, *part) for part in zip(prediction.split(2), target.split(2), strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), forecast_loss(kind, prediction, target))


@pytest.mark.parametrize("kind", ORACLES)
def test_half_precision_is_scored_in_fp32(kind):
    prediction, target = torch.tensor([[[1016.0]]], dtype=torch.bfloat16), torch.tensor([[[1019.187]]])
    loss = forecast_loss(kind, prediction, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.item(), float(ORACLES[kind](np.float64(3.187))), rtol=1e-5, atol=0)


def test_smape_in_percent_over_observed_values():
    prediction, target = torch.tensor([[[50.0], [3.0], [7.0]]]), torch.tensor([[[150.0], [0.0], [torch.nan]]])
    assert forecast_loss("smape", prediction, target).item() == pytest.approx((100 + 200 + 0) / 3)
    assert forecast_loss("smape", torch.zeros(1, 2, 1), torch.zeros(1, 2, 1)).item() == 0


def test_smape_gradient_treats_the_denominator_as_constant():
    prediction = torch.tensor([[[50.0]]], requires_grad=True)
    forecast_loss("smape", prediction, torch.tensor([[[150.0]]])).backward()
    # the whole derivative would be -200 * 2 * 150 / 200^2
    assert prediction.grad.item() == pytest.approx(-200 / 200)


def test_mase_divides_each_series_by_its_scale():
    prediction, target = torch.ones(2, 3, 2), torch.zeros(2, 3, 2)
    target[0, 0, 0] = torch.nan
    scale = torch.tensor([[1.0, 2.0], [4.0, 5.0]])
    expected = (2 * 1 + 3 * (0.5 + 0.25 + 0.2)) / 12
    assert forecast_loss("mase", prediction, target, scale).item() == pytest.approx(expected)
    with pytest.raises(InputError, match="insample_scale"):
        forecast_loss("mase", prediction, target)
