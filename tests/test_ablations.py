"""Every ablation removes what its name says and nothing else from the model, its training, loss, files and scores."""

import pytest
import torch
from tiny import BACKBONES, random_backbone, tiny_config, tiny_model, window

from llata_fast.backbone.prototypes import principal_prototypes
from llata_fast.config import LlataConfig
from llata_fast.errors import InputError
from llata_fast.modeling import LlataForPrediction
from llata_fast.settings import ABLATIONS

pytestmark = pytest.mark.usefixtures("plain_ops")

ONE_BRANCH = ("no_llm", "llm_to_attention", "llm_to_transformer", "random_init", "no_text_branch")
WITHOUT_LLM = ("no_llm", "llm_to_attention", "llm_to_transformer")


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_trains_saves_and_merges(ablation, backbone, tmp_path):
    model = tiny_model(backbone, ablation=ablation)
    past, future = window(batch=4)
    output = model(past, future)
    output.loss.backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    # every trained weight affects the loss, except for the inputs of the last alignment feature
    assert not unused
    assert set(output) == {"loss", "prediction_outputs", "task_loss"} | (
        set() if ablation in ONE_BRANCH else {"text_outputs", "consistency_loss", "alignment_loss"}
    ) - {ablation.removeprefix("no_") + "_loss"}
    if ablation in ONE_BRANCH:
        assert output.loss.item() == output.task_loss.item()
        assert not [name for name, _ in model.named_parameters() if name.startswith(("cross_attention", "alignment"))]

    expected = model.eval()(past).prediction_outputs
    model.save_pretrained(tmp_path / "run")
    again = LlataForPrediction.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(again(past).prediction_outputs, expected)
    again.merge().save_pretrained(tmp_path / "merged")
    merged = LlataForPrediction.from_pretrained(tmp_path / "merged")
    assert not [name for name, p in merged.backbone.named_parameters() if p.requires_grad]
    torch.testing.assert_close(merged(past).prediction_outputs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ablation", ["no_consistency", "no_alignment"])
def test_a_removed_loss_term_equals_a_weight_of_zero(ablation, backbone):
    term = ablation.removeprefix("no_")
    past, future = window(batch=4)
    torch.manual_seed(1)
    weightless = tiny_model(backbone, **{f"{term}_weight": 0.0})
    torch.manual_seed(1)
    ablated = tiny_model(backbone, ablation=ablation)
    state = {key: value for key, value in weightless.state_dict().items() if key in ablated.state_dict()}
    ablated.load_state_dict(state)
    assert ablated(past, future).loss.item() == pytest.approx(weightless(past, future).loss.item(), rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_temporal_branch_alone_is_the_temporal_branch(family, tmp_path):
    backbone = random_backbone(tmp_path, family)
    whole = tiny_model(backbone)
    alone = tiny_model(backbone, ablation="no_text_branch")
    missing, unexpected = alone.load_state_dict(whole.state_dict(), strict=False)
    assert not missing and all(key.startswith(("cross_attention", "prototypes", "alignment")) for key in unexpected)
    past, future = window(batch=4)
    output = alone(past, future)
    torch.testing.assert_close(output.task_loss, whole(past, future).task_loss)
    output.loss.backward()
    assert not [name for name, p in alone.named_parameters() if p.requires_grad and p.grad is None]


def test_random_init_trains_every_weight_from_other_values(backbone):
    whole, fresh = (
        LlataForPrediction.from_backbone(tiny_config(backbone, ablation=a)) for a in ("none", "random_init")
    )
    assert all(p.requires_grad for p in fresh.parameters())
    name = "layers.0.mlp.up_proj.weight"
    assert not torch.equal(whole.backbone.model.get_parameter(name), fresh.backbone.model.get_parameter(name))


def test_no_llm_is_the_encoder_and_the_head(backbone):
    model = tiny_model(backbone, ablation="no_llm").eval()
    past, _ = window(batch=4)
    tokens, loc, scale = model.time_tokens(past, None)
    expected = model.head(tokens).transpose(1, 2) * scale[:, None] + loc[:, None]
    torch.testing.assert_close(model(past).prediction_outputs, expected)


def test_ablations_that_replace_the_backbone_ignore_its_limits(tmp_path):
    """17 channels exceed this GPT-2's positions, which matters only if the model contains the GPT-2."""
    backbone = random_backbone(tmp_path, "gpt2")
    past = torch.randn(2, 12, BACKBONES["gpt2"]["n_positions"] + 1)
    for ablation in WITHOUT_LLM:
        assert tiny_model(backbone, ablation=ablation)(past).prediction_outputs.shape == (2, 5, 17)
    for ablation in ("none", "random_init", "no_text_branch"):
        with pytest.raises(InputError, match="positions"):
            tiny_model(backbone, ablation=ablation)(past)


def test_random_prototypes_are_as_large_as_the_principal_ones(backbone):
    whole, random = (
        LlataForPrediction.from_backbone(tiny_config(backbone, ablation=a)) for a in ("none", "random_prototypes")
    )
    assert not torch.allclose(whole.prototypes, random.prototypes)
    torch.testing.assert_close(random.prototypes.std(1), whole.prototypes.std(1), rtol=0.5, atol=0)
    assert principal_prototypes(torch.randn(80, 48), 9).shape == random.prototypes.shape


def test_transformer_block_is_a_separate_encoder_layer(backbone):
    model = tiny_model(backbone, ablation="llm_to_transformer")
    shapes = {key: value.shape for key, value in model.encoder.state_dict().items()}
    assert {key: value.shape for key, value in model.backbone.block.state_dict().items()} == shapes
    assert model.backbone.block is not model.encoder


def test_unknown_ablation():
    with pytest.raises(InputError, match="ablation must be one of none, no_llm"):
        LlataConfig(ablation="no_lm")
