"""A run finds its series and its base from any folder, and refuses any others."""

import shutil

import pandas as pd
import pytest
import torch
from programs import H, llata_fast, make_table, tiny_run, train, write
from safetensors.torch import load_file, save_file
from tiny import random_backbone
from transformers import AutoConfig, AutoModelForCausalLM

from llata_fast.errors import InputError
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.run_folder import RunFolder
from llata_fast.settings import DataSettings, ModelSettings, TrainingSettings


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a series, a base, and a run that names both by relative paths."""
    folder = tmp_path_factory.mktemp("place")
    write(folder, make_table())
    config = AutoConfig.from_pretrained(random_backbone(folder).removeprefix("random:"))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(*tiny_run("series.csv", "run", "base"))
    return folder


@pytest.fixture
def elsewhere(tmp_path, place, monkeypatch):
    """Another folder that contains a base of the same name and shape."""
    shutil.copytree(place / "base", tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    save_file({name: torch.randn_like(tensor) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def forecast(run, folder, *options):
    llata_fast("predict", run, "--input", folder / "series.csv", "--output", "forecast.csv", *options)
    return pd.read_csv("forecast.csv")


def test_from_another_folder(place, elsewhere, capfd, monkeypatch):
    from_there = forecast(place / "run", place)
    monkeypatch.chdir(place)
    pd.testing.assert_frame_equal(from_there, forecast("run", place))
    monkeypatch.chdir(elsewhere)
    llata_fast("evaluate", place / "run")
    assert "test windows" in capfd.readouterr().out


def test_a_moved_base_is_found_by_backbone(place, tmp_path, monkeypatch, capfd):
    moved = tmp_path / "moved"
    shutil.copytree(place, moved)
    settings = RunFolder(moved / "run")
    monkeypatch.chdir(tmp_path)
    expected = forecast(place / "run", place)
    (place / "base").rename(place / "gone")
    try:
        with pytest.raises(SystemExit):
            forecast(settings.path, place)
        message = capfd.readouterr().err
        assert str(place / "base") in message and "--backbone" in message and message.count("\n") == 1
        pd.testing.assert_frame_equal(forecast(settings.path, place, "--backbone", moved / "base"), expected)
        assert len(Forecaster.from_pretrained(settings.path, backbone=str(moved / "base")).info.columns) == 3
    finally:
        (place / "gone").rename(place / "base")


def test_another_base_is_refused(place, elsewhere, capfd):
    with pytest.raises(SystemExit):
        forecast(place / "run", place, "--backbone", "base")
    message = capfd.readouterr().err
    assert "'base' has other weights" in message and message.count("\n") == 1
    with pytest.raises(InputError, match="has other weights"):
        Forecaster.from_pretrained(place / "run", backbone="base")
    # weights changed in place
    path = place / "base" / "model.safetensors"
    kept = path.read_bytes()
    shutil.copy(elsewhere / "base" / "model.safetensors", path)
    try:
        with pytest.raises(InputError, match="has other weights"):
            Forecaster.from_pretrained(place / "run")
    finally:
        path.write_bytes(kept)


def test_a_moved_series_is_found_by_data(place, capfd):
    (place / "series.csv").rename(place / "other.csv")
    try:
        with pytest.raises(SystemExit):
            llata_fast("evaluate", place / "run")
        message = capfd.readouterr().err
        assert str(place / "series.csv") in message and "--dataset" in message
        llata_fast("evaluate", place / "run", "--dataset", place / "other.csv")
    finally:
        (place / "other.csv").rename(place / "series.csv")


def test_a_resumed_run_may_name_its_base_by_another_path(place, elsewhere, capfd):
    train(
        *tiny_run(place / "series.csv", place / "run", place / "base", max_steps=5), "--resume_from_checkpoint", "last"
    )
    assert len(forecast(place / "run", place)) == H
    with pytest.raises(SystemExit):
        train(*tiny_run(place / "series.csv", place / "run", "base", max_steps=7), "--resume_from_checkpoint", "last")
    assert "backbone" in capfd.readouterr().err


def test_the_home_folder_in_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ModelSettings(backbone="~/base").backbone == str(tmp_path / "base")
    data = DataSettings(dataset="~/a.csv", data_dir="~")
    assert (data.dataset, data.data_dir) == (str(tmp_path / "a.csv"), str(tmp_path))
    assert TrainingSettings(output_dir="~/run").output_dir == str(tmp_path / "run")
