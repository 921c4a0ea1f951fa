"""Every kind of source is converted to a corpus and read back."""

import gzip
import importlib.util
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llata_fast.data.corpora import open_corpus
from llata_fast.data.corpus_builder import build_corpus
from llata_fast.data.corpus_sources import SourceOptions
from llata_fast.errors import InputError

TSF = """# a comment
@relation toys
@attribute series_name string
@attribute start_timestamp date
@frequency half_hourly
@horizon 8
@missing true
@equallength false
@data
T1:1979-01-01 00-30-00:1.5,?,3
T2:1980-02-03 00-00-00:4,5
"""


def built(tmp_path, *sources, **options):
    """[(item_id, start, freq, values [C, T])] from a corpus built from the sources."""
    multivariate = options.pop("multivariate", False)
    build_corpus(sources, tmp_path / "out", multivariate=multivariate, options=SourceOptions(**options))
    corpus = open_corpus(tmp_path / "out")
    columns = [corpus.column(name).to_pylist() for name in ("item_id", "start", "freq")]
    for series, (item, start, freq) in enumerate(zip(*columns, strict=True)):
        rows = np.arange(*corpus.first_row[series : series + 2])
        values = corpus.gather(rows, np.zeros(len(rows), dtype=int), int(corpus.series_lengths[series]))
        yield item, str(pd.Timestamp(start)), freq, values.tolist()


def write(path, text):
    path.write_text(text)
    return path


def test_tsf(tmp_path):
    one, two = built(tmp_path, write(tmp_path / "toys.tsf", TSF))
    assert one[:3] == ("T1", "1979-01-01 00:30:00", "30min")
    np.testing.assert_array_equal(one[3], [[1.5, np.nan, 3]])
    assert two == ("T2", "1980-02-03 00:00:00", "30min", [[4, 5]])


def test_wide_table(tmp_path):
    path = write(tmp_path / "w.csv", "date,a,b\n2020-01-01,1,2\n2020-01-02,3,\n2020-01-04,5,6\n2020-01-05,7,8\n")
    a, b = built(tmp_path, path)
    assert a[:3] == ("w/a", "2020-01-01 00:00:00", "D")
    np.testing.assert_array_equal(a[3], [[1, 3, np.nan, 5, 7]])
    np.testing.assert_array_equal(b[3], [[2, np.nan, np.nan, 6, 8]])


LONG = "id,ds,y,z\n" + "".join(f"{i},2020-0{m}-01,{m},{10 * m}\n" for i in ("b", "a") for m in (1, 2, 4, 5, 6))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_long_table(tmp_path, kind):
    path = write(tmp_path / "long.csv", LONG)
    if kind == "parquet":
        pd.read_csv(path).to_parquet(tmp_path / "long.parquet")
        path = tmp_path / "long.parquet"
    b, a = built(tmp_path, path, id_column="id", columns=("y",))
    assert (b[0], a[0], b[1]) == ("b", "a", "2020-01-01 00:00:00") and b[2] == "MS"
    np.testing.assert_array_equal(b[3], [[1, 2, np.nan, 4, 5, 6]])


def test_long_table_of_several_targets(tmp_path):
    rows = list(built(tmp_path, write(tmp_path / "long.csv", LONG), id_column="id", columns=("y", "z")))
    assert [row[0] for row in rows] == ["b/y", "b/z", "a/y", "a/z"]


@pytest.mark.skipif(importlib.util.find_spec("autots") is None, reason="no wheel that carries the named data sets")
def test_named_data_sets(tmp_path):
    rows = list(built(tmp_path, "EIA", "Metro"))
    assert len(rows) == 12 and {row[2] for row in rows} == {"W-FRI", "h"}
    assert [row[0] for row in rows[-3:]] == ["Metro/traffic_volume", "Metro/temp", "Metro/clouds_all"]


def test_wide_table_as_one_series(tmp_path):
    path = write(tmp_path / "w.csv", "date,a,b\n2020-01-01,1,2\n2020-01-02,3,4\n2020-01-03,5,6\n")
    ((item, _, _, values),) = built(tmp_path, path, multivariate=True)
    assert (item, values) == ("w", [[1, 3, 5], [2, 4, 6]])


@pytest.mark.parametrize("compress", [False, True])
def test_json_lines(tmp_path, compress):
    lines = [
        {"start": "2020-01-01", "target": [1, None, "NaN"], "item_id": 7},
        {"start": "2021-01-01 05:00", "target": [4.5], "freq": "2H"},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "train").mkdir()
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "metadata.json").write_text('{"freq": "1H"}')
    path = tmp_path / "train" / ("data.json.gz" if compress else "data.json")
    path.write_bytes(gzip.compress(text.encode()) if compress else text.encode())
    one, two = built(tmp_path, tmp_path)
    assert one[:3] == ("7", "2020-01-01 00:00:00", "1H")
    np.testing.assert_array_equal(one[3], [[1, np.nan, np.nan]])
    assert two == ("data-1", "2021-01-01 05:00:00", "2H", [[4.5]])


def chronos_table(**changes):
    stamps = [pd.date_range("2020-01-01", periods=4, freq="15min"), pd.date_range("2021-01-01", periods=3, freq="D")]
    columns = {
        "id": ["x", "y"],
        "timestamp": pa.array([[*stamp] for stamp in stamps], pa.list_(pa.timestamp("ms"))),
        "target": [[1.0, None, 3.0, 4.0], [5.0, 6.0, 7.0]],
    }
    return pa.table(columns | changes)


def test_chronos_sets(tmp_path):
    (tmp_path / "set").mkdir()
    pq.write_table(chronos_table(), tmp_path / "set" / "train-00000-of-00001.parquet")
    x, y = built(tmp_path, tmp_path / "set")
    assert (x[:3], y) == (("x", "2020-01-01 00:00:00", "15min"), ("y", "2021-01-01 00:00:00", "D", [[5, 6, 7]]))
    np.testing.assert_array_equal(x[3], [[1, np.nan, 3, 4]])


def test_gaps_between_timestamps_are_missing_values(tmp_path):
    stamps = [[0, 3600, 4 * 3600, 5 * 3600, 6 * 3600], [0, 1, 2]]
    table = chronos_table(
        timestamp=pa.array(stamps, pa.list_(pa.timestamp("s"))), target=[[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]
    )
    pq.write_table(table, tmp_path / "set.parquet")
    x, y = built(tmp_path, tmp_path / "set.parquet")
    assert (x[2], y[2]) == ("h", "s")
    np.testing.assert_array_equal(x[3], [[1, 2, np.nan, np.nan, 3, 4, 5]])


@pytest.mark.parametrize(
    "words, step",
    [("hourly", "h"), ("half_hourly", "30min"), ("10_minutes", "10min"), ("4_seconds", "4s"), ("monthly", "ME")]
    + [("weekly", "W"), ("quarterly", "QE"), ("yearly", "YE"), ("minutely", "min"), ("daily", "D"), ("H", "H")],
)
def test_monash_words_become_steps(tmp_path, words, step):
    path = write(tmp_path / "toys.tsf", TSF.replace("half_hourly", words))
    assert {row[2] for row in built(tmp_path, path)} == {step}


def test_chronos_sets_of_several_channels(tmp_path):
    pq.write_table(chronos_table(load=[[9, 9, 9, 9], [8, 8, 8]]), tmp_path / "set.parquet")
    assert [row[0] for row in built(tmp_path, tmp_path / "set.parquet")] == ["x/target", "x/load", "y/target", "y/load"]


def test_parquet_rows_keep_covariates_beside_a_whole_series(tmp_path):
    table = pa.table(
        {
            "item_id": ["a"],
            "start": pa.array([0], pa.timestamp("s")),
            "freq": ["D"],
            "target": [[[1.0, 2.0], [3.0, 4.0]]],
            "feat_dynamic_real": [[[0.0, 1.0, 0.0]]],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    build_corpus([tmp_path / "rows.parquet"], tmp_path / "out", multivariate=True)
    (file,) = (tmp_path / "out").glob("*.arrow")
    read = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    assert read.column("feat_dynamic_real").to_pylist() == [[[0.0, 1.0, 0.0]]]
    assert read.column("target").to_pylist() == [[[1.0, 2.0], [3.0, 4.0]]]


def test_several_sources_and_series_without_values(tmp_path, caplog):
    write(tmp_path / "a.jsonl", '{"start": "2020-01-01", "target": [null, null], "freq": "D"}\n')
    write(tmp_path / "b.jsonl", '{"start": "2020-01-01", "target": [], "freq": "D"}\n')
    rows = list(built(tmp_path, tmp_path / "a.jsonl", write(tmp_path / "toys.tsf", TSF), tmp_path / "b.jsonl"))
    assert [row[0] for row in rows] == ["T1", "T2"]
    assert "1 series without a value" in caplog.text


LINE = '{"start": "2020-01-01", "target": [1, 2], "freq": "D"}\n'
BAD_SOURCES = {
    "absent.csv": (None, "no such file, folder or dataset"),
    "a.pkl": ("x", "not a source"),
    "empty.jsonl": ("", "would hold no series"),
    "nan.jsonl": (LINE.replace("[1, 2]", "[null]"), "would hold no series"),
    "text.jsonl": ("hello", "line 1 is not JSON"),
    "deep.jsonl": ("[" * 100_000, "line 1 is not JSON"),
    "list.jsonl": (LINE + "[1]", "line 2 is not an object"),
    "no_freq.jsonl": ('{"start": "2020-01-01", "target": [1]}', "give --freq"),
    "bad_freq.jsonl": (LINE.replace('"D"', '"often"'), "'often' is not a step"),
    "bad_start.jsonl": (LINE.replace("2020-01-01", "soon"), "start 'soon' is not a date"),
    "words.jsonl": (LINE.replace("[1, 2]", '["a"]'), "target is not a list of numbers"),
    "ragged.jsonl": (LINE.replace("[1, 2]", "[[1], [1, 2]]"), "target is not a list of numbers"),
    "deep_target.jsonl": (LINE.replace("[1, 2]", "[[[1]]]"), "must be a list or a list of lists"),
    "infinite.jsonl": (LINE.replace("2]", "Infinity]"), "step 1: inf is too large"),
    "large.jsonl": (LINE.replace("2]", "1e39]"), "step 1: 1e\\+39 is too large"),
    "cut.tsf": (TSF.partition("@data")[0], "no @data line"),
    "fields.tsf": (TSF + "T3:1,2", "has 1 attributes, but the header declares 2"),
    "date.tsf": (TSF + "T3:1999:1,2", "'1999' is not a date"),
    "value.tsf": (TSF + "T3:1980-02-03 00-00-00:1,x", "line 12: could not convert"),
    "attribute.tsf": ("@attribute a\n" + TSF, "@attribute needs"),
    "cut.json.gz": (b"\x1f\x8b\x08", "is damaged"),
    "cut.parquet": ("PAR1", "is damaged"),
    "cut.arrow": ("ARROW1", "is damaged"),
    "zero.arrow": ("", "is damaged"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_bad_sources_end_in_one_line_and_leave_nothing(tmp_path, name):
    content, message = BAD_SOURCES[name]
    source = tmp_path / "in" / name
    source.parent.mkdir()
    if content is not None:
        source.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as error:
        build_corpus([source], tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


BAD_PARQUET = {
    "irregular": (chronos_table(timestamp=[[0, 1, 9, 11], [0, 1, 5]]), "no lists of numbers with a start"),
    "no_step": (
        chronos_table(timestamp=pa.array([[0, 1, 90_000, 90_001], [0, 1, 5]], pa.list_(pa.timestamp("s")))),
        "no regular step",
    ),
    "unsorted": (
        chronos_table(timestamp=pa.array([[0, 90, 10, 110], [0, 1, 5]], pa.list_(pa.timestamp("s")))),
        "not in order",
    ),
    "fewer_timestamps": (
        chronos_table(timestamp=pa.array([[0, 1], [0, 1, 5]], pa.list_(pa.timestamp("s")))),
        "4 values at 2 timestamps",
    ),
    "uneven": (chronos_table(load=[[1.0], [1.0]]), "channels differ in length"),
    "table": (pa.table({"date": ["2020-01-01"], "a": [1.0]}), "no lists of numbers with a start among date, a"),
}


@pytest.mark.parametrize("case", BAD_PARQUET)
def test_bad_parquet_ends_in_one_line(tmp_path, case):
    table, message = BAD_PARQUET[case]
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(InputError, match=message):
        build_corpus([tmp_path / "bad.parquet"], tmp_path / "out")


def test_a_start_beyond_all_dates_ends_in_one_line(tmp_path):
    """pyarrow raises a plain OverflowError for it, not one of its own exceptions."""
    start = pa.array([2**62], pa.timestamp("s"))
    table = pa.table({"item_id": ["a"], "start": start, "freq": ["D"], "target": [[1.0, 2.0, 3.0]]})
    with pa.OSFile(str(tmp_path / "far.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="far.arrow is damaged"):
        build_corpus([tmp_path / "far.arrow"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_nothing_known_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "script.py", "raise SystemExit")
    with pytest.raises(InputError, match="holds no Arrow, Parquet, tsf or JSON-lines file"):
        build_corpus([tmp_path / "in"], tmp_path / "out")
