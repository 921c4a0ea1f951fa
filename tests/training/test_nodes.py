"""Two launchers that meet on loopback, like two nodes, train what one process trains."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from safetensors.torch import load_file
from tiny import random_backbone, write_series

STEPS = 3


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    settings = {
        "dataset": write_series(folder / "series.csv", 340),
        "backbone": random_backbone(folder, "llama"),
        "num_layers": 1,
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
        # no linear start, so that only training steps decide
        "recipe": "paper",
        "report_to": "none",
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def outcome(run):
    """Loss and gradient norm of every step, the test errors, and the weights."""
    state = json.loads((run / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    steps = [(entry["loss"], entry["grad_norm"]) for entry in state["log_history"] if "loss" in entry]
    test = json.loads((run / "metrics.json").read_text())["test"]
    return steps, (test["mse"], test["mae"]), load_file(run / "model.safetensors")


@pytest.fixture(scope="module")
def single(launch, flags, tmp_path_factory):
    run = tmp_path_factory.mktemp("single") / "run"
    launch("python", "train.py", *flags, "--output_dir", run)
    return outcome(run)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_nodes_train_what_one_process_trains(launcher, single, launch, flags, free_port, tmp_path):
    run = tmp_path / "run"
    meeting = ["--master_addr", "127.0.0.1", "--master_port", free_port]
    if launcher == "torchrun":
        command, stage = ["torchrun", "--nnodes", 2, "--nproc_per_node", 1, *meeting], []
    else:
        # without ssh the names are never looked up
        hosts = tmp_path / "hostfile"
        hosts.write_text("node-0 slots=1\nnode-1 slots=1\n")
        command = ["deepspeed", "--no_ssh", "--hostfile", hosts, *meeting]
        stage = ["--deepspeed", "ds_configs/zero2.json"]

    def node(rank):
        return launch(*command, "--node_rank", rank, "train.py", *flags, *stage, "--output_dir", run)

    with ThreadPoolExecutor() as pool:
        outputs = list(pool.map(node, range(2)))
    steps, test, weights = outcome(run)
    assert len(steps) == STEPS
    for mine, expected in zip(steps, single[0], strict=True):
        assert mine == pytest.approx(expected, rel=1e-3)
    assert test == pytest.approx(single[1], rel=1e-3)
    assert weights.keys() == single[2].keys()
    for name, expected in single[2].items():
        assert (weights[name] - expected).abs().max() < 1e-3, name
    # only one of them reports
    assert sorted("to forecast:" in output for output in outputs) == [False, True]
