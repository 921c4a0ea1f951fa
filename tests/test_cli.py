"""Both programs as a user sees them: how they answer bad input."""

import json
import logging
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from programs import ROWS, H, L, evaluate, finished_run, llata_fast, make_table, tiny_run, train, write
from tiny import random_backbone

from llata_fast.__main__ import command_parser
from llata_fast.cli import one_line_errors, show_log
from llata_fast.commands import COMMANDS
from llata_fast.errors import InputError, RankInputError
from llata_fast.forecasting import pictures
from llata_fast.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("plain_ops_throughout", "no_data_folder")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return random_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, backbone, plain_ops_throughout):
    return finished_run(tmp_path_factory.mktemp("trained"), backbone)


def contents(*folders):
    """The bytes of every file, and the names of all folders."""
    paths = [path for folder in folders for path in Path(folder).rglob("*")]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def refused(run, tmp_path, monkeypatch, capfd):
    """`refused(program, *argv)` returns the one line on stderr of a program that exits with 2 and writes nothing."""
    monkeypatch.chdir(tmp_path)

    def call(program, *argv):
        before = contents(tmp_path, run.parent)
        capfd.readouterr()
        with warnings.catch_warnings(record=True) as lines, pytest.raises(SystemExit) as exit:
            program(*argv)
        output = capfd.readouterr()
        assert exit.value.code == 2
        # outside pytest a warning is a line on stderr, too
        assert not lines
        assert output.err.count("\n") == 1 and ": error: " in output.err and not output.out, output
        assert contents(tmp_path, run.parent) == before
        return output.err

    return call


def test_export_overwrites_nothing(refused, run, tmp_path):
    assert "already exists" in refused(llata_fast, "export", run, "--format", "merged", "--output", run)
    argv = ("--format", "merged", "--output", tmp_path / "merged")
    assert "not the folder of a finished run" in refused(llata_fast, "export", tmp_path, *argv)
    assert "holds no DeepSpeed checkpoint" in refused(llata_fast, "reshard", run)


def without_date(table):
    return table.rename(columns={"date": "when"})


def doubled(table):
    table.loc[5, "date"] = table.loc[4, "date"]
    return table


def unsorted(table):
    table.loc[[4, 5], "date"] = table.loc[[5, 4], "date"].to_numpy()
    return table


def with_cell(value):
    def change(table):
        table["load"] = table["load"].astype(object)
        table.loc[10, "load"] = value
        return table

    return change


BAD_SERIES = {
    "no date": (without_date, "line 1: no date column"),
    "doubled": (doubled, "line 7, column 'date': 2024-01-01 04:00:00 is a duplicate of line 6"),
    "unsorted": (unsorted, "line 7, column 'date': 2024-01-01 04:00:00 is earlier"),
    "text": (with_cell("broken"), "line 12, column 'load': 'broken' is not a number"),
    "missing": (with_cell(np.nan), "line 12, column 'load': the value is missing"),
    "infinite": (with_cell(np.inf), "line 12, column 'load': the value is infinite"),
}


@pytest.mark.parametrize("change, words", BAD_SERIES.values(), ids=BAD_SERIES.keys())
def test_bad_series(refused, run, backbone, tmp_path, change, words):
    path = write(tmp_path, change(make_table(100)), "bad.csv")
    for program, *argv in (
        (train, *tiny_run(path, tmp_path / "new", backbone)),
        (llata_fast, "predict", run, "--input", path, "--output", tmp_path / "forecast.csv"),
        (llata_fast, "evaluate", run, "--dataset", path, "--output", tmp_path / "scores.json"),
    ):
        assert f"bad.csv, {words}" in refused(program, *argv)


def test_infinities_are_never_masked(refused, run, backbone, tmp_path):
    path = write(tmp_path, with_cell(-np.inf)(make_table(100)))
    assert "is infinite" in refused(train, *tiny_run(path, tmp_path / "new", backbone, missing="mask"))
    argv = ("--input", path, "--output", tmp_path / "forecast.csv", "--missing", "mask")
    assert "is infinite" in refused(llata_fast, "predict", run, *argv)


def test_short_series(refused, run, backbone, tmp_path):
    path = write(tmp_path, make_table(L - 1), "short.csv")
    too_few = f"rows are too few for context {L} + horizon {H}"
    assert too_few in refused(train, *tiny_run(path, tmp_path / "new", backbone))
    assert too_few in refused(llata_fast, "evaluate", run, "--dataset", path)
    argv = ("--input", path, "--output", tmp_path / "forecast.csv")
    assert f"short has {L - 1} rows, but the context needs {L}" in refused(llata_fast, "predict", run, *argv)
    write(tmp_path, make_table(L), "short.csv")
    llata_fast("predict", run, *argv)
    assert len(pd.read_csv(tmp_path / "forecast.csv")) == H


def test_predict_with_other_channels(refused, run, tmp_path):
    output = tmp_path / "forecast.csv"
    path = write(tmp_path, make_table(60).rename(columns={"share": "part"}), "other.csv")
    argv = ("predict", run, "--input", path, "--output", output)
    assert "other.csv, line 1: no column 'share' among date, load, part, temperature" in refused(llata_fast, *argv)
    message = refused(llata_fast, *argv, "--columns", "load", "part")
    assert "other has 2 channels (load, part)" in message and "on 3 (load, share, temperature)" in message
    # given by name, they become the run's channels in this order
    llata_fast(*argv, "--columns", "load", "part", "temperature")
    assert list(pd.read_csv(output).columns) == ["date", "load", "part", "temperature"]
    output.unlink()
    argv = ("--input", run.parent / "series.csv", "--output", output, "--columns", "load", "wind", "share")
    assert "no column 'wind' among date, load, share, temperature" in refused(llata_fast, "predict", run, *argv)


def test_log_messages_are_shown_once(capsys):
    for _ in range(2):
        show_log()
    log = logging.getLogger("llata_fast.any")
    log.info("step %d of %d", 1, 2)
    log.warning("odd")
    assert capsys.readouterr() == ("step 1 of 2\n", "warning: odd\n")


def test_unknown_dataset(refused, run, backbone, tmp_path):
    for program, *argv in (
        (train, *tiny_run("ETTh9", tmp_path / "new", backbone)),
        (llata_fast, "evaluate", run, "--dataset", "ETTh9"),
    ):
        message = refused(program, *argv)
        assert "unknown dataset 'ETTh9'" in message and "did you mean ETTh" in message
    assert "no such file" in refused(train, *tiny_run(tmp_path / "absent.csv", tmp_path / "new", backbone))
    argv = ("--input", tmp_path / "absent.csv", "--output", tmp_path / "forecast.csv")
    assert "absent.csv: no such file" in refused(llata_fast, "predict", run, *argv)


@pytest.mark.parametrize(
    "source, options, words",
    [
        ("no-such-org/no-such-model", {}, "the hub is unreachable"),
        ("./no/such/folder", {}, "no such file or folder"),
        ("random:eliza", {}, "neither a family (gpt2,"),
        (None, {"num_layers": 4}, "has 3 layers: num_layers must be in 1..3, got 4"),
        (None, {"num_heads": 7}, "num_heads 7 does not divide the backbone's width 48"),
        (None, {"num_prototypes": 48}, "a backbone of width 48 has at most 47"),
    ],
    ids=["hub", "folder", "family", "layers", "heads", "prototypes"],
)
def test_bad_backbone(refused, run, backbone, tmp_path, source, options, words):
    argv = tiny_run(run.parent / "series.csv", tmp_path / "new", source or backbone, **options)
    assert words in refused(train, *argv)


def test_more_tokens_than_positions(refused, run, tmp_path):
    positions = random_backbone(tmp_path, "gpt2", n_positions=2, bos_token_id=0, eos_token_id=0)
    for options in ({}, {"patch_length": 8, "patch_stride": 8}):
        argv = tiny_run(run.parent / "series.csv", tmp_path / "new", positions, **options)
        message = refused(train, *argv)
        assert "3 tokens per sequence" in message and "only 2 positions" in message


def test_checkpointing_without_blocks(refused, run, backbone, tmp_path):
    argv = tiny_run(run.parent / "series.csv", tmp_path / "new", backbone, ablation="no_llm")
    assert "ablation no_llm has no backbone blocks" in refused(train, *argv, "--activation_checkpointing", "true")


def test_output_dir_of_another_run(refused, run, backbone):
    assert "already holds a run" in refused(train, *tiny_run(run.parent / "series.csv", run, backbone))


def test_checkpoint_of_another_model(refused, run, backbone):
    checkpoint = run / "checkpoint-3"
    for name, value in (("num_layers", 1), ("prediction_length", H + 1), ("ablation", "no_llm")):
        argv = tiny_run(run.parent / "series.csv", run, backbone, resume_from_checkpoint=checkpoint, **{name: value})
        message = refused(train, *argv)
        assert f"checkpoint-3 was trained with {name} " in message and f", not {value}" in message


def test_output_that_cannot_be_written(refused, run, tmp_path):
    series = write(tmp_path, make_table(60))
    predict = ("predict", run, "--input", series, "--output")
    for argv in (predict, ("evaluate", run, "--output")):
        assert "no folder" in refused(llata_fast, *argv, tmp_path / "absent" / "file")
        assert "it is a folder" in refused(llata_fast, *argv, tmp_path)
    # --overwrite removes only what a program wrote
    assert "is the input" in refused(llata_fast, *predict, series)
    assert "is the input" in refused(llata_fast, *predict, os.path.relpath(series))
    assert "is the input" in refused(llata_fast, "evaluate", run, "--dataset", series, "--output", series)
    assert ".csv.gz or .parquet" in refused(llata_fast, *predict, tmp_path / "forecast.xlsx")
    for folder in (series, series / "run"):
        argv = tiny_run(run.parent / "series.csv", folder, "random:gpt2")
        assert "series.csv is a file" in refused(train, *argv)
    # the picture would overwrite the forecast
    assert "forecast.png" in refused(llata_fast, *predict, tmp_path / "forecast.png", "--plot")


def test_system_errors_are_one_line(refused, run, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llata_fast.forecasting.table_files.open", full, raising=False)
    argv = ("--input", run.parent / "series.csv", "--output", tmp_path / "forecast.csv")
    assert "No space left" in refused(llata_fast, "predict", run, *argv)


@pytest.mark.parametrize("program", ["train", "predict"])
def test_interrupted(run, backbone, tmp_path, monkeypatch, capfd, program):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    path = run.parent / "series.csv"
    monkeypatch.setattr("llata_fast.training.trainer.ForecastTrainer.train", interrupt)
    monkeypatch.setattr("llata_fast.forecasting.wide.WideForecaster.predict", interrupt)
    with pytest.raises(SystemExit) as exit:
        if program == "train":
            train(*tiny_run(path, tmp_path / "new", backbone))
        else:
            llata_fast("predict", run, "--input", path, "--output", tmp_path / "forecast.csv")
    assert exit.value.code == 130 and "interrupted" in capfd.readouterr().err.splitlines()[-1]


def test_picture_without_matplotlib(refused, run, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "HAS_MATPLOTLIB", False)
    argv = ("--input", run.parent / "series.csv", "--output", tmp_path / "forecast.csv", "--plot")
    assert "matplotlib" in refused(llata_fast, "predict", run, *argv)


def test_folder_without_a_run(refused, run, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (tmp_path / "empty").mkdir()
    argv = ("--input", run.parent / "series.csv", "--output", tmp_path / "forecast.csv")

    def refusals(folder):
        return [refused(llata_fast, "predict", folder, *argv), refused(llata_fast, "evaluate", folder)]

    for folder in ("absent", "empty"):
        for message in refusals(tmp_path / folder):
            assert f"{folder} is not the folder of a finished run" in message
    names = ("preprocessor_config.json", "manifest.json", "run.yaml", "config.json", "calibration.npz")
    for name in (*names, "model.safetensors"):
        for message in refusals(broken):
            assert name in message
        (broken / name).write_text("[1,")
        for message in refusals(broken):
            assert str(broken) in message
        (broken / name).write_bytes((run / name).read_bytes())
    llata_fast("predict", broken, *argv)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    """Every option has a help text, and defaults that say nothing are not shown."""
    with pytest.raises(SystemExit) as exit:
        llata_fast(command, "--help")
    assert exit.value.code == 0 and "default: None" not in capsys.readouterr().out
    assert all(action.help for action in command_parser(command)._actions)


def test_wrong_command_lines(refused, run):
    assert "COMMAND" in refused(llata_fast)
    assert "invalid choice: 'forecast' (choose from" in refused(llata_fast, "forecast", run)
    assert "invalid choice: 'predikt': did you mean predict?" in refused(llata_fast, "predikt", run)
    assert "did you mean --input?" in refused(llata_fast, "predict", run, "--imput", "x", "--output", "y")
    assert "--input" in refused(llata_fast, "predict", run)
    # the context is the run's
    assert "--context_length" in refused(llata_fast, "evaluate", run, "--context_length", "12")
    for number in ("0", "-3", "many"):
        assert "--batch_size" in refused(llata_fast, "evaluate", run, "--batch_size", number)


def test_constant_column_trains_with_a_warning(backbone, tmp_path):
    table = make_table()
    table["flat"] = 7.0
    path = write(tmp_path, table)
    with pytest.warns(UserWarning, match="constant in the training rows, scaled by 1: 'flat'"):
        train(*tiny_run(path, tmp_path / "run", backbone))
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["per_channel"]
    assert all(np.isfinite(score["mse"]) for score in scores.values())
    llata_fast("predict", tmp_path / "run", "--input", path, "--output", tmp_path / "forecast.csv")
    assert (pd.read_csv(tmp_path / "forecast.csv")["flat"] - 7).abs().max() < 1


def test_gaps_are_masked_when_asked(backbone, tmp_path, monkeypatch):
    # a run needs no matplotlib
    monkeypatch.setattr(pictures, "HAS_MATPLOTLIB", False)
    table = make_table()
    gaps = np.random.default_rng(1).random((ROWS, 3)) < 0.1
    table[["load", "share", "temperature"]] = table.drop(columns="date").mask(gaps)
    path, run = write(tmp_path, table), tmp_path / "run"
    train(*tiny_run(path, run, backbone, missing="mask"))
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert np.isfinite(test["mse"]) and not (run / "forecast.png").exists()
    # later commands handle gaps as the run did
    assert evaluate(run, tmp_path / "scores.json")["llata"]["mse"] == pytest.approx(test["mse"], rel=1e-5)
    llata_fast("predict", run, "--input", path, "--output", tmp_path / "forecast.csv")
    assert pd.read_csv(tmp_path / "forecast.csv")["load"].between(900, 1100).all()


def test_gaps_are_masked_where_the_runs_dataset_says_so(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    folder = RunFolder(copy)
    folder.write_preprocessor(replace(folder.read_preprocessor(), dataset="Metro"))
    folder.finish()
    path = write(tmp_path, with_cell(np.nan)(make_table(60)))
    llata_fast("predict", copy, "--input", path, "--output", tmp_path / "forecast.csv")
    assert len(pd.read_csv(tmp_path / "forecast.csv")) == H


@pytest.mark.parametrize(("kind", "said"), [(InputError, ""), (RankInputError, "run: error: wrong\n")])
def test_a_rank_says_what_it_alone_may_know(kind, said, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as ended, one_line_errors("run"):
        raise kind("wrong")
    assert ended.value.code == 2 and capsys.readouterr().err == said
