"""Parquet corpora open like Arrow ones, from a copy that is written once."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llata_fast.data.corpus_cache import open_any_corpus
from llata_fast.data.mixture import Mixture, WindowSizes, read_mixture
from llata_fast.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "llata_fast" / "corpora"


def write(path, lengths, channels=1):
    """Write a Parquet file in uni2ts's schema; returns the values [C, T] of its series."""
    rng = np.random.default_rng(len(lengths))
    series = [rng.normal(size=(channels, length)).astype(np.float32) for length in lengths]
    series[0][:, 1] = np.nan
    kind = pa.list_(pa.float32())
    table = {
        "item_id": [f"s{number}" for number in range(len(series))],
        "start": pa.array([pd.Timestamp("2020-01-01")] * len(series), pa.timestamp("s")),
        "freq": ["h"] * len(series),
        "target": pa.array(
            [values[0].tolist() if channels == 1 else values.tolist() for values in series],
            kind if channels == 1 else pa.list_(kind),
        ),
    }
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), path)
    return series


@pytest.mark.parametrize("channels", [1, 3])
def test_values_are_those_of_the_files(tmp_path, channels):
    series = write(tmp_path / "set" / "a.parquet", [20, 7], channels)
    series += write(tmp_path / "set" / "b.parquet", [9, 30, 4], channels)
    corpus = open_any_corpus(tmp_path / "set")
    assert len(corpus) == 5 and (corpus.num_channels == channels).all()
    assert corpus.column("item_id").to_pylist() == ["s0", "s1", "s0", "s1", "s2"]
    for number, values in enumerate(series):
        rows = np.arange(*corpus.first_row[number : number + 2])
        np.testing.assert_array_equal(corpus.gather(rows, np.zeros(channels, int), values.shape[1]), values)


def test_the_copy_is_written_once_and_again_for_changed_content(tmp_path, cache, caplog):
    path = tmp_path / "a.parquet"
    write(path, [20, 7])
    first = open_any_corpus(path)
    assert first.name == str(path) and "Parquet" in caplog.text
    copies = {copy.name: copy.stat().st_mtime_ns for copy in cache.iterdir() if copy.is_dir()}
    caplog.clear()
    assert open_any_corpus(path).fingerprint() == first.fingerprint()
    assert {copy.name: copy.stat().st_mtime_ns for copy in cache.iterdir() if copy.is_dir()} == copies
    assert "Parquet" not in caplog.text
    write(path, [21, 7])
    os.utime(path, ns=(1, 1))
    assert open_any_corpus(path).lengths.tolist() == [21, 7]


def test_several_open_it_at_once(tmp_path, cache):
    write(tmp_path / "a.parquet", [200] * 50)
    with ThreadPoolExecutor(4) as pool:
        found = {corpus.fingerprint() for corpus in pool.map(open_any_corpus, [tmp_path / "a.parquet"] * 4)}
    assert len(found) == 1 and len([copy for copy in cache.iterdir() if copy.is_dir()]) == 1


def test_a_mixture_draws_from_it(tmp_path):
    write(tmp_path / "a.parquet", [60, 70])
    sizes = WindowSizes(context=16, horizon=4, shortest_context=8)
    mixture = Mixture(read_mixture(tmp_path / "a.parquet"), sizes, seed=0)
    assert mixture.batch(0, 8).past.shape == (8, 16, 1)
    assert mixture.description()[0]["corpus"] == "a.parquet"


def test_what_cannot_be_read_or_written_ends_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(InputError, match="damaged"):
        open_any_corpus(tmp_path / "damaged.parquet")
    write(tmp_path / "a.parquet", [20])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written"):
        open_any_corpus(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no such folder"):
        open_any_corpus(tmp_path / "absent.parquet")
