"""Where a run is written, and what it resumes from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tiny import random_backbone, write_series
from torch.distributed import DistError
from training.distributed_cases import train

from llata_fast.durable import write_manifest
from llata_fast.errors import InputError, RankInputError
from llata_fast.training.arguments import parse_arguments
from llata_fast.training.resuming import begin, claimed_run, reading


def settled(*argv):
    """(output_dir, resume_from_checkpoint) for a run on the default series."""
    model, data, training = parse_arguments(list(argv))
    with claimed_run(model, data, training) as claim:
        assert str(claim.folder) == training.output_dir
        return training.output_dir, training.resume_from_checkpoint


def checkpoint(run, step, best=None):
    path = Path(run, f"checkpoint-{step}")
    path.mkdir(parents=True)
    state = {"best_metric": best and 0.5, "best_global_step": best}
    state["stateful_callbacks"] = {"best_checkpoint": best and f"checkpoint-{best}"}
    (path / "trainer_state.json").write_text(json.dumps(state))
    write_manifest(path)
    return path


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A working directory that contains two started runs on the default series."""
    monkeypatch.chdir(tmp_path)
    for name in ("Metro-336-96", "Metro-336-96-2"):
        checkpoint(tmp_path / "runs" / name, 5)


def test_every_run_gets_a_new_folder(runs, tmp_path):
    assert settled() == ("runs/Metro-336-96-3", None)
    # one run was interrupted
    (tmp_path / "runs" / "Metro-336-96-3").mkdir()
    (tmp_path / "runs" / "Metro-336-96-3" / "model.safetensors").touch()
    assert settled() == ("runs/Metro-336-96-4", None)
    with pytest.raises(InputError, match="Metro-336-96-3 already holds a run"):
        settled("--output_dir", "runs/Metro-336-96-3")


def test_simultaneous_trainings_have_different_folders(runs, tmp_path):
    """While the other lives, the default folder takes the next number, and a named folder is refused."""
    script = "import sys; from llata_fast.run_folder import RunFolder\n"
    script += "with RunFolder(sys.argv[1]).claimed(): print('held', flush=True), sys.stdin.read()"
    argv = [sys.executable, "-c", script, "runs/Metro-336-96-3"]
    other = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    assert settled() == ("runs/Metro-336-96-4", None)
    with pytest.raises(InputError, match="Metro-336-96-3 is in use by another training"):
        settled("--output_dir", "runs/Metro-336-96-3")
    other.kill()
    other.wait()
    assert settled() == ("runs/Metro-336-96-3", None)


def test_a_resumed_run_continues_in_its_folder(runs):
    last = "runs/Metro-336-96-2"
    assert settled("--resume_from_checkpoint", "last") == (last, f"{last}/checkpoint-5")
    first = "runs/Metro-336-96"
    assert settled("--resume_from_checkpoint", f"{first}/checkpoint-5") == (first, f"{first}/checkpoint-5")
    elsewhere = settled("--resume_from_checkpoint", f"{first}/checkpoint-5", "--output_dir", "elsewhere")
    assert elsewhere == ("elsewhere", f"{first}/checkpoint-5")
    for path in ("runs/absent", ""):
        with pytest.raises(InputError, match="no checkpoint at (runs/absent|an empty path)"):
            settled("--resume_from_checkpoint", path)


def test_a_half_written_checkpoint_is_passed_over(runs, tmp_path):
    run = tmp_path / "runs" / "Metro-336-96-2"
    (run / "checkpoint-10").mkdir()
    assert settled("--resume_from_checkpoint", "last")[1] == "runs/Metro-336-96-2/checkpoint-5"
    with pytest.raises(InputError, match="not written to the end"):
        settled("--resume_from_checkpoint", str(run / "checkpoint-10"))
    (run / "checkpoint-5" / "trainer_state.json").unlink()
    with pytest.raises(InputError, match="holds no complete checkpoint"):
        settled("--resume_from_checkpoint", "last")


def test_the_best_checkpoint_is_the_runs_own(runs, tmp_path):
    """A copied run uses its own; a run resumed in another folder copies it; without it nothing is trained."""
    for name in ("Metro-336-96", "copy"):
        checkpoint(tmp_path / "runs" / name, 7, best=6)
    resume = ("--resume_from_checkpoint", "runs/copy/checkpoint-7")
    with pytest.raises(InputError, match="runs/copy lacks checkpoint-6, the best checkpoint up to checkpoint-7"):
        settled(*resume)
    assert settled(*resume, "--load_best_model_at_end", "false") == ("runs/copy", "runs/copy/checkpoint-7")
    best = checkpoint(tmp_path / "runs" / "copy", 6)
    assert settled(*resume) == ("runs/copy", "runs/copy/checkpoint-7")
    settings = parse_arguments([*resume, "--output_dir", "elsewhere"])
    with claimed_run(*settings) as claim:
        begin(claim, settings[2], {})
    (best / "trainer_state.json").unlink()
    assert settled(*resume, "--output_dir", "elsewhere") == ("elsewhere", "runs/copy/checkpoint-7")
    with pytest.raises(InputError, match="runs/copy lacks checkpoint-6"):
        settled(*resume)


def test_an_overwritten_run_leaves_nothing(tmp_path, plain_ops):
    """Otherwise this run could resume from the old run's checkpoint."""
    settings = {"backbone": random_backbone(tmp_path), "num_layers": 1, "num_prototypes": 9, "intermediate_size": 20}
    settings |= {"dataset": write_series(tmp_path / "series.csv"), "context_length": 12, "prediction_length": 6}
    settings |= {"batch_size": 8, "max_steps": 1, "use_cpu": True, "precision": "fp32", "report_to": "none"}
    settings |= {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 1, "output_dir": tmp_path / "run"}

    def checkpoints(**more):
        train([f"--{name}={value}" for name, value in (settings | more).items()])
        return [path.name for path in (tmp_path / "run").glob("checkpoint-*")]

    assert checkpoints() == ["checkpoint-1"]
    assert checkpoints(overwrite_output_dir=True, save_strategy="no") == []


@pytest.mark.parametrize("kind", [KeyError, TypeError, ZeroDivisionError, RuntimeError, SafetensorError, EOFError])
def test_what_no_training_has_written_ends_in_one_line(kind):
    """Whoever made the checkpoint also wrote its manifest."""
    with pytest.raises(RankInputError, match=f"cannot resume from .*checkpoint-1, because.*{kind.__name__}: .?what"):
        with reading("checkpoint-1", trust=False):
            raise kind("what")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), DistError("lost"), KeyboardInterrupt()])
def test_other_errors_are_not_blamed_on_the_checkpoint(error):
    with pytest.raises(type(error)), reading("checkpoint-1", trust=False):
        raise error
    # errors without a checkpoint are not caught either
    with pytest.raises(KeyError), reading(None, trust=False):
        raise KeyError("what")
