"""Kills, damage, moves and full disks: a resumed run ends with the weights of an uninterrupted one."""

import json
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_SETTINGS, random_backbone, write_series
from training.distributed_cases import train

from llata_fast import durable
from llata_fast.durable import find_damage, write_manifest
from llata_fast.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("plain_ops")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return TINY_SETTINGS | {
        "dataset": write_series(folder / "series.csv"),
        "backbone": random_backbone(folder),
        "context_length": 12,
        "prediction_length": 5,
        "batch_size": 8,
        "max_steps": 4,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "average_decay": 0.9,
        "patience": 0,
        "learning_rate": 1e-2,
        # makes an early checkpoint the best
        "greater_is_better": True,
    }


def run(settings, folder, **more):
    train([f"--{name}={value}" for name, value in (settings | {"output_dir": folder} | more).items()])
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """An uninterrupted run and its weights; its best checkpoint is not its last."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llata_fast.kernels._launch.ENABLED", False)
        weights = run(settings, folder, save_total_limit=5)
    best = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())["best_global_step"]
    assert best < 4
    return folder, weights, best


def equal(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(others[name], value) for name, value in weights.items())


class Killed(BaseException):
    """The process is killed here."""


def kill_at(patch, number):
    """Kill at the `number`-th event: a file is synced, a path is renamed, or a folder is deleted."""
    events = []

    def event(original):
        def watched(*args, **kwargs):
            events.append(original)
            if len(events) == number:
                raise Killed
            return original(*args, **kwargs)

        return watched

    patch.setattr(durable, "sync", event(durable.sync))
    patch.setattr(durable.Path, "replace", event(durable.Path.replace))
    patch.setattr(durable.shutil, "rmtree", event(durable.shutil.rmtree))
    return events


@pytest.mark.parametrize("number", [8, 34])
def test_a_kill_while_writing_changes_nothing(settings, whole, tmp_path, number):
    """At most two checkpoints are kept: the newest is half-written or the previous one half-deleted."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, number)
        run(settings, tmp_path / "run")
    try:
        RunFolder(tmp_path / "run").last_checkpoint()
        resume = {"resume_from_checkpoint": "last"}
    except Exception:
        # no checkpoint was complete yet
        assert number <= 20
        resume = {"overwrite_output_dir": True}
    assert equal(run(settings, tmp_path / "run", **resume), whole[1])
    assert not list((tmp_path / "run").glob(".*"))


def copied(whole, tmp_path, *without):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    for name in ("metrics.json", *without):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


@pytest.mark.parametrize("name", ["optimizer.pt", "unaveraged.safetensors"])
def test_an_incomplete_checkpoint_is_named_and_an_older_one_used(settings, whole, tmp_path, capfd, name):
    folder = copied(whole, tmp_path, "model.safetensors", "checkpoint-4")
    (folder / "checkpoint-3" / name).unlink()
    with pytest.raises(SystemExit) as exit:
        run(settings, folder, resume_from_checkpoint=folder / "checkpoint-3")
    assert (
        exit.value.code == 2
        and f"checkpoint-3 is not a complete checkpoint: {name} is missing" in capfd.readouterr().err
    )
    assert equal(run(settings, folder, resume_from_checkpoint="last"), whole[1])
    assert f"checkpoint-3 is skipped: {name} is missing" in capfd.readouterr().out


def test_a_flipped_bit_is_noticed(settings, whole, tmp_path, capfd):
    folder = copied(whole, tmp_path, "model.safetensors", "checkpoint-4")
    path = folder / "checkpoint-3" / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert equal(run(settings, folder, resume_from_checkpoint="last"), whole[1])
    assert "optimizer.pt was changed or damaged" in capfd.readouterr().out


def test_a_moved_run_keeps_its_own_best_weights(settings, whole, tmp_path, capfd):
    """It is resumed at its end, while another run is in the folder where it was trained."""
    folder, weights, best = whole
    moved = copied(whole, tmp_path, "model.safetensors")
    assert equal(run(settings, moved, resume_from_checkpoint="last"), weights)
    assert not equal(load_file(moved / "checkpoint-4" / "model.safetensors"), weights)
    text = (moved / "checkpoint-4" / "trainer_state.json").read_text()
    assert str(folder) not in text and "checkpoint-" in text
    shutil.rmtree(moved / f"checkpoint-{best}")
    (moved / "model.safetensors").unlink()
    with pytest.raises(SystemExit) as exit:
        run(settings, moved, resume_from_checkpoint="last")
    assert (
        exit.value.code == 2
        and f"lacks checkpoint-{best}, the best checkpoint up to checkpoint-4" in capfd.readouterr().err
    )


def test_a_run_resumed_in_another_folder_copies_its_best_checkpoint(settings, whole, tmp_path):
    folder = copied(whole, tmp_path, "model.safetensors", "checkpoint-4")
    elsewhere = tmp_path / "elsewhere"
    assert equal(run(settings, elsewhere, resume_from_checkpoint=folder / "checkpoint-3"), whole[1])
    assert find_damage(elsewhere / f"checkpoint-{whole[2]}") is None


def test_a_checkpoint_without_its_average_resumes_from_its_weights(settings, whole, tmp_path):
    """Averaging may be turned off on resume: training then continues from the weights, not from their average."""
    folder = copied(whole, tmp_path, "model.safetensors", "checkpoint-4")
    plain = run(settings, tmp_path / "plain", average_decay=0, load_best_model_at_end=False)
    resume = {"average_decay": 0, "load_best_model_at_end": False, "resume_from_checkpoint": "last"}
    assert equal(run(settings, folder, **resume), plain)


@pytest.mark.parametrize("kilobytes", [30])
def test_a_file_size_limit_is_one_line(settings, whole, tmp_path, capfd, kilobytes):
    """As with a full disk, older checkpoints stay, half-written files do not, and the run can be resumed."""
    folder = copied(whole, tmp_path, "model.safetensors", "checkpoint-4")
    before = {path.name for path in folder.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, hard))
    try:
        with pytest.raises(SystemExit) as exit:
            run(settings, folder, resume_from_checkpoint="last")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    captured = capfd.readouterr()
    line = captured.err.strip().splitlines()[-1]
    assert exit.value.code == 2 and "Traceback" not in captured.err
    assert line.startswith("train.py: error: ") and str(folder) in line and "too large" in line, line
    assert {path.name for path in folder.iterdir()} == before
    assert equal(run(settings, folder, resume_from_checkpoint="last"), whole[1])


def test_an_output_folder_that_became_a_file_is_one_line(settings, tmp_path, capfd, monkeypatch):
    folder = tmp_path / "run"
    save = durable.settle_folder

    def vanish(*args):
        shutil.rmtree(folder)
        folder.touch()
        save(*args)

    monkeypatch.setattr("llata_fast.training.trainer.settle_folder", vanish)
    with pytest.raises(SystemExit) as exit:
        run(settings, folder)
    assert exit.value.code == 2 and "cannot write" in capfd.readouterr().err


def test_a_checkpoint_without_a_manifest_is_refused(settings, whole, tmp_path, capfd):
    """Older versions wrote no manifest."""
    folder = copied(whole, tmp_path, "model.safetensors")
    for path in folder.glob("checkpoint-*/manifest.json"):
        path.unlink()
    with pytest.raises(SystemExit) as exit:
        run(settings, folder, resume_from_checkpoint="last")
    assert exit.value.code == 2 and "it has no manifest.json" in capfd.readouterr().err
    write_manifest(folder / "checkpoint-4")


def test_another_metric_chooses_the_best_again(settings, whole, tmp_path, capfd):
    """The best value of a metric to maximise is no bound for one to minimise."""
    folder, weights, best = whole
    moved = copied(whole, tmp_path, "model.safetensors")
    log = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    scores = {entry["step"]: entry["eval_mae"] for entry in log if "eval_mae" in entry}
    lowest = min(scores, key=scores.__getitem__)
    assert lowest != best
    again = run(settings, moved, resume_from_checkpoint="last", greater_is_better=False, metric_for_best_model="mae")
    # the share of the learned part is chosen afterwards
    kept, name = load_file(folder / f"checkpoint-{lowest}" / "model.safetensors"), "alignment.text_weight"
    assert torch.equal(again[name], kept[name]) and not torch.equal(again[name], weights[name])
    line = f"the best checkpoint by lowest mae is checkpoint-{lowest}; by highest mse it was checkpoint-{best}"
    assert line in capfd.readouterr().out
    assert RunFolder(moved).read_metrics()["validation"]["step"] == lowest


def test_another_metric_needs_no_best_checkpoint_of_the_first(settings, whole, tmp_path, capfd):
    _, _, best = whole
    moved = copied(whole, tmp_path, "model.safetensors", *(f"checkpoint-{step}" for step in (1, 2, 3)))
    run(settings, moved, resume_from_checkpoint="last", greater_is_better=False)
    assert f"by lowest mse is checkpoint-4; by highest mse it was checkpoint-{best}" in capfd.readouterr().out
