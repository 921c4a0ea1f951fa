"""Corpora on disk: exchange with other libraries, and windows from memory-mapped values."""

import json
import os
import pickle

import datasets
import numpy as np
import pyarrow as pa
import pytest

from llata_fast.data.corpora import check_frequencies, open_corpus
from llata_fast.data.corpus_builder import build_corpus
from llata_fast.data.corpus_writer import CorpusLayout, CorpusSeries, new_corpus, write_shards
from llata_fast.errors import InputError


def make_series(shapes, seed=0):
    """Random walks with these shapes [C, T], each with a gap."""
    rng = np.random.default_rng(seed)
    for number, shape in enumerate(shapes):
        values = rng.normal(size=shape).cumsum(1).astype(np.float32)
        values[:, shape[1] // 2] = np.nan
        yield CorpusSeries(f"s{number}", np.datetime64("2020-01-01"), ("h", "D")[number % 2], values)


def write(folder, shapes, *, shards=1, seed=0):
    """Write a corpus of random walks in `shards` files; returns the series."""
    series = list(make_series(shapes, seed))
    layout = CorpusLayout(multivariate=any(len(one.target) > 1 for one in series))
    with new_corpus(folder, layout) as partial:
        for shard in range(shards):
            write_shards(partial, f"part{shard}", series[shard::shards] if shards > 1 else series, layout)
    return series


def save_with_datasets(folder, targets, target_type, **columns):
    """The same, written with the library `datasets`."""
    features = datasets.Features(
        item_id=datasets.Value("string"),
        start=datasets.Value("timestamp[s]"),
        freq=datasets.Value("string"),
        target=target_type,
    )
    table = {
        "item_id": [f"s{n}" for n in range(len(targets))],
        "start": [np.datetime64("2020-01-01", "s").item()] * len(targets),
        "freq": ["H"] * len(targets),
        "target": targets,
    }
    datasets.Dataset.from_dict(table | columns, features=features).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("shapes", [[(1, 5), (1, 9)], [(2, 5), (3, 7), (1, 4)]], ids=["univariate", "multivariate"])
def test_datasets_reads_what_we_write(tmp_path, shapes):
    series = write(tmp_path / "corpus", shapes)
    read = datasets.load_from_disk(tmp_path / "corpus").with_format("numpy")
    assert read["item_id"][:].tolist() == [one.item_id for one in series]
    assert str(read.features["start"]) == "Value('timestamp[s]')"
    for row, one in zip(read, series, strict=True):
        expected = one.target if max(len(other.target) for other in series) > 1 else one.target[0]
        np.testing.assert_array_equal(np.stack(row["target"]), expected)


FLOAT = datasets.Value("float32")
LIBRARY_TYPES = {
    "list": (datasets.List(FLOAT), lambda values: values[0].tolist()),
    "float64": (datasets.List(datasets.Value("float64")), lambda values: values[0].tolist()),
    "large_list": (datasets.LargeList(FLOAT), lambda values: values[0].tolist()),
    "list_of_lists": (datasets.List(datasets.List(FLOAT)), lambda values: values.tolist()),
    # how uni2ts writes multivariate datasets
    "fixed_channels": (datasets.List(datasets.List(FLOAT), length=2), lambda values: values.tolist()),
}


@pytest.mark.parametrize("kind", LIBRARY_TYPES)
def test_we_read_what_datasets_writes(tmp_path, kind):
    target_type, as_list = LIBRARY_TYPES[kind]
    series = [one.target for one in make_series([(2, 6), (2, 30), (2, 11)])]
    corpus = open_corpus(save_with_datasets(tmp_path / "d", [as_list(values) for values in series], target_type))
    expected = [row for values in series for row in values[: 2 if "of_lists" in kind or "channels" in kind else 1]]
    assert corpus.lengths.tolist() == [len(row) for row in expected]
    for row, values in enumerate(expected):
        np.testing.assert_array_equal(corpus.gather(np.array([row]), np.array([0]), len(values))[0], values)


@pytest.mark.parametrize("shards", [1, 3])
def test_gather_equals_slicing(tmp_path, shards):
    series = write(tmp_path / "corpus", [(1, length) for length in (1, 7, 50, 3, 200, 64, 2)], shards=shards)
    rows = [one.target[0] for shard in range(shards) for one in series[shard::shards]]
    corpus, rng = open_corpus(tmp_path / "corpus"), np.random.default_rng(1)
    for width in (1, 5, 64, 300, 4096):
        picked = rng.integers(0, len(rows), size=40)
        starts = np.array([rng.integers(-width, len(rows[row]) + 1) for row in picked])
        got = corpus.gather(picked, starts, width)
        for row, start, window in zip(picked, starts, got, strict=True):
            expected = np.full(width, np.nan, dtype=np.float32)
            for step in range(width):
                if 0 <= start + step < len(rows[row]):
                    expected[step] = rows[row][start + step]
            np.testing.assert_array_equal(window, expected)


def test_infinities_of_other_writers_count_as_missing(tmp_path):
    folder = save_with_datasets(tmp_path / "d", [[1.0, np.inf, -np.inf, 2.0]], datasets.List(FLOAT))
    window = open_corpus(folder).gather(np.array([0]), np.array([0]), 4)[0]
    np.testing.assert_array_equal(window, np.array([1, np.nan, np.nan, 2], dtype=np.float32))


def test_info_counts_and_its_hash_ignores_the_number_of_files(tmp_path):
    shapes = [(2, 10), (2, 30), (2, 8)]
    series = write(tmp_path / "one", shapes)
    info = open_corpus(tmp_path / "one").info()
    values = np.concatenate([one.target.ravel() for one in series])
    assert (info.series, info.channels, info.steps, info.shortest, info.longest) == (3, 6, 96, 8, 30)
    assert info.missing == pytest.approx(np.isnan(values).mean())
    assert info.frequencies == {"h": 2, "D": 1}
    assert info.empty_series == 0
    build_corpus([tmp_path / "one"], tmp_path / "two", multivariate=True)
    with new_corpus(tmp_path / "three", CorpusLayout(multivariate=True)) as folder:
        for number, one in enumerate(series):
            write_shards(folder, f"part{number}", [one], CorpusLayout(multivariate=True))
    hashes = [open_corpus(tmp_path / name).info().hash for name in ("two", "three")]
    assert hashes == [info.hash] * 2
    write(tmp_path / "other", shapes, seed=1)
    assert open_corpus(tmp_path / "other").info().hash != info.hash


def test_a_single_split_is_opened_and_one_of_several_must_be_named(tmp_path):
    write(tmp_path / "sets" / "train", [(1, 5)])
    (tmp_path / "sets" / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    assert len(open_corpus(tmp_path / "sets")) == 1
    (tmp_path / "sets" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(InputError, match="several splits"):
        open_corpus(tmp_path / "sets")


class Planted:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_folder_is_executed(tmp_path):
    write(tmp_path / "corpus", [(1, 5)])
    trap = tmp_path / "trap"
    for name in ("state.pkl", "dataset.pickle", "cache.pt"):
        (tmp_path / "corpus" / name).write_bytes(pickle.dumps(Planted(trap)))
    (tmp_path / "corpus" / "corpus.py").write_text(f"import os; os.mkdir({str(trap)!r})")
    open_corpus(tmp_path / "corpus").info()
    build_corpus([tmp_path / "corpus"], tmp_path / "copy")
    assert not trap.exists()


def rewrite(folder, table, **options):
    path = folder / "data-00000-of-00001.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table)


def table_with(**columns):
    good = {
        "item_id": pa.array(["a"]),
        "start": pa.array([0], pa.timestamp("s")),
        "freq": pa.array(["h"]),
        "target": pa.array([[1.0, 2.0]], pa.list_(pa.float32())),
    }
    return pa.table({name: values for name, values in (good | columns).items() if values is not None})


BAD_TABLES = {
    "no_target": (table_with(target=None), "has no column target"),
    "chronos": (table_with(start=None, timestamp=pa.array([[0]], pa.list_(pa.timestamp("s")))), "corpus build"),
    "text_target": (table_with(target=pa.array([["a"]])), "lists of numbers"),
    "flat_target": (table_with(target=pa.array([1.0])), "lists of numbers"),
    "numbers_for_ids": (table_with(item_id=pa.array([1])), "item_id must be strings"),
    "text_for_start": (table_with(start=pa.array(["2020"])), "start must be timestamps"),
    "null_value": (table_with(target=pa.array([[1.0, None]], pa.list_(pa.float32()))), "must be NaN, not null"),
    "null_target": (table_with(target=pa.array([None], pa.list_(pa.float32()))), "has no target"),
    "no_channel": (table_with(target=pa.array([[]], pa.list_(pa.list_(pa.float32())))), "has no channel"),
    "uneven": (
        table_with(target=pa.array([[[1.0], [1.0, 2.0]]], pa.list_(pa.list_(pa.float32())))),
        "differ in length",
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_another_schema_is_refused_in_one_line(tmp_path, case):
    table, message = BAD_TABLES[case]
    write(tmp_path / "corpus", [(1, 5)])
    rewrite(tmp_path / "corpus", table)
    with pytest.raises(InputError, match=message) as error:
        open_corpus(tmp_path / "corpus")
    assert "\n" not in str(error.value)


def test_compressed_values_are_refused_and_build_rewrites_them(tmp_path):
    write(tmp_path / "corpus", [(1, 5)])
    table = table_with(target=pa.array([list(range(1000))], pa.list_(pa.float32())))
    rewrite(tmp_path / "corpus", table, options=pa.ipc.IpcWriteOptions(compression="zstd"))
    with pytest.raises(InputError, match="is compressed"):
        open_corpus(tmp_path / "corpus")
    build_corpus([tmp_path / "corpus"], tmp_path / "copy")
    assert open_corpus(tmp_path / "copy").lengths.tolist() == [1000]


BAD_STATES = {
    "not_json": ("{", "cannot read"),
    "a_list": ("[]", "does not hold a mapping"),
    "no_files": ("{}", "names no data file"),
    "outside": ('{"_data_files": [{"filename": "../other.arrow"}]}', "outside of its folder"),
    "a_number": ('{"_data_files": [{"filename": 7}]}', "outside of its folder"),
    "absent": ('{"_data_files": [{"filename": "other.arrow"}]}', "lacks its data file"),
    "selection": ('{"_data_files": [{"filename": "a"}], "_indices_data_files": [{"filename": "i"}]}', "selection"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_damaged_state_is_refused_in_one_line(tmp_path, case):
    text, message = BAD_STATES[case]
    write(tmp_path / "corpus", [(1, 5)])
    (tmp_path / "corpus" / "state.json").write_text(text)
    with pytest.raises(InputError, match=message):
        open_corpus(tmp_path / "corpus")


def test_damaged_arrow_files_end_in_one_line_or_read_within_their_values(tmp_path):
    write(tmp_path / "corpus", [(1, 40), (1, 9)])
    path = tmp_path / "corpus" / "data-00000-of-00001.arrow"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for trial in range(300):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(0, len(whole))]
        else:
            for position in rng.integers(0, len(whole), size=4):
                damaged[position] = rng.integers(0, 256)
        # write another file: a mapped file must not change under its reader
        path.unlink()
        path.write_bytes(damaged)
        try:
            corpus = open_corpus(tmp_path / "corpus")
            rows = np.arange(len(corpus.lengths))
            corpus.gather(rows, corpus.lengths[rows] // 2, 16)
            corpus.info()
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


def test_an_invalid_frequency_names_its_corpus(tmp_path):
    write(tmp_path / "corpus", [(1, 5)])
    rewrite(tmp_path / "corpus", table_with(freq=pa.array(["often"])))
    with pytest.raises(InputError, match="corpus: 'often' is not a step"):
        check_frequencies(open_corpus(tmp_path / "corpus"))


def test_a_failed_write_leaves_nothing(tmp_path):
    def breaks():
        yield from make_series([(1, 5)])
        raise InputError("the source is damaged")

    with pytest.raises(InputError, match="damaged"), new_corpus(tmp_path / "corpus", CorpusLayout()) as folder:
        write_shards(folder, "data", breaks(), CorpusLayout())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("precious")
    with pytest.raises(InputError, match="already exists"), new_corpus(tmp_path / "taken", CorpusLayout()):
        pass
    assert (tmp_path / "taken" / "file").read_text() == "precious"
