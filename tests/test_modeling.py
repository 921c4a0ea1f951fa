"""The forecaster's promises: shapes, losses, what is trained, what a checkpoint holds."""

import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import BACKBONES, perturb, random_backbone, tiny_config, tiny_model
from transformers import AutoModel, LlamaConfig

from llata_fast.backbone.loading import load_backbone_weights, read_backbone_config
from llata_fast.config import LlataConfig
from llata_fast.errors import InputError
from llata_fast.modeling import LlataForPrediction

pytestmark = pytest.mark.usefixtures("plain_ops")

PATCHES = {"patch_length": 4, "patch_stride": 3}


@pytest.fixture
def backbone(tmp_path):
    return random_backbone(tmp_path)


def window(batch=2, channels=3, context=12, horizon=5):
    """past [B, L, C] and future [B, H, C]"""
    series = 50 + torch.randn(batch, context + horizon, channels).cumsum(1)
    return series.split((context, horizon), 1)


def trained_weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def base_weights(model):
    """The frozen decoder under its own names."""
    keys = model.backbone.frozen_keys()
    state = model.backbone.state_dict()
    return {key.removeprefix("model.").replace(".base.", "."): state[key] for key in keys if "textual." not in key}


# shapes and dtypes


@pytest.mark.parametrize("tokens", [{}, PATCHES], ids=["variates", "patches"])
def test_outputs(backbone, tokens):
    model = tiny_model(backbone, **tokens)
    past, future = window()
    output = model(past, future)
    for forecast in (output.prediction_outputs, output.text_outputs):
        assert forecast.shape == (2, 5, 3) and forecast.dtype == torch.float32
    for name in ("loss", "task_loss", "consistency_loss", "alignment_loss"):
        assert output[name].shape == () and output[name].dtype == torch.float32
    assert set(model(past)) == {"prediction_outputs", "text_outputs"}

    model.eval()
    output = model(past, future)
    assert set(output) == {"loss", "prediction_outputs", "task_loss"}
    assert set(model(past)) == {"prediction_outputs"}
    plain = model(past, future, return_dict=False)
    assert type(plain) is tuple and torch.equal(plain[1], output.prediction_outputs)


@pytest.mark.parametrize(
    "context, length, stride, patches", [(12, 4, 3, 3), (13, 4, 3, 4), (14, 4, 4, 3), (12, 12, 12, 1), (7, 3, 5, 1)]
)
def test_patches_end_with_the_newest_value(backbone, context, length, stride, patches):
    model = tiny_model(backbone, context_length=context, patch_length=length, patch_stride=stride)
    assert model.config.num_patches == patches
    assert model.head.in_features == 48 * patches
    with torch.no_grad():
        model.embedding.weight.zero_()[:, -1] = 1
        model.embedding.bias.zero_()
    past, _ = window(context=context)
    tokens, loc, scale = model.embedding(past, None)
    assert tokens.shape == (2, 3, patches, 48) and loc.shape == scale.shape == (2, 3)
    # a patch's last value alone reaches its token here
    ends = [context - 1 - stride * back for back in reversed(range(patches))]
    normalised = (past - past.mean(1, keepdim=True)) / (past.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(tokens[..., 0], normalised[:, ends].transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_forecast_follows_level_and_scale(backbone):
    model = tiny_model(backbone).eval()
    past, _ = window()
    moved = model(1000 + 8 * past).prediction_outputs
    torch.testing.assert_close(moved, 1000 + 8 * model(past).prediction_outputs, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("tokens", [{}, PATCHES], ids=["variates", "patches"])
def test_channels(backbone, tokens):
    """Causal attention runs over variates, or within each channel over its patches."""
    model = tiny_model(backbone, **tokens).eval()
    past, _ = window(channels=3)
    changed = past.clone()
    changed[:, :, 0] = changed[:, :, 0].flip(1)
    unchanged = (model(past).prediction_outputs == model(changed).prediction_outputs).all((0, 1)).tolist()
    assert unchanged == ([False, True, True] if tokens else [False, False, False])


# losses


def test_loss_is_the_weighted_sum(backbone):
    kinds = {"task_loss": "mse", "consistency_loss": "l1", "alignment_loss": "smooth_l1"}
    weights = {"consistency_weight": 0.3, "alignment_weight": 0.7, "alignment_decay": 0.5}
    model = tiny_model(backbone, **kinds, **weights)
    distances = []
    for align in model.alignment:
        align.register_forward_hook(lambda module, inputs, result: distances.append(result))
    past, future = window()
    output = model(past, future)
    time, text = output.prediction_outputs, output.text_outputs
    torch.testing.assert_close(output.task_loss, F.mse_loss(time, future))
    torch.testing.assert_close(output.consistency_loss, F.l1_loss(time, text))
    # asked from the last feature to the first
    torch.testing.assert_close(output.alignment_loss, sum(0.5**k * each for k, each in enumerate(distances)))
    assert len(distances) == model.config.num_layers + 1 and output.alignment_loss > distances[0]
    total = output.task_loss + 0.3 * output.consistency_loss + 0.7 * output.alignment_loss
    torch.testing.assert_close(output.loss, total)


def test_alignment_starts_at_the_last_feature(backbone):
    model = tiny_model(backbone, alignment_decay=0.0, consistency_weight=0.0, task_loss="l1")
    model(*window()).alignment_loss.backward()
    reached = [bool(align.time_weight.grad.any()) for align in model.alignment]
    assert reached == [False, False, True]


def test_low_rank_alignment(backbone, tmp_path):
    """The mean distance between `rank` learned projections of either branch."""
    model = tiny_model(backbone, alignment_rank=7, alignment_loss="mse", alignment_decay=1.0)
    distances = []

    def note(module, inputs, result):
        time, text = (feature @ weight.T for feature, weight in zip(inputs, module.parameters(), strict=True))
        distances.append((time - text).square().mean())

    for align in model.alignment:
        assert align.time_weight.shape == align.text_weight.shape == (7, 48)
        align.register_forward_hook(note)
    output = model(*window())
    torch.testing.assert_close(output.alignment_loss, sum(distances))
    model.save_pretrained(tmp_path / "run")
    loaded = LlataForPrediction.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(loaded.alignment.state_dict(), model.alignment.state_dict(), rtol=0, atol=0)


def test_missing_targets_add_nothing(backbone):
    model = tiny_model(backbone, task_loss="mse")
    past, future = window()
    gaps = torch.rand_like(future) < 0.3
    output = model(past, future.masked_fill(gaps, torch.nan))
    error = (output.prediction_outputs - future).square()
    torch.testing.assert_close(output.task_loss, error[~gaps].sum() / error.numel())
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("tokens", [{}, PATCHES], ids=["variates", "patches"])
def test_missing_inputs_have_no_say(backbone, tokens):
    model = tiny_model(backbone, **tokens).eval()
    past, _ = window()
    observed = torch.rand_like(past) > 0.3
    forecasts = [
        model(past.masked_fill(~observed, value), past_observed_mask=observed).prediction_outputs
        for value in (0.0, 1e6, torch.nan)
    ]
    assert forecasts[0].isfinite().all()
    assert torch.equal(forecasts[0], forecasts[1]) and torch.equal(forecasts[0], forecasts[2])
    assert not torch.allclose(forecasts[0], model(past).prediction_outputs)


# wrong input


def test_wrong_shapes(backbone):
    model = tiny_model(backbone)
    past, future = window()
    with pytest.raises(InputError, match=r"past_values must be \[B, 12, C\], got \[2, 11, 3\]"):
        model(past[:, 1:])
    with pytest.raises(InputError, match="past_values must be"):
        model(past[0])
    with pytest.raises(InputError, match=r"future_values must be \[2, 5, 3\], got \[2, 4, 3\]"):
        model(past, future[:, 1:])
    with pytest.raises(InputError, match="future_values must be"):
        model(past, future[..., 1:])


def test_more_tokens_than_learned_positions(tmp_path):
    model = tiny_model(random_backbone(tmp_path, "gpt2"))
    model(*window(channels=16))
    with pytest.raises(InputError, match="17 tokens a sequence, but .* has only 16 positions"):
        model(*window(channels=17))
    # rotary positions know no end
    tiny_model(random_backbone(tmp_path, "llama", max_position_embeddings=4))(*window(channels=17))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"prediction_length": -1}, "prediction_length must be at least 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"task_loss": "huber"}, "task_loss must be one of l1, smooth_l1, mse, smape, mase, got 'huber'"),
        ({"lora_r": -1}, "lora_r must be at least 0"),
        ({"alignment_weight": -0.1}, "alignment_weight must be at least 0, got -0.1"),
        ({"channel_balance": -1.0}, "channel_balance must be at least 0"),
        ({"patch_length": 13}, "patch_length 13 is longer than context_length 12"),
        ({"patch_stride": 2}, "patch_stride without patch_length"),
        ({"num_heads": 5}, "num_heads 5 does not divide the backbone's width 48"),
        ({"num_prototypes": 48}, "num_prototypes 48: a backbone of width 48 has at most 47"),
        ({"alignment_rank": 0}, "alignment_rank must be at least 1"),
        ({"alignment_rank": 49}, "alignment_rank 49 is larger than the backbone's width 48"),
        ({"num_layers": 4}, "has 3 layers, num_layers 4"),
        ({"backbone": "random:no_such_family"}, "neither a family"),
    ],
)
def test_wrong_configuration(backbone, fields, message):
    with pytest.raises(InputError, match=message):
        LlataForPrediction.from_backbone(tiny_config(**{"backbone": backbone} | fields))


# what depends on the backbone


def test_number_of_heads(tmp_path):
    def heads(**sizes):
        config = read_backbone_config(random_backbone(tmp_path, "llama", **sizes))
        return LlataConfig(backbone_config=config).num_heads

    assert heads(hidden_size=48) == 12
    assert heads(hidden_size=32) == 4
    assert LlataForPrediction.from_backbone(tiny_config(random_backbone(tmp_path), num_heads=6)).encoder.num_heads == 6


def test_number_of_prototypes(tmp_path):
    def prototypes(width):
        config = read_backbone_config(random_backbone(tmp_path, "llama", hidden_size=width))
        return LlataConfig(backbone_config=config).num_prototypes

    assert prototypes(48) == 47
    assert prototypes(1024) == 500


def test_alignment_rank(tmp_path):
    def rank(width, **fields):
        config = read_backbone_config(random_backbone(tmp_path, "llama", hidden_size=width))
        return LlataConfig(backbone_config=config, **fields).alignment_rank

    assert (rank(48), rank(1024), rank(1056), rank(4096)) == (48, 1024, 256, 256)
    assert rank(1056, alignment_rank=1056) == 1056


# modules of the temporal branch: low-rank updates a block, norms a block (the final norm comes on top)
TRAINED = {
    "gpt2": (1, 2),
    "llama": (3, 2),
    "mistral": (3, 2),
    "qwen2": (3, 2),
    "qwen3": (3, 4),
    "gemma2": (3, 4),
    "gemma3_text": (3, 6),
}


@pytest.mark.parametrize("family", BACKBONES)
def test_what_is_trained(tmp_path, family):
    model = tiny_model(random_backbone(tmp_path, family))
    names = set(trained_weights(model))
    own = {name for name in names if re.match(r"(embedding|encoder|cross_attention|head|alignment)\.", name)}
    assert own == {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    lora = {name.rsplit(".", 2)[0] for name in names if ".lora_" in name}
    norms = {name.rsplit(".", 2)[0] for name in names if ".tuned." in name}
    positions = {f"backbone.positions.{branch}.weight" for branch in ("time", "text")} if family == "gpt2" else set()
    per_block = TRAINED[family]
    assert (len(lora), len(norms)) == (2 * per_block[0], 2 * per_block[1] + 1)
    rest = {name for name in names - own - positions if not re.search(r"\.lora_[ab]\.|\.tuned\.", name)}
    assert not rest and positions <= names


@pytest.mark.parametrize("family", BACKBONES)
def test_all_that_is_trained_moves_and_nothing_else(tmp_path, family):
    model = LlataForPrediction.from_backbone(tiny_config(random_backbone(tmp_path, family))).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    # LoRA's second factor starts at zero: the first one follows a step later
    for _ in range(2):
        model(*window()).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(trained_weights(model))


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text"])
def test_base_equals_its_source(tmp_path, family):
    model = tiny_model(random_backbone(tmp_path, family))
    source = load_backbone_weights(model.config.backbone, model.config.backbone_config).blocks
    ours = base_weights(model)
    # learned positions are trained, hence not of the base
    assert ours.keys() == {key for key in source if not key.startswith("wpe.")}
    assert all(torch.equal(ours[key], source[key]) for key in ours)


# determinism, precision, compilation


def test_without_dropout_training_is_deterministic(backbone):
    past, future = window()
    losses = [tiny_model(backbone)(past, future).loss for _ in range(2)]
    assert losses[0] != losses[1], "tiny_model draws new weights"
    model = tiny_model(backbone)
    assert model(past, future).loss == model(past, future).loss
    for name in ("dropout", "lora_dropout"):
        noisy = tiny_model(backbone, **{name: 0.5})
        assert noisy(past, future).loss != noisy(past, future).loss, name
        noisy.eval()
        assert noisy(past, future).loss == noisy(past, future).loss, name


@pytest.mark.parametrize("tokens", [{}, PATCHES], ids=["variates", "patches"])
def test_autocast_keeps_statistics_and_losses_in_fp32(backbone, tokens):
    model = tiny_model(backbone, **tokens)
    # bf16 has no value between 1016 and 1024
    past, future = (values + 970 for values in window())
    full = model(past, future)
    with torch.autocast("cpu", torch.bfloat16):
        tokens, loc, scale = model.embedding(past, None)
        half = model(past, future)
    assert tokens.dtype == torch.bfloat16 and loc.dtype == scale.dtype == torch.float32
    torch.testing.assert_close(loc, past.mean(1), rtol=1e-6, atol=0)
    for name, value in half.items():
        assert value.dtype == torch.float32, name
    # relative to the deviation from the mean, that is to what a bf16 head computes
    error = (half.prediction_outputs - full.prediction_outputs).abs() / scale[:, None]
    assert error.max() < 0.1
    torch.testing.assert_close(half.task_loss, F.mse_loss(half.prediction_outputs, future), rtol=1e-6, atol=0)
    half.loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_compiles_to_one_graph(tmp_path, family):
    model = tiny_model(random_backbone(tmp_path, family), num_layers=1)
    past, future = window(channels=5)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    # before any eager call: what transformers leaves to the first one must not be left to this one
    output = compiled(past, future)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    expected = model(past, future)
    expected.loss.backward()
    torch.testing.assert_close(dict(output), dict(expected))
    torch.testing.assert_close(gradients, {name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    model.eval()
    torch.testing.assert_close(compiled(past).prediction_outputs, model(past).prediction_outputs)


def test_kernels_change_nothing(backbone, monkeypatch):
    model = tiny_model(backbone, **PATCHES)
    past, future = window(batch=1, channels=2)
    results = []
    for enabled in (False, True):
        monkeypatch.setattr("llata_fast.kernels._launch.ENABLED", enabled)
        model.zero_grad()
        output = model(past, future)
        output.loss.backward()
        results.append(dict(output) | {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


# checkpoints


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("backbone_pass", ["twin", "two_pass"])
@pytest.mark.parametrize("include_backbone", [False, True], ids=["reference", "whole"])
def test_round_trip(tmp_path, family, backbone_pass, include_backbone):
    model = tiny_model(random_backbone(tmp_path, family), backbone_pass=backbone_pass)
    model.save_pretrained(tmp_path / "run", include_backbone=include_backbone)
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert set(saved) >= set(trained_weights(model)) | {"prototypes"}
    assert bool(set(saved) & model.backbone.frozen_keys("backbone.")) == include_backbone
    assert not any(key.startswith("backbone.textual.") for key in saved)

    if include_backbone:
        # nothing else is needed
        (tmp_path / f"{family}.json").unlink()
    loaded = LlataForPrediction.from_pretrained(tmp_path / "run")
    assert not loaded.training
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert set(trained_weights(loaded)) == set(trained_weights(model))
    past, future = window()
    assert torch.equal(loaded(past).prediction_outputs, model.eval()(past).prediction_outputs)
    assert loaded.train()(past, future).loss == model.train()(past, future).loss


def test_save_again_after_load(tmp_path, backbone):
    tiny_model(backbone).save_pretrained(tmp_path / "whole", include_backbone=True)
    LlataForPrediction.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "small")
    model = LlataForPrediction.from_pretrained(tmp_path / "small")
    assert not set(load_file(tmp_path / "small" / "model.safetensors")) & model.backbone.frozen_keys("backbone.")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_merged_round_trip(tmp_path, family):
    model = tiny_model(random_backbone(tmp_path, family)).eval()
    past, _ = window()
    expected = model(past).prediction_outputs
    model.merge().save_pretrained(tmp_path / "merged")
    (tmp_path / f"{family}.json").unlink()
    loaded = LlataForPrediction.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(loaded(past).prediction_outputs, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(loaded.merge()(past).prediction_outputs, loaded(past).prediction_outputs)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        loaded.train()(past)


def test_moved_backbone(tmp_path):
    source = tmp_path / "backbone"
    AutoModel.from_config(LlamaConfig(**BACKBONES["llama"])).save_pretrained(source)
    model = tiny_model(str(source))
    model.save_pretrained(tmp_path / "run")
    source.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="backbone.*no such file or folder"):
        LlataForPrediction.from_pretrained(tmp_path / "run")
    moved = LlataForPrediction.from_pretrained(tmp_path / "run", backbone=str(tmp_path / "elsewhere"))
    past, _ = window()
    assert torch.equal(moved(past).prediction_outputs, model.eval()(past).prediction_outputs)


@pytest.mark.parametrize("part", ["base", "lora_a", "prototypes", "head"])
def test_a_missing_key_is_an_error(tmp_path, backbone, part):
    tiny_model(backbone).save_pretrained(tmp_path / "run", include_backbone=True)
    path = tmp_path / "run" / "model.safetensors"
    weights = load_file(path)
    lost = next(key for key in weights if part in key)
    save_file({key: tensor for key, tensor in weights.items() if key != lost}, path, {"format": "pt"})
    with pytest.raises(InputError, match=f"lacks {re.escape(lost)}"):
        LlataForPrediction.from_pretrained(tmp_path / "run")


def test_an_unknown_key_is_an_error(tmp_path, backbone):
    tiny_model(backbone).save_pretrained(tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    save_file(load_file(path) | {"extra": torch.ones(1)}, path, {"format": "pt"})
    with pytest.raises(InputError, match="holds extra"):
        LlataForPrediction.from_pretrained(tmp_path / "run")


def test_not_a_checkpoint(tmp_path, backbone):
    with pytest.raises(InputError, match="not the folder of a trained model"):
        LlataForPrediction.from_pretrained(tmp_path)
    tiny_model(backbone).save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="not the folder of a trained model"):
        LlataForPrediction.from_pretrained(tmp_path / "run")
    with pytest.raises(InputError, match="nowhere/at_all"):
        LlataForPrediction.from_pretrained("nowhere/at_all")


def test_perturbed_differs(backbone):
    """What the tests above rest on: `tiny_model` moves every weight that the temporal branch alone has."""
    fresh = LlataForPrediction.from_backbone(tiny_config(backbone))
    before = trained_weights(fresh.backbone)
    perturb(fresh)
    assert all(not torch.equal(before[name], weight) for name, weight in trained_weights(fresh.backbone).items())


# beyond the paper


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


@pytest.mark.parametrize("part", [{"skip_channels": 3}, {"skip_level": 0.5}], ids=["channels", "level"])
def test_parts_of_a_skip_need_one(backbone, part):
    with pytest.raises(InputError, match="parts of a linear skip"):
        tiny_config(backbone, **part)
