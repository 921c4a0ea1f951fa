"""Speed in the log and metrics.json: counts all ranks and accumulation steps, timed where the host waits anyway."""

import json
import runpy
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import TINY_SETTINGS, random_backbone, tiny_model, write_series

from llata_fast.planning.flops import count_flops
from llata_fast.training import throughput
from llata_fast.training.throughput import ThroughputCallback, matmul_rate, memory_hint, micro_step_flops

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.usefixtures("plain_ops")


class Control:
    def __init__(self, stops):
        self.should_evaluate = self.should_save = stops


@pytest.fixture
def clock(monkeypatch):
    """`clock.now` is the time."""

    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(throughput.time, "perf_counter", clock)
    return clock


def test_figures_over_ranks_accumulation_and_pauses(clock):
    callback = ThroughputCallback(
        torch.device("cpu"), num_ranks=4, tokens_per_window=7, flops_per_window=10.0, peak_flops=100.0
    )
    micro_batches = [{"past_values": torch.zeros(3, 1)}] * 2

    def get():
        clock.now += 0.25
        return micro_batches, None

    def step(stops=False):
        assert callback.fetch(get)[0] is micro_batches
        clock.now += 1.0
        callback.on_step_end(None, None, Control(stops))

    step()
    assert callback.report() == {}
    step()
    step(stops=True)
    # an evaluation
    clock.now += 1000.0
    step()
    figures = callback.report()
    # 24 windows per step: 2 micro-batches of 3 on 4 ranks
    assert figures["windows_per_s"] == pytest.approx(24 / 1.25)
    assert figures["tokens_per_s"] == pytest.approx(7 * 24 / 1.25)
    assert figures["step_ms"] == pytest.approx(1250)
    assert figures["data_wait_ms"] == pytest.approx(250)
    assert figures["mfu"] == pytest.approx(24 / 1.25 * 10 / (4 * 100))
    assert 50 < figures["peak_memory_mib"] < 1e5
    assert callback.report() == {}
    clock.now += 1000.0
    step()
    assert callback.report()["step_ms"] == pytest.approx(1250)
    assert callback.summary()["step_ms"] == pytest.approx(1250)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("sizes", [{}, {"patch_length": 4, "patch_stride": 4}], ids=["variates", "patches"])
def test_flops_match_a_real_micro_step(tmp_path, family, sizes):
    model = tiny_model(random_backbone(tmp_path, family), **sizes)
    past, future = torch.randn(4, 12, 3), torch.randn(4, 5, 3)
    state = torch.get_rng_state()
    counted = micro_step_flops(model, 4, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert counted == pytest.approx(count_flops(lambda: model(past, future).loss.backward()), rel=0.02)
    # a trained backbone would add FLOPs for weight gradients
    model.requires_grad_(True)
    assert count_flops(lambda: model(past, future).loss.backward()) > 1.02 * counted


def test_flops_do_not_depend_on_the_losses(tmp_path):
    backbone = random_backbone(tmp_path)
    usual = tiny_model(backbone)
    short_term = tiny_model(backbone, task_loss="smape", consistency_loss="mase")
    assert micro_step_flops(short_term, 4, 3) == micro_step_flops(usual, 4, 3) > 0


def test_matmul_rate_is_quick_and_uses_no_random_numbers():
    state, start = torch.get_rng_state(), time.perf_counter()
    rate = matmul_rate(torch.device("cpu"), torch.float32)
    assert time.perf_counter() - start < 2
    assert 1e8 < rate < 1e14
    assert torch.equal(torch.get_rng_state(), state)


def train(*argv):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *map(str, argv)])
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


@pytest.fixture
def arguments(tmp_path):
    settings = TINY_SETTINGS | {
        "dataset": write_series(tmp_path / "series.csv"),
        "output_dir": tmp_path / "run",
        "backbone": random_backbone(tmp_path),
        "context_length": 12,
        "prediction_length": 5,
        "batch_size": 16,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "logging_steps": 3,
    }
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def test_a_run_logs_and_saves_them(arguments, tmp_path):
    train(*arguments, "--save_strategy", "steps", "--save_steps", 6, "--eval_strategy", "no")
    names = {"windows_per_s", "tokens_per_s", "step_ms", "data_wait_ms", "peak_memory_mib", "mfu"}
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())["speed"]
    state = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())
    logs = [entry for entry in state["log_history"] if "loss" in entry]
    for figures in (kept, *logs):
        assert names <= figures.keys()
        # 16 windows per step, for any number of accumulation steps
        assert figures["windows_per_s"] * figures["step_ms"] / 1e3 == pytest.approx(16)
        assert figures["tokens_per_s"] == pytest.approx(3 * figures["windows_per_s"])
        assert 0 < figures["mfu"] < 1


def test_out_of_memory_is_one_line(arguments, capfd, monkeypatch):
    def forward(self, *args, **kwargs):
        # any rank may be the one that runs out of memory
        monkeypatch.setenv("LOCAL_RANK", "1")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")

    monkeypatch.setattr("llata_fast.training.trainer.ForecastTrainer.compute_loss", forward)
    with pytest.raises(SystemExit) as exit:
        train(*arguments)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert exit.value.code == 2
    assert "CUDA out of memory: raise --gradient_accumulation_steps" in line
    assert memory_hint(torch.OutOfMemoryError("CUDA out of memory. x")).count("\n") == 0
