"""A training that is no longer finite ends with one line, keeps its last finite weights, and can be replayed."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_SETTINGS, random_backbone, write_series
from training.distributed_cases import train

from llata_fast.__main__ import main
from llata_fast.errors import InputError
from llata_fast.modeling import LlataForPrediction
from llata_fast.training.arguments import parse_arguments
from llata_fast.training.finite import FiniteGuard, check_finite

pytestmark = pytest.mark.usefixtures("plain_ops")


@pytest.fixture
def settings(tmp_path):
    return TINY_SETTINGS | {
        "dataset": write_series(tmp_path / "series.csv"),
        "output_dir": tmp_path / "run",
        "backbone": random_backbone(tmp_path),
        "context_length": 12,
        "prediction_length": 5,
        "batch_size": 8,
        "max_steps": 6,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        # no linear start, so that only training steps decide
        "recipe": "paper",
    }


def run(settings, **more):
    train([f"--{name}={value}" for name, value in (settings | more).items()])


def fails(settings, capfd, **more):
    """The line that the training ends with (exit code 2); it must leave only finite weights."""
    with pytest.raises(SystemExit) as exit:
        run(settings, **more)
    assert exit.value.code == 2
    folder = settings["output_dir"]
    assert not (folder / "model.safetensors").exists()
    for path in folder.rglob("model.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values()), path
    return capfd.readouterr().err.strip().splitlines()[-1]


def losing(monkeypatch, steps, term="task_loss"):
    """Make a term of the loss NaN at these steps, counted from 1."""
    forward, calls = LlataForPrediction.forward, []

    def lost(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        if self.training and not output.loss.is_meta:
            calls.append(None)
            if len(calls) in steps:
                output[term] = output[term] * torch.nan
                output.loss = output.loss + output[term]
        return output

    monkeypatch.setattr(LlataForPrediction, "forward", lost)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"average_decay": 0.9},
        {"gradient_accumulation_steps": 2},
        {"max_grad_norm": 0},
        {"linear_skip": True},
    ],
    ids=["plain", "average", "accumulation", "no clipping", "skip"],
)
def test_a_diverging_training_fails(settings, capfd, options):
    line = fails(settings, capfd, learning_rate=1e30, projection_learning_rate=1e30, weight_decay=0, **options)
    assert "finite" in line or "is inf" in line or "is nan" in line, line


def test_the_step_can_be_replayed(settings, capfd, monkeypatch):
    with monkeypatch.context() as patch:
        losing(patch, {3})
        line = fails(settings, capfd)
    assert "step 3: loss is nan on windows" in line and f"llata-fast replay {settings['output_dir']}" in line
    folder = settings["output_dir"] / "nonfinite"
    report = json.loads((folder / "nonfinite.json").read_text())
    (batch,) = report["batches"]
    assert report["step"] == 3 and len(batch["windows"]) == 8 and batch["terms"]["task_loss"] == "nan"
    # the weights are those before the step, that is in the second step's checkpoint
    before = load_file(settings["output_dir"] / "checkpoint-2" / "model.safetensors")
    kept = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(before[name], value) for name, value in kept.items())
    main(["replay", str(settings["output_dir"])])
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "step 3, rank 0, micro-step 0"
    # the NaN was made outside the model
    values = {}
    for line in lines:
        if ", in training " in line:
            name, _, pair = line.strip().partition(": ")
            values[name] = tuple(map(float, pair.split(", in training ")))
    assert math.isnan(values["loss"][1]) and math.isfinite(values["loss"][0])
    for name in ("consistency_loss", "alignment_loss"):
        assert values[name][0] == pytest.approx(values[name][1], rel=1e-5)
    assert lines[-2:] == [
        "  first module whose output is not finite: none",
        "  parameters whose gradient is not finite: none",
    ]


def test_a_replay_repeats_the_step(settings, capfd):
    """With weights that are too large, their layer is named and the loss is the same."""
    fails(settings, capfd, learning_rate=1e30, projection_learning_rate=1e30, weight_decay=0, max_grad_norm=0)
    main(["replay", str(settings["output_dir"])])
    output = capfd.readouterr().out
    assert "first module whose output is not finite: none" not in output


def test_nothing_to_replay(tmp_path, capfd):
    with pytest.raises(SystemExit) as exit:
        main(["replay", str(tmp_path)])
    assert exit.value.code == 2 and "has no nonfinite/" in capfd.readouterr().err


def test_at_most_the_tolerated_number_of_steps_is_skipped(settings, capfd, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        losing(patch, {2, 4})
        run(settings, skip_nonfinite=2)
    assert "step 2: loss is nan" in caplog.text and "step 4: loss is nan" in caplog.text
    steps = [load_file(settings["output_dir"] / f"checkpoint-{step}" / "model.safetensors") for step in (5, 6)]
    assert any(not torch.equal(steps[0][name], steps[1][name]) for name in steps[0]), "training went on"
    assert json.loads((settings["output_dir"] / "metrics.json").read_text())["test"]["mse"] is not None
    settings["output_dir"] = settings["output_dir"].with_name("again")
    with monkeypatch.context() as patch:
        losing(patch, {2, 4})
        assert "step 4: loss is nan" in fails(settings, capfd, skip_nonfinite=1)


def test_a_skipped_step_changes_nothing(settings, monkeypatch):
    with monkeypatch.context() as patch:
        losing(patch, {3})
        run(settings, skip_nonfinite=1, save_total_limit=6)
    before, after = (load_file(settings["output_dir"] / f"checkpoint-{step}" / "model.safetensors") for step in (2, 3))
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_weights_that_are_not_finite_are_not_saved(settings, capfd, monkeypatch):
    """Whatever made them so."""
    monkeypatch.setattr(FiniteGuard, "_check", lambda *args: True)
    line = fails(settings, capfd, learning_rate=1e38, projection_learning_rate=1e38, max_grad_norm=0)
    assert "is not finite, so nothing is saved" in line


def test_the_weight_is_named():
    with pytest.raises(InputError, match="step 7: b is not finite"):
        check_finite({"a": torch.ones(3), "b": torch.tensor([1.0, torch.inf])}, "step 7")


@pytest.mark.parametrize("name", ["learning_rate", "max_grad_norm", "adam_epsilon", "adam_beta1", "lora_alpha"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_settings_that_are_not_finite_are_refused_by_name(name, value, capsys):
    with pytest.raises((InputError, SystemExit)) as refusal:
        parse_arguments([f"--{name}", value])
    message = str(refusal.value) + capsys.readouterr().err
    assert f"{name} must be" in message
