"""Agreement with the reference implementation: outputs, losses and gradients for the reference's random weights."""

import re
from pathlib import Path

import pytest
import torch
from cut_parity_fixture import restore
from safetensors import safe_open

from llata_fast.reference_checkpoint import load_reference_checkpoint, reference_names

RELATIVE = 1e-4


IN_REPOSITORY = Path(__file__).parent / "fixtures" / "parity_l1.safetensors"


@pytest.fixture(params=["cut_l1", "l1", "smooth_l1"])
def fixture(request, shared):
    cut = request.param == "cut_l1"
    path = IN_REPOSITORY if cut else shared(f"fixtures/parity_{request.param}.safetensors")
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        return restore(tensors) if cut else tensors, file.metadata()


def load(tensors, metadata, **config):
    state = {key.removeprefix("state_dict."): value for key, value in tensors.items() if key.startswith("state_dict.")}
    kind = metadata["loss"]
    model = load_reference_checkpoint(
        state,
        tensors["prototypes"],
        lora_alpha=float(metadata["lora_alpha"]),
        num_heads=int(metadata["heads_cross"]),
        task_loss=kind,
        consistency_loss=kind,
        alignment_loss=kind,
        alignment_weight=float(metadata["feature_w"]),
        alignment_decay=float(metadata["gamma"]),
        **config,
    )
    return model, state


def assert_close(name, ours, theirs):
    error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)
    assert error < RELATIVE, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("backbone_pass", ["twin", "two_pass"])
def test_outputs_losses_and_gradients(fixture, backbone_pass):
    tensors, metadata = fixture
    model, state = load(tensors, metadata, backbone_pass=backbone_pass)
    output = model.train()(tensors["x"], tensors["y"])
    assert_close("outputs_time", output.prediction_outputs, tensors["outputs_time"])
    assert_close("outputs_text", output.text_outputs, tensors["outputs_text"])
    assert_close("loss_task", output.task_loss, tensors["loss_task"])
    assert_close("loss_output", output.consistency_loss, tensors["loss_output"])
    assert_close("loss_feature", output.alignment_loss, tensors["loss_feature"])
    assert_close("loss_total", output.loss, tensors["loss_total"])

    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    # stacked here; the reference has one projection per depth
    for name in ("time_weight", "text_weight"):
        stacked = gradients.pop(f"alignment.{name}")
        gradients |= {f"alignment.{depth}.{name}": gradient for depth, gradient in enumerate(stacked)}

    def assert_gradient(key, ours):
        theirs = tensors[f"grad.{key}"]
        # a reduced fixture holds every n-th row
        assert_close(key, ours[:: len(ours) // len(theirs)], theirs)

    for key, ours in reference_names(state).items():
        if f"grad.{key}" in tensors:
            assert_gradient(key, gradients.pop(ours))
    for kind in ("weight", "bias"):
        stacked = torch.cat([gradients.pop(f"cross_attention.{part}_proj.{kind}") for part in ("q", "kv")])
        assert_gradient(f"in_layer.cross_attention.in_proj_{kind}", stacked)
    assert not gradients, "trained here, not in the reference"


def test_projected_features(fixture):
    tensors, metadata = fixture
    model, _ = load(tensors, metadata)
    features = []
    model.alignment.register_forward_hook(lambda module, inputs, output: features.extend(*inputs))
    model.train()(tensors["x"], tensors["y"])
    for branch, half in (("time", 0), ("text", 1)):
        weights = getattr(model.alignment, f"{branch}_weight")
        for depth, (weight, feature) in enumerate(zip(weights, features, strict=True)):
            projected = feature.chunk(2)[half] @ weight.T
            assert_close(f"feat_{branch}.{depth}", projected, tensors[f"feat_{branch}.{depth}"])


def test_evaluation_runs_the_temporal_branch_alone(fixture):
    tensors, metadata = fixture
    model, _ = load(tensors, metadata)
    model.cross_attention.register_forward_hook(lambda *_: pytest.fail("the textual branch ran"))
    output = model(tensors["x"], tensors["y"])
    assert_close("outputs_time", output.prediction_outputs, tensors["outputs_time"])
    assert output.text_outputs is None
    assert_close("merged", model.merge()(tensors["x"]).prediction_outputs, tensors["outputs_time"])


def test_checkpoint_file(fixture, tmp_path):
    tensors, metadata = fixture
    _, state = load(tensors, metadata)
    torch.save(state, tmp_path / "checkpoint.pth")
    model = load_reference_checkpoint(
        tmp_path / "checkpoint.pth", tensors["prototypes"], lora_alpha=float(metadata["lora_alpha"])
    )
    assert_close("outputs_time", model(tensors["x"]).prediction_outputs, tensors["outputs_time"])


def test_every_reference_weight_has_a_name_here(fixture):
    tensors, _ = fixture
    keys = {key.removeprefix("state_dict.") for key in tensors if key.startswith("state_dict.")}
    unnamed = {key for key in keys - set(reference_names(keys)) if not re.search(r"wte|gpt2_text|in_proj", key)}
    assert not unnamed
