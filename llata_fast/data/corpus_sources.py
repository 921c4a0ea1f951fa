"""Sources of a corpus: wide and long tables, Monash .tsf, gluonts JSON lines, Chronos' datasets, and other corpora.

A source is read series by series, in bounded memory; nothing in a folder is executed or unpickled.
"""

import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError, in_one_line
from .corpora import OPTIONAL
from .corpus_writer import CorpusSeries
from .grids import find_grid, fit
from .monash import read_tsf
from .panel import Panel, read_panel
from .registry import DatasetSpec, find_dataset
from .series import TimeSeries, read_series, read_wide_csv
from .steps import parse_step

_TABLES = (".csv", ".txt", ".zip")
_JSON = (".json", ".jsonl")
_IN_FOLDERS = ((".arrow",), (".parquet",), (".tsf",), (".json", ".jsonl", ".json.gz", ".jsonl.gz"))
_NO_SERIES = ("state.json", "dataset_info.json", "dataset_dict.json", "metadata.json")
# pyarrow reports nonsensical schemas and scalars by built-in exceptions, too
_DAMAGE = (pa.ArrowException, OSError, EOFError, KeyError, OverflowError)
_FLOAT32 = np.finfo(np.float32).max


@dataclass(frozen=True)
class SourceOptions:
    """How to read sources that do not specify it themselves."""

    date_column: str | None = None
    """Date column of wide tables."""
    columns: tuple[str, ...] | None = None
    """Value columns of tables; default: all but the date, or as in `Panel.from_df`."""
    id_column: str | None = None
    """Column that identifies the series of a long table; without it a table is wide."""
    data_dir: str | None = None
    """Folder with the files of named datasets."""
    freq: str | None = None
    """Time step of sources that state none."""


def read_source(path: str | Path, options: SourceOptions) -> tuple[Iterator[CorpusSeries], tuple[str, ...]]:
    """Read the series of one source; also returns the names of their covariates.

    Raises:
        InputError: now or during iteration: no such file, an unknown kind, damaged, or infinite values.
    """
    source = Path(path).expanduser()
    if not source.exists() and (spec := find_dataset(str(path))):
        series = _named(spec, options)
    elif not source.exists():
        raise InputError(f"no source at {path}: no such file, folder or dataset")
    else:
        series = _series_of(source, options)
    first = next(series, None)
    if first is None:
        return iter(()), ()
    covariates = tuple(name for name in OPTIONAL if getattr(first, name) is not None)
    return _checked(source, first, series), covariates


def _series_of(source: Path, options: SourceOptions) -> Iterator[CorpusSeries]:
    if source.is_dir():
        return _folder(source, options)
    kind = next((suffix for suffix in reversed(source.suffixes) if suffix not in (".gz", ".xz")), "").lower()
    readers: dict[str, Callable[[Path, SourceOptions], Iterator[CorpusSeries]]] = {
        ".tsf": _monash,
        ".parquet": _parquet,
        ".arrow": _arrow,
        **dict.fromkeys(_JSON, _json_lines),
        **dict.fromkeys(_TABLES, _table),
    }
    if kind not in readers:
        raise InputError(f"{source}: not a source: csv, parquet, arrow, tsf, json lines, or a folder of a corpus")
    return readers[kind](source, options)


def _folder(folder: Path, options: SourceOptions) -> Iterator[CorpusSeries]:
    """Read the Arrow or Parquet files in and below a folder, or a gluonts folder's training split."""
    if (folder / "metadata" / "metadata.json").is_file() or (folder / "metadata.json").is_file():
        folder = folder / "train"
    for endings in _IN_FOLDERS:
        files = sorted(
            path
            for path in folder.rglob("*")
            if path.name.endswith(endings) and path.name not in _NO_SERIES and not path.name.startswith((".", "cache-"))
        )
        if files:
            break
    else:
        raise InputError(f"{folder} holds no Arrow, Parquet, tsf or JSON-lines file")
    for file in files:
        yield from _series_of(file, options)


def _checked(source: Path, first: CorpusSeries, rest: Iterator[CorpusSeries]) -> Iterator[CorpusSeries]:
    yield _finite(source, first)
    for series in rest:
        yield _finite(source, series)


def _finite(source: Path, series: CorpusSeries) -> CorpusSeries:
    """Convert a series to float32; raises InputError for an infinity, an overflow of float32, or no frequency."""
    try:
        parse_step(series.freq)
    except InputError as error:
        raise InputError(f"{source}, series {series.item_id!r}: {error}") from None
    arrays = {}
    for name in ("target", *OPTIONAL):
        values = getattr(series, name)
        if values is None:
            continue
        if values.ndim != 2:
            raise InputError(f"{source}, series {series.item_id!r}: {name} must be a list or a list of lists")
        far = np.argwhere(np.abs(values) > _FLOAT32)
        if far.size:
            row, step = far[0]
            raise InputError(
                f"{source}, series {series.item_id!r}, {name} {row}, step {step}: {values[row, step]} is too large"
            )
        arrays[name] = values.astype(np.float32, copy=False)
    return replace(series, **arrays)


def _named(spec: DatasetSpec, options: SourceOptions) -> Iterator[CorpusSeries]:
    """A dataset of the registry."""
    if spec.id_column is not None:
        yield from _items(read_panel(spec.name, data_dir=options.data_dir))
    else:
        columns = list(options.columns) if options.columns else None
        yield _wide(read_series(spec.name, data_dir=options.data_dir, columns=columns, missing="mask"))


def _table(path: Path, options: SourceOptions) -> Iterator[CorpusSeries]:
    """A row per time and a column per channel; with an id column, a row for each id and time."""
    if options.id_column is not None:
        yield from _items(Panel.from_csv(path, **_long_columns(options)))
    else:
        series = read_wide_csv(path, options.date_column, options.columns, missing="mask")
        yield replace(_wide(series), item_id=_stem(path))


def _long_columns(options: SourceOptions) -> dict[str, Any]:
    target = list(options.columns) if options.columns else None
    dates = {"timestamp_column": options.date_column, "freq": options.freq}
    return {"id_column": options.id_column, "target": target} | dates


def _wide(series: TimeSeries) -> CorpusSeries:
    start = _seconds(pd.Timestamp(series.dates[0]))
    return CorpusSeries(series.name, start, series.frequency, series.values.T, channel_names=series.columns)


def _items(panel: Panel) -> Iterator[CorpusSeries]:
    names = panel.targets if len(panel.targets) > 1 else None
    for index, name in enumerate(panel.ids):
        step, origin = panel.steps[panel.step_of[index]], panel.origins[index]
        # items with whole-number timestamps have no date
        start = origin if panel.origins.dtype.kind == "M" else np.datetime64("1970-01-01")
        start = start.astype("datetime64[s]")
        yield CorpusSeries(str(name), start, step.alias(origin), panel.item(index).T, channel_names=names)


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _monash(path: Path, options: SourceOptions) -> Iterator[CorpusSeries]:
    frequency, series = read_tsf(path)
    frequency = frequency or options.freq
    if frequency is None:
        raise InputError(f"{path} states no @frequency: give --freq")
    for name, start, values in series:
        yield CorpusSeries(name, _seconds(start), frequency, values[None])


def _json_lines(path: Path, options: SourceOptions) -> Iterator[CorpusSeries]:
    """gluonts: one JSON object per line, with start and target."""
    frequency = _gluonts_frequency(path)
    for number, line in enumerate(_lines(path)):
        where = f"{path}, line {number + 1}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON: {error}") from None
        if not isinstance(entry, dict) or not {"start", "target"} <= entry.keys():
            raise InputError(f"{where} is not an object with start and target")
        freq = entry.get("freq") or frequency or options.freq
        if freq is None:
            raise InputError(f"{where} has no freq, and there is no metadata.json beside it: give --freq")
        arrays: dict[str, Any] = {
            name: _numbers(entry[name], where, name) for name in ("target", *OPTIONAL) if entry.get(name)
        }
        if "target" not in arrays:
            continue
        item_id = entry.get("item_id")
        name = f"{_stem(path)}-{number}" if item_id is None else str(item_id)
        yield CorpusSeries(name, _timestamp(entry["start"], where), str(freq), **arrays)


def _gluonts_frequency(path: Path) -> str | None:
    for folder in (path.parent, path.parent.parent, path.parent / "metadata", path.parent.parent / "metadata"):
        if (folder / "metadata.json").is_file():
            try:
                frequency = json.loads((folder / "metadata.json").read_text()).get("freq")
            except (OSError, ValueError, AttributeError) as error:
                raise InputError(f"cannot read {folder / 'metadata.json'}: {error}") from None
            return frequency if frequency is None else str(frequency)
    return None


def _lines(path: Path) -> Iterator[str]:
    openers: dict[str, Callable] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        with openers.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
            yield from (line for line in file if line.strip())
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path} is damaged: {error}") from None


def _numbers(values, where: str, name: str) -> np.ndarray:
    """A JSON list, or list of lists, as [rows, steps]; null and "NaN" are missing."""
    try:
        array = np.array(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{where}: {name} is not a list of numbers, or of equally long lists of numbers") from None
    return array[None] if array.ndim == 1 else array


def _parquet(path: Path, options: SourceOptions) -> Iterator[CorpusSeries]:
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        batches = file.iter_batches(batch_size=256)
        yield from _rows_of_lists(path, schema, batches, options)
    except _DAMAGE as error:
        raise InputError(f"{path} is damaged: {in_one_line(error)}") from None


def _arrow(path: Path, options: SourceOptions) -> Iterator[CorpusSeries]:
    try:
        with pa.memory_map(str(path)) as mapped:
            is_file = mapped.read(6) == b"ARROW1"
            mapped.seek(0)
            if is_file:
                reader = pa.ipc.open_file(mapped)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                reader = pa.ipc.open_stream(mapped)
                batches = iter(reader)
            yield from _rows_of_lists(path, reader.schema, batches, options)
    except _DAMAGE as error:
        raise InputError(f"{path} is damaged: {in_one_line(error)}") from None


def _rows_of_lists(
    path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch], options: SourceOptions
) -> Iterator[CorpusSeries]:
    """One row per series: a target with start and freq or, as in Chronos, lists of numbers and of timestamps."""
    lists = [field.name for field in schema if _is_list(field.type)]
    times = [name for name in lists if pa.types.is_timestamp(schema.field(name).type.value_type)]
    numeric = [name for name in lists if name not in OPTIONAL and _is_numeric(schema.field(name).type)]
    if not lists and options.id_column is not None:
        return (yield from _items(Panel.from_parquet(path, **_long_columns(options))))
    if times and numeric:
        channels, read_row = numeric, _chronos_row
    elif "start" in schema.names and "target" in numeric:
        channels, read_row = ["target"], _corpus_row
    else:
        raise InputError(f"{path} is not a corpus: no lists of numbers with a start among {', '.join(schema.names)}")
    number = 0
    for batch in batches:
        # pyarrow does not check the offsets that a file states
        batch.validate(full=True)
        columns = {name: batch.column(name) for name in schema.names}
        for index in range(len(batch)):
            row = {name: column[index] for name, column in columns.items()}
            where = f"{path}, row {number + 1}"
            name = next((row[key].as_py() for key in ("item_id", "id") if key in row), None)
            item_id = f"{_stem(path)}-{number}" if name is None else str(name)
            rows = [values for key in channels for values in _matrix(row[key])]
            if len({len(values) for values in rows}) > 1:
                raise InputError(f"{where}: its channels differ in length")
            number += 1
            if rows:
                series = read_row(row, np.stack(rows), where, times, options)
                names = tuple(channels) if read_row is _chronos_row and len(rows) == len(channels) > 1 else None
                yield replace(series, item_id=item_id, channel_names=names)


def _corpus_row(
    row: dict[str, pa.Scalar], values: np.ndarray, where: str, times: list[str], options: SourceOptions
) -> CorpusSeries:
    freq = row["freq"].as_py() if "freq" in row else options.freq
    if freq is None:
        raise InputError(f"{where} states no freq: give --freq")
    covariates: dict[str, Any] = {
        name: np.stack(_matrix(row[name])) for name in OPTIONAL if name in row and row[name].is_valid
    }
    return CorpusSeries("", _timestamp(row["start"].as_py(), where), str(freq), values, **covariates)


def _chronos_row(
    row: dict[str, pa.Scalar], values: np.ndarray, where: str, times: list[str], options: SourceOptions
) -> CorpusSeries:
    """Values [C, T] placed on the grid of their list of timestamps; NaN at grid points without one."""
    stamps = row[times[0]].values
    if stamps is None or len(stamps) != values.shape[1]:
        raise InputError(f"{where}: {values.shape[1]} values at {0 if stamps is None else len(stamps)} timestamps")
    dates = stamps.to_numpy(zero_copy_only=False).astype("datetime64[us]")
    if (np.diff(dates) <= np.timedelta64(0)).any():
        raise InputError(f"{where}: its timestamps are not in order")
    grid = find_grid(dates) if options.freq is None else fit(parse_step(options.freq), dates)
    if grid is None:
        hint = "give --freq" if options.freq is None else f"{options.freq} does not reach all of them"
        raise InputError(f"{where}: its timestamps have no regular step: {hint}")
    placed = np.full((len(values), len(grid)), np.nan)
    placed[:, grid.index] = values
    return CorpusSeries("", dates[0], options.freq or grid.step.alias(grid.origin), placed)


def _matrix(value: pa.Scalar) -> list[np.ndarray]:
    """A list, or a list of lists, as float64 rows; null becomes NaN."""
    if not value.is_valid:
        return []
    values = value.values
    parts = [part.values for part in values if part.is_valid] if _is_list(values.type) else [values]
    return [part.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False) for part in parts]


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_numeric(kind: pa.DataType) -> bool:
    while _is_list(kind):
        kind = kind.value_type
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _timestamp(value, where: str) -> np.datetime64:
    try:
        return _seconds(pd.Timestamp(value))
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{where}: start {value!r} is not a date") from None


def _seconds(stamp: pd.Timestamp) -> np.datetime64:
    if stamp.tz is not None:
        stamp = stamp.tz_convert("UTC").tz_localize(None)
    return stamp.to_datetime64().astype("datetime64[s]")
