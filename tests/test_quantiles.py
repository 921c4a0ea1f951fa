"""The quantile head: quantiles never cross, missing targets add nothing, learned quantiles have the right coverage."""

import pytest
import torch
from sklearn.metrics import mean_pinball_loss
from tiny import random_backbone, tiny_config, tiny_model, window

from llata_fast.errors import InputError
from llata_fast.modeling import LlataForPrediction
from llata_fast.quantiles import in_order, pinball_loss

LEVELS = [0.1, 0.5, 0.9]


def test_pinball_loss_is_sklearns():
    quantiles, target = torch.randn(4, 5, 2, 3), torch.randn(4, 5, 2)
    expected = [
        2 * mean_pinball_loss(target.flatten(), quantiles[..., index].flatten(), alpha=level)
        for index, level in enumerate(LEVELS)
    ]
    assert pinball_loss(quantiles, target, LEVELS).item() == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_a_missing_target_adds_nothing():
    quantiles, target = torch.randn(2, 3, 1, 3, requires_grad=True), torch.randn(2, 3, 1)
    target[0, 1] = torch.nan
    pinball_loss(quantiles, target, LEVELS).backward()
    assert (quantiles.grad[0, 1] == 0).all() and quantiles.grad.isfinite().all()
    # a diverged forecast must not pass for a missing target
    assert pinball_loss(torch.full_like(quantiles, torch.nan), target, LEVELS).isnan()


@pytest.mark.parametrize(
    "fields", [{}, {"patch_length": 4}, {"ablation": "no_llm"}], ids=["variates", "patches", "mlp"]
)
def test_quantiles_never_cross_and_are_saved(tmp_path, plain_ops, fields):
    model = tiny_model(random_backbone(tmp_path), quantile_levels=LEVELS, **fields)
    past, future = window()
    torch.nn.init.normal_(model.quantile_head.linear.weight)
    output = model(past, future)
    assert output.quantile_outputs.shape == (*future.shape, 3)
    assert (output.quantile_outputs.diff(dim=-1) >= 0).all()
    output.loss.backward()
    assert model.quantile_head.linear.weight.grad.abs().sum() > 0
    model.eval()
    with torch.inference_mode():
        expected = model(past).quantile_outputs
        model.save_pretrained(tmp_path / "model")
        restored = LlataForPrediction.from_pretrained(tmp_path / "model")
        for again in (restored, restored.merge()):
            torch.testing.assert_close(again(past).quantile_outputs, expected, rtol=1e-4, atol=1e-4)


def test_the_head_starts_at_a_normal_distribution_around_the_point_forecast(tmp_path, plain_ops):
    model = LlataForPrediction.from_backbone(tiny_config(random_backbone(tmp_path), quantile_levels=LEVELS)).eval()
    past, _ = window()
    with torch.inference_mode():
        output = model(past)
    deviation = past.std(1, correction=0, keepdim=True)
    expected = output.prediction_outputs[..., None] + deviation[..., None] * torch.tensor([-1.2816, 0.0, 1.2816])
    torch.testing.assert_close(output.quantile_outputs, expected, rtol=1e-3, atol=1e-3)


def test_training_learns_the_quantiles_of_noise(tmp_path, plain_ops):
    model = tiny_model(random_backbone(tmp_path), quantile_levels=LEVELS, ablation="no_llm")
    torch.nn.init.zeros_(model.head.weight)
    optimizer = torch.optim.Adam(model.quantile_head.parameters(), lr=0.02)
    draw = lambda: torch.empty(512, 17, 1).exponential_().split((12, 5), 1)
    for _ in range(150):
        optimizer.zero_grad()
        past, future = draw()
        model(past, future).quantile_loss.backward()
        optimizer.step()
    model.eval()
    past, future = draw()
    with torch.inference_mode():
        covered = (future[..., None] <= model(past).quantile_outputs).float().mean((0, 1, 2))
    assert (covered - torch.tensor(LEVELS)).abs().max() < 0.06


def test_sorting_makes_no_loss_larger():
    quantiles, target = torch.randn(50, 5, 2, 3), torch.randn(50, 5, 2)
    assert pinball_loss(in_order(quantiles), target, LEVELS) <= pinball_loss(quantiles, target, LEVELS)


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([0.1, 1.0], "between 0 and 1, got 1"),
        ([], "is empty"),
        ([0.5, 0.1], "must increase"),
        (["a"], "a list of numbers"),
    ],
)
def test_invalid_levels_are_refused(tmp_path, levels, words):
    with pytest.raises(InputError, match=words):
        tiny_config(random_backbone(tmp_path), quantile_levels=levels)
