"""A run's folder: files are read as written, damaged ones are refused by name, and one process at a time holds it."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from llata_fast.durable import find_damage, write_manifest
from llata_fast.errors import InputError
from llata_fast.preprocessor import Preprocessor
from llata_fast.run_folder import RunFolder, numbered_folders

KNOWN = Preprocessor("series.csv", ["a", "b"], "date", "h", 24, [1.0, -2.0], [0.5, 3.0])


@pytest.fixture
def folder(tmp_path):
    """A finished run whose model cannot be loaded."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    for name in ("config.json", "model.safetensors"):
        (run / name).write_text(name)
    run.write_settings({"seed": 1, "columns": None})
    run.write_preprocessor(KNOWN)
    run.finish()
    return run


def checkpoint(run, step):
    path = run / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_text(str(step))
    write_manifest(path)
    return path


def test_files_are_read_as_written(folder):
    assert folder.read_settings() == {"seed": 1, "columns": None}
    assert folder.read_preprocessor() == KNOWN
    folder.check_finished()
    target = RunFolder(folder.path.parent / "merged")
    target.path.mkdir()
    (target / "config.json").write_text("config.json")
    folder.copy_description(target)
    target.check_finished()
    assert (target.read_settings(), target.read_preprocessor()) == (folder.read_settings(), KNOWN)


@pytest.mark.parametrize("name", ["run.yaml", "preprocessor_config.json", "config.json", "model.safetensors"])
def test_every_file_that_a_forecast_needs_is_vouched_for(folder, name):
    (folder / name).write_text((folder / name).read_text()[::-1])
    with pytest.raises(InputError, match=f"is damaged: {name} was changed or damaged"):
        folder.check_finished()
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        folder.check_finished()


def test_a_rewritten_run_is_unfinished_until_complete(folder):
    partial = folder.path / ".model.partial"
    partial.mkdir()
    for name in ("config.json", "model-1-of-2.safetensors"):
        (partial / name).write_text("new")
    folder.write_metrics({})
    folder.take_model(partial)
    with pytest.raises(InputError, match="was not written to the end"):
        folder.check_finished()
    folder.finish()
    folder.check_finished()
    assert {path.name for path in folder.path.iterdir()} == {
        "config.json",
        "manifest.json",
        "model-1-of-2.safetensors",
        "preprocessor_config.json",
        "run.yaml",
    }


def test_a_run_of_the_previous_version_is_read(folder):
    (folder / "series.json").write_text(json.dumps(asdict(KNOWN)))
    for name in ("preprocessor_config.json", "manifest.json"):
        (folder / name).unlink()
    folder.check_finished()
    assert folder.read_preprocessor() == KNOWN


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"scale": [0.5, 0.0]}, "scale must be above 0"),
        ({"scale": [0.5, -1.0]}, "scale must be above 0"),
        ({"scale": [0.5]}, "scale must hold a finite number for each of the 2 columns"),
        ({"mean": [1.0, math.nan]}, "mean must hold a finite number"),
        ({"mean": [1.0, math.inf]}, "mean must hold a finite number"),
        ({"mean": [1.0, "2"]}, "mean must hold a finite number"),
        ({"mean": [1.0, True]}, "mean must hold a finite number"),
        ({"mean": {}}, "mean must hold a finite number"),
        ({"columns": "ab"}, "columns must be a list of names"),
        ({"columns": ["a", 2]}, "columns must be a list of names"),
        ({"seasonality": 0}, "seasonality must be a whole number"),
        ({"seasonality": 1.5}, "seasonality must be a whole number"),
        ({"frequency": None}, "frequency must be a string"),
    ],
)
def test_invalid_units_are_refused(folder, changes, words):
    (folder / "preprocessor_config.json").write_text(json.dumps(asdict(KNOWN) | changes))
    with pytest.raises(InputError, match=f"preprocessor_config.json is damaged: {words}"):
        folder.read_preprocessor()


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '{"mean": []}', "null", '"text"', "\udcff"])
def test_an_invalid_preprocessor_is_refused(folder, text):
    (folder / "preprocessor_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="preprocessor_config.json is damaged"):
        folder.read_preprocessor()


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "a: b: c", "1: 2", "text", "\udcff", "a: !!python/name:os.system"])
def test_invalid_settings_are_refused(folder, text):
    (folder / "run.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="cannot read the run's settings .*run.yaml"):
        folder.read_settings()


def test_scores_are_valid_json_even_if_not_finite(folder):
    scores = {"test": {"mse": math.nan, "per_channel": {"a": {"mse": math.inf}}}, "parameters": {"trained": 3}}
    folder.write_metrics(scores)
    read = folder.read_metrics()
    assert read == {
        "version": 2,
        "test": {"mse": None, "per_channel": {"a": {"mse": None}}},
        "parameters": {"trained": 3},
    }
    (folder / "metrics.json").write_text(json.dumps(scores["parameters"]))
    with pytest.raises(InputError, match="version 1, but this llata_fast reads version 2: train again"):
        folder.read_metrics()
    for text in ("[]", "{", ""):
        (folder / "metrics.json").write_text(text)
        with pytest.raises(InputError, match="metrics.json"):
            folder.read_metrics()


def test_the_last_checkpoint_is_the_last_complete_one(folder):
    with pytest.raises(InputError, match="holds no complete checkpoint"):
        folder.last_checkpoint()
    paths = [checkpoint(folder, step) for step in (5, 10, 20)]
    assert folder.last_checkpoint() == (paths[2], [])
    (paths[2] / "weights").unlink()
    (paths[1] / "manifest.json").unlink()
    path, passed_over = folder.last_checkpoint()
    assert path == paths[0]
    assert {line.rpartition("/")[2] for line in passed_over} == {
        "checkpoint-20 is skipped: weights is missing",
        "checkpoint-10 is skipped: it has no manifest.json: it was not written to the end",
    }
    (paths[0] / "weights").write_text("6")
    with pytest.raises(
        InputError, match="holds no complete checkpoint to resume from .*checkpoint-10: it has no manifest"
    ):
        folder.last_checkpoint()


def test_the_last_checkpoint_is_the_one_written_last(folder):
    """Training does not resume from a later step that an earlier training left behind."""
    stale, fresh = checkpoint(folder, 20), checkpoint(folder, 5)
    assert folder.checkpoints() == [stale, fresh] and folder.last_checkpoint().path == fresh


@pytest.mark.parametrize(
    "limit, best, left",
    [
        (1, None, [20]),
        (2, None, [10, 20]),
        (1, 5, [5, 20]),
        (2, 5, [5, 20]),
        (3, 5, [5, 10, 20]),
        (None, 5, [5, 10, 20]),
    ],
)
def test_rotation_spares_the_best_and_the_last(folder, limit, best, left):
    for step in (5, 10, 20):
        checkpoint(folder, step)
    folder.rotate(limit, best and f"checkpoint-{best}")
    assert sorted(int(path.name.rpartition("-")[2]) for path in folder.path.glob("*checkpoint*")) == left


def test_an_overwritten_run_leaves_nothing(folder):
    checkpoint(folder, 5)
    folder.write_metrics({})
    (folder.path / ".checkpoint-7.partial").mkdir()
    (folder / "notes.txt").touch()
    assert folder.holds_run
    folder.clear()
    assert not folder.holds_run and {path.name for path in folder.path.iterdir()} == {"run.yaml", "notes.txt"}


HOLDER = """
import sys, time
from llata_fast.run_folder import RunFolder
with RunFolder(sys.argv[1]).claimed():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_process_holds_its_folder_until_it_dies(holder, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InputError, match="is in use by another training"), folder.claimed():
        pass
    # nobody holds a copy
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / ".lock").touch()
    with RunFolder(tmp_path / "copy").claimed():
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with folder.claimed():
        assert (folder / ".lock").exists()
    assert not (folder / ".lock").exists()


def test_a_claim_without_a_training_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="no backbone"), RunFolder(tmp_path / "runs" / "new").claimed():
        raise InputError("no backbone")
    assert list(tmp_path.iterdir()) == []
    with RunFolder(tmp_path / "runs" / "new").claimed():
        (tmp_path / "runs" / "new" / "run.yaml").touch()
    assert [path.name for path in (tmp_path / "runs" / "new").iterdir()] == ["run.yaml"]


def test_only_one_of_many_processes_gets_the_folder(tmp_path):
    """Six processes claim a folder again and again: never two at the same time."""
    script = """
import os, sys
from llata_fast.errors import InputError
from llata_fast.run_folder import RunFolder
folder = RunFolder(sys.argv[1])
for _ in range(60):
    try:
        with folder.claimed():
            os.close(os.open(sys.argv[2], os.O_CREAT | os.O_EXCL))
            os.unlink(sys.argv[2])
    except InputError:
        pass
"""
    argv = [sys.executable, "-c", script, tmp_path / "run", tmp_path / "inside"]
    processes = [subprocess.Popen(argv) for _ in range(6)]
    assert [process.wait() for process in processes] == [0] * 6
    assert not (tmp_path / "run" / ".lock").exists()


def test_numbered_folders(tmp_path):
    stem = tmp_path / "Metro-336-96"
    for name in ("Metro-336-96", "Metro-336-96-2", "Metro-336-96-4"):
        (tmp_path / name).mkdir()
    assert [folder.path.name for folder in numbered_folders(stem)] == ["Metro-336-96", "Metro-336-96-2"]
    names = [folder.path.name for folder, _ in zip(numbered_folders(stem, existing=False), range(4), strict=False)]
    assert names[2:] == ["Metro-336-96-3", "Metro-336-96-4"]


def test_nothing_heavy_is_imported():
    script = "import sys, llata_fast.run_folder; print(*{'torch', 'transformers', 'pandas'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "\n"


def test_a_replaced_preprocessor_is_another_run(folder):
    folder.write_preprocessor(replace(KNOWN, dataset="Metro"))
    assert find_damage(folder.path) is not None
    folder.finish()
    assert folder.read_preprocessor().dataset == "Metro" and find_damage(folder.path) is None


def test_settings_and_scores_that_no_training_wrote_end_in_one_line(tmp_path):
    folder = RunFolder(tmp_path)
    for use in (lambda: {}["num_layers"], lambda: "0".items(), lambda: f"{'x':,}", lambda: 100 * None):
        with (
            pytest.raises(InputError, match=r"run\.yaml.*metrics\.json is not as a training writes it"),
            folder.as_written(),
        ):
            use()
    # errors in writing the result are not the run's
    with pytest.raises(OSError, match="full"), folder.as_written():
        raise OSError("full")
