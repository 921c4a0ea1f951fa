"""`deepspeed train.py` on two CPU ranks trains what one process trains at the same global batch."""

import json

import pytest
from safetensors import safe_open
from tiny import random_backbone, write_series

STEPS = 3


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepspeed")
    write_series(folder / "series.csv", 340)
    settings = {
        "dataset": folder / "series.csv",
        "backbone": random_backbone(folder, "llama"),
        "num_layers": 2,
        "num_prototypes": 9,
        "context_length": 12,
        "prediction_length": 6,
        "batch_size": 8,
        "max_steps": STEPS,
        "logging_steps": 1,
        "dropout": 0,
        "lora_dropout": 0,
        "precision": "fp32",
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": STEPS,
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def outcome(run):
    """Loss and gradient norm of each step, the test errors, and the names of the saved weights."""
    state = json.loads((run / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    steps = [(entry["loss"], entry["grad_norm"]) for entry in state["log_history"] if "loss" in entry]
    test = json.loads((run / "metrics.json").read_text())["test"]
    with safe_open(run / "model.safetensors", "pt") as weights:
        shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}
    return steps, (test["mse"], test["mae"]), shapes


@pytest.fixture(scope="module")
def single(launch, flags, tmp_path_factory):
    run = tmp_path_factory.mktemp("single") / "run"
    launch("python", "train.py", *flags, "--output_dir", run)
    return outcome(run)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_two_ranks_train_what_one_trains(stage, single, launch, flags, free_port, tmp_path):
    run = tmp_path / "run"
    ranks = ["--num_gpus", "2", "--master_port", free_port]
    launch("deepspeed", *ranks, "train.py", *flags, "--output_dir", run, "--deepspeed", f"ds_configs/{stage}.json")
    steps, test, shapes = outcome(run)
    assert len(steps) == STEPS
    for mine, expected in zip(steps, single[0], strict=True):
        assert mine == pytest.approx(expected, rel=1e-3)
    # 63 test windows: neither a rank nor a batch may drop or repeat one
    assert test == pytest.approx(single[1], rel=1e-3)
    assert shapes == single[2]
    # ZeRO-3 empties the weights that the prototypes are computed from
    assert shapes["prototypes"] == [9, 48]
