"""Named datasets: lookup, the folders searched for their files, and the download."""

import hashlib
import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from llata_fast.data import DATASETS, cache_dir, get_dataset, locate, read_series, split_windows
from llata_fast.errors import InputError


@pytest.fixture(autouse=True)
def no_data_folders(monkeypatch, tmp_path):
    """Unset LLATA_DATA and use an empty cache."""
    monkeypatch.delenv("LLATA_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def hosted(tmp_path):
    """ETTh1's registry row with the address of a local server, whose file contains the text "hosted"."""
    file = tmp_path / "hosted.csv"
    file.write_text("hosted")
    return replace(DATASETS["ETTh1"], url=file.as_uri(), sha256=hashlib.sha256(b"hosted").hexdigest())


def test_names():
    assert set(DATASETS) == set("ETTh1 ETTh2 ETTm1 ETTm2 Weather ECL Traffic Exchange ILI Metro EIA".split())
    for name, spec in DATASETS.items():
        assert spec.name == name
        assert get_dataset(name.upper()) is get_dataset(name.lower()) is spec
        assert (spec.url is None) == (spec.sha256 is None)
        assert spec.sha256 is None or len(bytes.fromhex(spec.sha256)) == 32


def test_ett_borders():
    assert DATASETS["ETTh1"].split_rows == (8640, 2880, 2880)
    assert DATASETS["ETTm2"].split_rows == (34560, 11520, 11520)


def test_unknown_name_lists_names_and_near_ones():
    with pytest.raises(InputError, match=r"unknown dataset 'ETT-h1'.*Metro.*did you mean ETTh1") as caught:
        read_series("ETT-h1")
    assert "\n" not in str(caught.value)


def test_folders_in_order(tmp_path, monkeypatch):
    spec = replace(DATASETS["ETTh1"], url=None, sha256=None)

    def put(folder):
        path = folder / spec.file
        path.parent.mkdir(parents=True)
        path.touch()
        return path

    with pytest.raises(InputError, match=r"ETTh1: no file ETT-small/ETTh1.csv in .*zhouhaoyi/ETDataset"):
        locate(spec)
    cached = put(cache_dir())
    assert locate(spec) == cached
    from_environment = put(tmp_path / "environment")
    monkeypatch.setenv("LLATA_DATA", str(tmp_path / "environment"))
    assert locate(spec) == from_environment
    asked_for = put(tmp_path / "asked_for")
    assert locate(spec, tmp_path / "asked_for") == asked_for
    assert locate(spec, asked_for.parent) == asked_for
    with pytest.raises(InputError, match="nowhere is not a folder"):
        locate(spec, tmp_path / "nowhere")


def test_download_goes_to_the_cache_once(hosted, tmp_path, capfd):
    path = locate(hosted)
    assert path == cache_dir() / "ETT-small/ETTh1.csv"
    assert path.read_text() == "hosted"
    assert "ETTh1.csv" in capfd.readouterr().err, "no progress bar"
    (tmp_path / "hosted.csv").unlink()
    assert locate(hosted) == path


def test_download_with_a_wrong_checksum_leaves_nothing(hosted):
    with pytest.raises(InputError, match=r"SHA-256 is [0-9a-f]{64}, expected 0{64}"):
        locate(replace(hosted, sha256=64 * "0"))
    assert list(cache_dir().rglob("*.*")) == []


def test_unreachable_address_is_one_line(hosted):
    with pytest.raises(InputError, match=r"downloading http://127.0.0.1:9/x failed .*get it from") as caught:
        locate(replace(hosted, url="http://127.0.0.1:9/x"))
    assert "\n" not in str(caught.value)


def test_missing_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="Metro: no file .*pip install --no-deps autots"):
        read_series("Metro")


def test_etth1(shared):
    series = read_series("etth1", data_dir=shared("data"))
    assert series.values.shape == (17420, 7)
    assert (series.name, series.frequency, series.seasonality) == ("ETTh1", "h", 24)
    assert series.columns[-1] == "OT"
    assert str(series.future_dates(1)[0]) == "2018-06-26 20:00:00"
    splits = split_windows(series, 96, 96)
    assert [len(windows) for windows in splits[:3]] == [8449, 2785, 2785]
    subset = read_series("ETTh1", data_dir=shared("data"), columns=["OT", "HUFL"])
    np.testing.assert_array_equal(subset.values, series.values[:, [6, 0]])


def test_exchange_is_headerless_and_daily(shared, monkeypatch):
    monkeypatch.setenv("LLATA_DATA", str(shared("data")))
    series = read_series("Exchange")
    assert series.values.shape == (7588, 8)
    assert series.values[0, 0] == 0.7855
    assert series.frequency == "D"
    assert [str(date.date()) for date in series.dates[[0, -1]]] == ["1990-01-01", "2010-10-10"]
    np.testing.assert_array_equal(read_series("exchange", columns=["SGD"]).values, series.values[:, 7:])
    with pytest.raises(InputError, match="Exchange has no column 'OT' among AUD"):
        read_series("Exchange", columns=["OT"])
    with pytest.raises(InputError, match="Exchange has no date column"):
        read_series("Exchange", date_column="date")


def test_weather_keeps_rows_with_a_duplicated_timestamp(tmp_path):
    lines = ["date,T (degC),OT", "2020-05-12 05:50:00,1,2", "2020-05-12 06:00:00,3,4", "2020-05-12 06:00:00,5,6"]
    (tmp_path / "weather.csv").write_text("\n".join(lines))
    series = read_series("Weather", data_dir=tmp_path)
    np.testing.assert_array_equal(series.values, [[1, 2], [3, 4], [5, 6]])
    assert str(series.future_dates(1)[0]) == "2020-05-12 06:10:00"


def test_metro():
    if importlib.util.find_spec("autots") is None:
        pytest.skip("the package autots, which carries the file, is not installed")
    series = read_series("Metro")
    assert series.values.shape == (17520, 3)
    assert series.columns == ("traffic_volume", "temp", "clouds_all")
    assert (series.frequency, series.seasonality) == ("h", 168)
    missing = np.isnan(series.values)
    assert missing.all(axis=1).sum() == missing.any(axis=1).sum() == 104
    gap_ends = np.flatnonzero(~missing[:, 0])
    assert np.diff(gap_ends).max() - 1 == 9
    with pytest.raises(InputError, match="traffic_hourly.zip, line .*the value is missing, the first of 312"):
        read_series("Metro", missing="error")
