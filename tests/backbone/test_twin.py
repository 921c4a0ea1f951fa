"""Both branches in one pass equal two separate passes, and each equals what transformers computes."""

import copy

import pytest
import torch
from tiny import BACKBONES, random_backbone, tiny_config, tiny_model
from torch import nn

from llata_fast.backbone.attention import CAUSAL_SDPA, choose_attention
from llata_fast.backbone.base import load_base
from llata_fast.backbone.loading import build_backbone, read_backbone_config
from llata_fast.backbone.twin import LoraLinear, TwinBackbone, TwinNorm, wrap_branches
from llata_fast.errors import InputError
from llata_fast.modeling import LlataForPrediction

NUM_TOKENS = 7

pytestmark = pytest.mark.usefixtures("plain_ops")


@pytest.fixture(params=BACKBONES)
def backbone(request, tmp_path):
    return random_backbone(tmp_path, request.param)


def assert_close(name, ours, theirs, relative=1e-5):
    error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)
    assert error <= relative, f"{name}: relative error {error:.2e}"


def twin_of(backbone, **options):
    """A TwinBackbone whose branches differ, tokens [time; text] for it, and the plain decoder it wraps."""
    decoder, _ = load_base(with_backbone(tiny_config(backbone)))
    options = {"rank": 3, "alpha": 6.0, "dropout": 0.0} | options
    torch.manual_seed(1)
    twin = TwinBackbone(copy.deepcopy(decoder), **options)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    return twin.train(), torch.randn(6, NUM_TOKENS, 48), decoder


def with_backbone(config):
    config.backbone_config = read_backbone_config(config.backbone, config.num_layers)
    return config


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_twin_equals_two_passes(backbone, checkpointing):
    models = {mode: tiny_model(backbone, backbone_pass=mode) for mode in ("two_pass", "twin")}
    state = models["two_pass"].state_dict()
    models["twin"].load_state_dict({name: state[name] for name in models["twin"].state_dict()})
    past, future = torch.randn(3, 12, NUM_TOKENS).cumsum(1), torch.randn(3, 5, NUM_TOKENS)
    results = {}
    for mode, model in models.items():
        if checkpointing and mode == "twin":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        output = model(past, future)
        output.loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        results[mode] = dict(output) | gradients
    assert results["twin"].keys() == results["two_pass"].keys()
    for name, ours in results["twin"].items():
        assert_close(name, ours, results["two_pass"][name])


def test_checkpointing_recomputes(backbone):
    """Otherwise the case above would compare a pass with itself."""
    model = tiny_model(backbone)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    next(m for m in model.modules() if isinstance(m, LoraLinear)).register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(2, 12, 3), torch.randn(2, 5, 3)).loss.backward()
    assert len(calls) == 2


def test_branches_are_plain_decoders(backbone):
    """Block by block, each half equals transformers' eager pass with weights modified by hand."""
    twin, tokens, decoder = twin_of(backbone)
    config = twin.model.config
    plain = {branch: build_backbone(config, "eager").eval() for branch in ("time", "text")}
    for model in plain.values():
        model.load_state_dict(decoder.state_dict())
    wrapped = dict(twin.model.named_modules())
    for name, module in plain["time"].named_modules():
        if isinstance(wrapped.get(name), LoraLinear):
            lora = wrapped[name]
            update = (lora.lora_b.weight @ lora.lora_a.weight) * 6.0 / 3
            module.weight.data += update.T if config.model_type == "gpt2" else update
        elif isinstance(wrapped.get(name), TwinNorm):
            module.load_state_dict(wrapped[name].tuned.state_dict())
    features = twin(tokens)
    assert len(features) == config.num_hidden_layers + 1
    for branch, half in (("time", slice(3)), ("text", slice(3, None))):
        if twin.positions is not None:
            plain[branch].wpe.load_state_dict(getattr(twin.positions, branch).state_dict())
        expected = list(plain[branch](inputs_embeds=tokens[half], output_hidden_states=True).hidden_states)
        expected[-1] = expected[-1] + tokens[half]
        for depth, (ours, theirs) in enumerate(zip(features, expected, strict=True)):
            assert_close(f"{branch} {depth}", ours[half], theirs)


def test_textual_rows_see_nothing_of_the_temporal_branch(backbone):
    twin, tokens, _ = twin_of(backbone)
    before = twin(tokens)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if parameter.requires_grad and "positions.text" not in name:
                parameter += torch.randn_like(parameter)
    after = twin(tokens)
    for old, new in zip(before[1:], after[1:], strict=True):
        assert torch.equal(old[3:], new[3:])
        assert not torch.isclose(old[:3], new[:3]).all(-1).any()


def test_lora_dropout_is_on_temporal_rows_only(backbone):
    twin, tokens, _ = twin_of(backbone)
    dropping, _, _ = twin_of(backbone, dropout=0.5)
    dropping.load_state_dict(twin.state_dict())
    for kept, dropped in zip(twin(tokens)[1:], dropping(tokens)[1:], strict=True):
        assert torch.equal(kept[3:], dropped[3:])
        assert not torch.equal(kept[:3], dropped[:3])


def test_merged_backbone_is_plain_and_forecasts_alike(backbone):
    model = tiny_model(backbone).eval()
    past = torch.randn(3, 12, NUM_TOKENS).cumsum(1)
    expected = model(past).prediction_outputs
    unmerged = LlataForPrediction.from_backbone(tiny_config(backbone))(past).prediction_outputs
    assert (unmerged - expected).abs().max() > 1e-3
    merged = model.merge()
    decoder = build_backbone(model.config.backbone_config)
    assert merged.backbone.model.state_dict().keys() == decoder.state_dict().keys()
    assert {type(module) for module in merged.backbone.model.modules()} <= {type(m) for m in decoder.modules()}
    assert not any(parameter.requires_grad for parameter in merged.backbone.parameters())
    assert_close("forecast", merged(past).prediction_outputs, expected)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, NUM_TOKENS])
@pytest.mark.parametrize("family", [family for family in BACKBONES if family != "gemma2"])
def test_causal_sdpa_is_transformers_sdpa(tmp_path, family, num_tokens):
    config = read_backbone_config(random_backbone(tmp_path, family), 3)
    ours, theirs = build_backbone(config, CAUSAL_SDPA).eval(), build_backbone(config, "sdpa").eval()
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randn(2, num_tokens, 48)
    hidden = [model(inputs_embeds=tokens).last_hidden_state for model in (ours, theirs)]
    assert_close("hidden state", *hidden)


def test_soft_capped_attention_runs_eager(tmp_path):
    capped = read_backbone_config(random_backbone(tmp_path, "gemma2"))
    assert choose_attention(capped).name == "eager"
    assert choose_attention(read_backbone_config(random_backbone(tmp_path, "gemma3_text"))).name == CAUSAL_SDPA
    twin, tokens, _ = twin_of(random_backbone(tmp_path, "gemma2"))
    free, _, _ = twin_of(random_backbone(tmp_path, "gemma2", attn_logit_softcapping=50.0))
    free.load_state_dict(twin.state_dict())
    assert (twin(tokens)[-1] - free(tokens)[-1]).abs().max() > 1e-3


def test_unknown_projection_names_are_an_error():
    with pytest.raises(InputError, match="Sequential.*--lora_r 0"):
        wrap_branches(nn.Sequential(nn.Linear(2, 2)), rank=1, alpha=1, dropout=0, twin=True)


def test_without_lora_norms_alone_are_tuned(tmp_path):
    twin, _, _ = twin_of(random_backbone(tmp_path), rank=0)
    trained = [name for name, parameter in twin.named_parameters() if parameter.requires_grad]
    assert trained and all(".tuned." in name for name in trained)
