"""Covariates in the model: tokens that the targets see in both branches. Without covariates nothing changes."""

import pytest
import torch
from tiny import random_backbone, tiny_config, tiny_model, window

from llata_fast.covariate_tokens import CovariateTokens, input_shapes
from llata_fast.errors import InputError
from llata_fast.modeling import LlataForPrediction

# the first random number after the weights, the loss, two of its terms, and the sum of the textual forecast
STORED = [0.5602895021438599, 2.255875587463379, 0.8708367347717285, 0.7793290615081787, 3.233814001083374]

pytestmark = pytest.mark.usefixtures("plain_ops")

SIZES = {"known": [0, 3], "past": [0], "static": [4, 0]}
STATIC = {"known": [], "past": [], "static": [4, 0]}
TOKENS = {
    "variate tokens": {},
    "patch tokens": {"patch_length": 4, "patch_stride": 2},
    "one patch": {"patch_length": 10},
}


def inputs(sizes=SIZES, batch=2):
    """Covariates of windows of L 12 and H 5, numbers first."""
    made = {}
    for name, shape in input_shapes(sizes, 12, 5).items():
        made[name] = torch.randn(batch, *shape)
    if sizes["known"]:
        for name in ("past_covariates", "future_covariates"):
            made[name][..., 1] = torch.randint(0, 4, made[name].shape[:-1]).float()
    made["static_covariates"][:, 0] = torch.randint(0, 5, (batch,)).float()
    return made


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_input_reaches_the_forecast_and_every_weight_the_loss(tmp_path, tokens, family):
    options = TOKENS[tokens] | {"quantile_levels": [0.1, 0.9]}
    model = tiny_model(random_backbone(tmp_path, family), covariates=SIZES, num_channels=3, **options)
    past, future = window()
    beside = inputs()
    for values in beside.values():
        values.requires_grad_()
    model.eval()
    output = model(past, **beside)
    assert output.prediction_outputs.shape == (2, 5, 3) and output.quantile_outputs.shape == (2, 5, 3, 2)
    output.prediction_outputs.square().sum().backward()
    for name, values in beside.items():
        # categories have no gradient
        numbers = values.grad[..., [place for place in range(values.shape[-1]) if place != (name[0] != "s")]]
        assert (numbers != 0).float().mean() > 0.9, name
    model.train()
    model.zero_grad()
    torch.manual_seed(1)
    model(past, future, **{name: values.detach() for name, values in beside.items()}).loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


@pytest.mark.parametrize("tokens", TOKENS)
def test_twin_pass_is_two_passes(backbone, tokens):
    past, future = window()
    beside, losses = inputs(), []
    for backbone_pass in ("twin", "two_pass"):
        torch.manual_seed(0)
        model = tiny_model(backbone, covariates=SIZES, backbone_pass=backbone_pass, **TOKENS[tokens])
        torch.manual_seed(0)
        losses.append(model(past, future, **beside).loss)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


def test_covariate_tokens_count_against_the_positions(backbone):
    for options, expected in (({}, (3 + 3, 3 + 3)), (TOKENS["patch tokens"], (3 + 5, 3 * (3 + 5)))):
        config = tiny_config(backbone, covariates=SIZES, **options)
        assert (config.num_tokens(3), config.tokens_per_window(3)) == expected
        model = LlataForPrediction.from_backbone(config)
        time, _, _ = model.time_tokens(window()[0], None, *inputs().values())
        assert time.shape[1] == expected[0] and time.shape[0] * time.shape[1] == 2 * expected[1]
    crowded = tiny_model(f"random:{backbone[7:]}", covariates=SIZES).eval()
    crowded.max_tokens = 5
    with pytest.raises(InputError, match="6 tokens per sequence"):
        crowded(window()[0], **inputs())


def test_missing_covariates_add_nothing(backbone):
    """Bit for bit: missing static ones add no token; missing past and future ones leave a token without values."""
    model = tiny_model(backbone, covariates=STATIC).eval()
    past, _ = window()
    nothing = {"static_covariates": torch.full((2, 2), torch.nan)}
    with_nothing = model(past, **nothing).prediction_outputs
    model.covariates, model.config.covariates = None, None
    assert torch.equal(model(past).prediction_outputs, with_nothing)

    tokens = CovariateTokens(SIZES, 12, 5, 8).eval()
    beside = {name: torch.full_like(values, torch.nan) for name, values in inputs().items()}
    bias = torch.stack([stretch.project.bias for stretch in tokens.moving]).expand(2, -1, -1)
    assert torch.equal(tokens(beside["past_covariates"], beside["future_covariates"]), bias)


def test_a_gap_differs_from_any_value(backbone):
    model = tiny_model(backbone, covariates=SIZES).eval()
    past, beside = window()[0], inputs()
    gap = {name: values.clone() for name, values in beside.items()}
    gap["future_covariates"][:, 2] = torch.nan
    other = {name: values.clone() for name, values in beside.items()}
    other["future_covariates"][:, 2, 0] = 0.0
    other["future_covariates"][:, 2, 1] = 1.0
    results = [model(past, **values).prediction_outputs for values in (beside, gap, other)]
    assert all(result.isfinite().all() for result in results)
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])


def test_the_embedding_of_unseen_categories_is_learned(backbone):
    model = tiny_model(backbone, covariates=SIZES, dropout=0.2)
    past, future = window(batch=8)
    known = inputs(batch=8)
    for name in ("past_covariates", "future_covariates"):
        known[name][..., 1] = 1.0
    model(past, future, **known).loss.backward()
    gradient = model.covariates.moving[1].category.table.weight.grad
    assert (gradient[0] != 0).any() and (gradient[1] != 0).any() and (gradient[2:] == 0).all()
    model.eval()
    unseen = {name: values.clone() for name, values in known.items()}
    unseen["future_covariates"][..., 1] = 0.0
    assert not torch.equal(model(past, **known).prediction_outputs, model(past, **unseen).prediction_outputs)


@pytest.mark.parametrize("tokens", ["variate tokens", "patch tokens"])
def test_tokens_alone_learn_what_a_covariate_drives(backbone, tokens):
    """Without a linear skip. They learn nothing from a covariate that is drawn independently."""
    losses = {}
    for driven in (True, False):
        torch.manual_seed(0)
        sizes = {"known": [0], "past": [], "static": []}
        model = tiny_model(backbone, covariates=sizes, num_layers=1, alignment_weight=0.0, **TOKENS[tokens])
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        last = []
        for _ in range(120):
            before, behind = torch.randn(32, 12, 1), torch.randn(32, 5, 1)
            past, future = before + 0.1 * torch.randn_like(before), behind + 0.1 * torch.randn_like(behind)
            seen = behind if driven else torch.randn_like(behind)
            output = model(past, future, past_covariates=before, future_covariates=seen)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            last = [*last, output.task_loss.item()][-20:]
        losses[driven] = sum(last) / len(last)
    assert losses[True] < 0.5 * losses[False] and losses[False] > 0.9


def test_checkpointed_blocks_give_the_same_gradients(backbone):
    past, future = window()
    beside, gradients = inputs(), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = tiny_model(backbone, covariates=SIZES, dropout=0.2)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        model(past, future, **beside).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("sizes", "change", "message"),
    [
        (SIZES, {"future_covariates": None}, r"future_covariates must be \[2, 5, 2\], got none"),
        (SIZES, {"past_covariates": torch.zeros(2, 12, 2)}, r"past_covariates must be \[2, 12, 3\], got \[2, 12, 2\]"),
        (SIZES, {"static_covariates": torch.zeros(1, 2)}, r"static_covariates must be \[2, 2\], got \[1, 2\]"),
        (STATIC, {"future_covariates": torch.zeros(2, 5, 1)}, "trained without future_covariates"),
        (None, {"static_covariates": torch.zeros(2, 1)}, "trained without static_covariates"),
    ],
)
def test_other_covariates_are_refused(backbone, sizes, change, message):
    model = tiny_model(backbone, covariates=sizes)
    given = {} if sizes is None else inputs(sizes)
    with pytest.raises(InputError, match=message):
        model(window()[0], **given | change)


def test_a_model_without_covariates_computes_the_stored_values(backbone):
    """Its weights are drawn from the same random numbers under the same names, and it computes the stored values."""
    torch.manual_seed(0)
    model = LlataForPrediction.from_backbone(tiny_config(backbone, linear_skip=True, quantile_levels=[0.1, 0.9]))
    drawn = torch.rand(())
    assert not [name for name in model.state_dict() if "covariates" in name]
    past, future = torch.linspace(-2, 3, 72).view(2, 12, 3).sin(), torch.linspace(3, 5, 30).view(2, 5, 3).sin()
    output = model.train()(past, future)
    stored = torch.tensor(STORED)
    found = torch.stack([drawn, output.loss, output.alignment_loss, output.quantile_loss, output.text_outputs.sum()])
    torch.testing.assert_close(found.detach(), stored, rtol=1e-5, atol=1e-5)
