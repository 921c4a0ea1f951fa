"""SIGTERM at any moment of a training, and the run resumed after it."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tiny import training_flags
from training.distributed_cases import train
from transformers import TrainerCallback

from llata_fast.training import stopping
from llata_fast.training.trainer import ForecastTrainer

# with 4 steps per epoch
STEPS = 8


class Sends(TrainerCallback):
    """Sends SIGTERM to this process at an event of a step."""

    def __init__(self, event, step):
        self.step, self.sent = step, False
        setattr(self, str(event), self.send)

    def send(self, args, state, control, **kwargs):
        if state.global_step == self.step and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return training_flags(
        tmp_path_factory.mktemp("stopping"), max_steps=STEPS, dropout=0.2, average_decay=0.5, save_steps=100
    )


@pytest.fixture(autouse=True)
def quick(plain_ops):
    """The ops' references."""


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """The same training without interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llata_fast.kernels._launch.ENABLED", False)
        train([*flags, *EPOCHS, f"--output_dir={run}"])
    return run


EPOCHS = ["--eval_strategy=epoch", "--load_best_model_at_end=false"]


def stopped(monkeypatch, flags, event=None, step=0):
    """Train until SIGTERM, by default before it begins; returns the exit code."""
    init = ForecastTrainer.__init__

    def with_sender(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if event is None:
            os.kill(os.getpid(), signal.SIGTERM)
        self.add_callback(Sends(event, step))

    with monkeypatch.context() as patch:
        patch.setattr(ForecastTrainer, "__init__", with_sender)
        with pytest.raises(SystemExit) as ended:
            train(flags)
    return ended.value.code


def steps(run):
    return sorted(int(path.name.rpartition("-")[2]) for path in run.glob("checkpoint-*"))


def evaluated(run, step):
    state = json.loads((run / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return [(entry["step"], entry["eval_mse"]) for entry in state["log_history"] if "eval_mse" in entry]


@pytest.mark.parametrize(
    ("event", "step", "saved"),
    [
        ("on_step_begin", 2, 3),
        ("on_step_end", 2, 3),
        # the epoch's last step, its evaluation, and the start of the next epoch
        ("on_step_begin", 3, 4),
        ("on_prediction_step", 4, 4),
        ("on_epoch_begin", 4, 5),
        ("on_step_begin", STEPS - 1, STEPS),
    ],
)
def test_a_stopped_training_resumes_to_the_same_weights(event, step, saved, flags, whole, monkeypatch, tmp_path, capfd):
    run = tmp_path / "run"
    arguments = [*flags, *EPOCHS, f"--output_dir={run}"]
    assert stopped(monkeypatch, arguments, event, step) == 0
    # a signal after the callback that checks for it takes effect in the next step
    assert steps(run) == [saved]
    assert (
        f"stopped at step {saved}; resume with --resume_from_checkpoint {run / f'checkpoint-{saved}'}"
        in capfd.readouterr().out
    )
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    train([*arguments, "--resume_from_checkpoint=last"])
    mine, expected = (load_file(folder / "model.safetensors") for folder in (run, whole))
    assert mine.keys() == expected.keys()
    assert all(torch.equal(mine[name], expected[name]) for name in expected)
    assert (
        json.loads((run / "metrics.json").read_text())["test"]
        == json.loads((whole / "metrics.json").read_text())["test"]
    )


def test_before_the_first_step_nothing_is_saved(flags, monkeypatch, tmp_path, capfd):
    assert stopped(monkeypatch, [*flags, *EPOCHS, f"--output_dir={tmp_path / 'run'}"]) == 0
    assert "stopped; nothing to resume from" in capfd.readouterr().out
    assert not steps(tmp_path / "run")


def test_a_long_evaluation_is_interrupted(flags, monkeypatch, tmp_path, capfd):
    """A checkpoint needs its evaluation's score, so the previous checkpoint remains."""
    monkeypatch.setattr(stopping, "_EVALUATION_SECONDS", -1)
    flags = [*flags, "--eval_strategy=steps", "--eval_steps=3", "--save_steps=3", "--per_device_eval_batch_size=1"]
    assert stopped(monkeypatch, [*flags, f"--output_dir={tmp_path / 'run'}"], "on_prediction_step", 6) == 0
    assert steps(tmp_path / "run") == [3] and evaluated(tmp_path / "run", 3)
    assert "checkpoint-3\n" in capfd.readouterr().out


@pytest.fixture
def listening():
    """Restore Ctrl-C, which Python ignores if it was started that way, as in a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_ctrl_c_names_an_existing_checkpoint(flags, monkeypatch, tmp_path, capfd):
    for save_steps, promise in ((100, "interrupted; nothing to resume from"), (2, "checkpoint-2")):
        monkeypatch.setattr(os, "kill", lambda *_: signal.raise_signal(signal.SIGINT))
        arguments = [*flags, *EPOCHS, f"--save_steps={save_steps}", f"--output_dir={tmp_path / str(save_steps)}"]
        assert stopped(monkeypatch, arguments, "on_step_end", 2 if save_steps > 2 else 3) == 130
        assert promise in capfd.readouterr().err


ORPHAN = """
import os, sys, time
import llata_fast
from llata_fast.training.stopping import stopping_on_sigterm

with stopping_on_sigterm():
    print("ready", os.getpid(), flush=True)
    time.sleep(300)
"""


def test_ranks_stop_when_their_launcher_dies():
    """A launcher that is killed forwards no signal."""
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ORPHAN!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", launcher], env=os.environ | {"LOCAL_RANK": "0"}, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline().startswith("ready")
        process.kill()
        # the pipe closes when the rank ends
        assert "stopped; nothing to resume from" in process.stdout.read()
