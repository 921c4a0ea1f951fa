"""The model: shapes, losses, trained weights, determinism, precision, compilation."""

import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import BACKBONES, perturb, random_backbone, tiny_config, tiny_model, trained_weights, window

from llata_fast.backbone.loading import load_backbone_weights
from llata_fast.errors import InputError
from llata_fast.modeling import LlataForPrediction

pytestmark = pytest.mark.usefixtures("plain_ops")

PATCHES = {"patch_length": 4, "patch_stride": 3}


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
    # only the last value of a patch reaches its token here
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
    """Causal attention runs over variates, or over the patches of each channel."""
    model = tiny_model(backbone, **tokens).eval()
    past, _ = window(channels=3)
    changed = past.clone()
    changed[:, :, 0] = changed[:, :, 0].flip(1)
    unchanged = (model(past).prediction_outputs == model(changed).prediction_outputs).all((0, 1)).tolist()
    assert unchanged == ([False, True, True] if tokens else [False, False, False])


def projected_features(model, depth, feature):
    """Projections of both branches, each [B, T, rank], from their features [2B, T, D] at one depth."""
    weights = model.alignment.time_weight[depth], model.alignment.text_weight[depth]
    return [half @ weight.T for half, weight in zip(feature.chunk(2), weights, strict=True)]


def test_loss_is_the_weighted_sum(backbone):
    kinds = {"task_loss": "mse", "consistency_loss": "l1", "alignment_loss": "smooth_l1"}
    weights = {"consistency_weight": 0.3, "alignment_weight": 0.7, "alignment_decay": 0.5}
    model = tiny_model(backbone, **kinds, **weights)
    features = []
    model.alignment.register_forward_hook(lambda module, inputs, result: features.extend(*inputs))
    past, future = window()
    output = model(past, future)
    time, text = output.prediction_outputs, output.text_outputs
    torch.testing.assert_close(output.task_loss, F.mse_loss(time, future))
    torch.testing.assert_close(output.consistency_loss, F.l1_loss(time, text))
    distances = [F.smooth_l1_loss(*projected_features(model, depth, feature)) for depth, feature in enumerate(features)]
    expected = sum(0.5**k * distance for k, distance in enumerate(reversed(distances)))
    torch.testing.assert_close(output.alignment_loss, expected)
    assert len(distances) == model.config.num_layers + 1 and output.alignment_loss > distances[-1]
    total = output.task_loss + 0.3 * output.consistency_loss + 0.7 * output.alignment_loss
    torch.testing.assert_close(output.loss, total)


def test_alignment_starts_at_the_last_feature(backbone):
    model = tiny_model(backbone, alignment_decay=0.0, consistency_weight=0.0, task_loss="l1")
    model(*window()).alignment_loss.backward()
    reached = model.alignment.time_weight.grad.flatten(1).any(1).tolist()
    assert reached == [False, False, True]


def test_low_rank_alignment(backbone, tmp_path):
    """The loss is the mean distance between `rank` learned projections of both branches."""
    model = tiny_model(backbone, alignment_rank=7, alignment_loss="mse", alignment_decay=1.0)
    assert model.alignment.time_weight.shape == model.alignment.text_weight.shape == (3, 7, 48)
    features = []
    model.alignment.register_forward_hook(lambda module, inputs, result: features.extend(*inputs))
    output = model(*window())
    distances = [F.mse_loss(*projected_features(model, depth, feature)) for depth, feature in enumerate(features)]
    torch.testing.assert_close(output.alignment_loss, sum(distances))
    model.save_pretrained(tmp_path / "run")
    loaded = LlataForPrediction.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(loaded.alignment.state_dict(), model.alignment.state_dict(), rtol=0, atol=0)


def test_checkpoint_with_the_projections_of_each_depth(backbone, tmp_path):
    """Older checkpoints, which are not stacked, are still read."""
    model = tiny_model(backbone)
    model.save_pretrained(tmp_path / "run")
    weights = load_file(tmp_path / "run" / "model.safetensors")
    for name in ("time_weight", "text_weight"):
        stacked = weights.pop(f"alignment.{name}")
        weights |= {f"alignment.{depth}.{name}": weight.clone() for depth, weight in enumerate(stacked)}
    save_file(weights, tmp_path / "run" / "model.safetensors")
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


def test_a_diverged_branch_gives_a_nan_loss(backbone):
    """NaN in its forecast does not count as a missing value."""
    model = tiny_model(backbone, ablation="no_alignment")
    torch.nn.init.constant_(model.cross_attention.out_proj.bias, torch.nan)
    output = model(*window())
    assert output.task_loss.isfinite() and output.consistency_loss.isnan() and output.loss.isnan()


@pytest.mark.parametrize("tokens", [{}, PATCHES], ids=["variates", "patches"])
def test_missing_inputs_do_not_affect_the_forecast(backbone, tokens):
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
    with pytest.raises(InputError, match="17 tokens per sequence, but .* has only 16 positions"):
        model(*window(channels=17))
    # rotary positions have no limit
    tiny_model(random_backbone(tmp_path, "llama", max_position_embeddings=4))(*window(channels=17))


# modules of the temporal branch: LoRA updates per block, norms per block (not counting the final norm)
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
def test_exactly_the_trained_weights_move(tmp_path, family):
    model = LlataForPrediction.from_backbone(tiny_config(random_backbone(tmp_path, family))).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    # LoRA's second factor starts at zero, so the first one moves a step later
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
    # learned positions are trained, so they do not belong to the base
    assert ours.keys() == {key for key in source if not key.startswith("wpe.")}
    assert all(torch.equal(ours[key], source[key]) for key in ours)


def base_weights(model):
    """Weights of the frozen decoder under the decoder's own names."""
    keys = model.backbone.frozen_keys()
    state = model.backbone.state_dict()
    return {key.removeprefix("model.").replace(".base.", "."): state[key] for key in keys if "textual." not in key}


def test_tiny_model_moves_the_temporal_branch(backbone):
    """The tests above need this: `tiny_model` moves every weight that only the temporal branch has."""
    fresh = LlataForPrediction.from_backbone(tiny_config(backbone))
    before = trained_weights(fresh.backbone)
    perturb(fresh)
    assert all(not torch.equal(before[name], weight) for name, weight in trained_weights(fresh.backbone).items())


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
    # relative to the deviation from the mean, which is what a bf16 head computes
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
    # before any eager call: transformers defers some set-up to the first call, which must not be the compiled one
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
