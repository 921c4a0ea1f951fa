"""Corpora larger than memory, in the layout of uni2ts and GIFT-Eval, read from memory-mapped files.

A corpus is a folder that Hugging Face `datasets` writes with `save_to_disk`, with one row per series:

    item_id string, start timestamp[s], freq string, target list<float32> or list<list<float32>> [C, T]

and optionally feat_dynamic_real and past_feat_dynamic_real. Its Arrow files are memory-mapped, not read: an index holds
each channel's offset and length, and a batch of windows is one gather from the mapped values. Nothing in the folder is
executed or unpickled.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError, in_one_line
from .ranges import ranges
from .steps import parse_step

REQUIRED = ("item_id", "start", "freq", "target")
OPTIONAL = ("feat_dynamic_real", "past_feat_dynamic_real")

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_FILE_MAGIC = b"ARROW1"
_REBUILD = ": `llata-fast corpus build` makes a corpus of it"
_CHUNK = 1 << 22
"""Number of values held at a time in a pass over the whole corpus."""


@dataclass(frozen=True)
class CorpusInfo:
    """The output of `corpus info`."""

    series: int
    channels: int
    """Over all series."""
    steps: int
    """Values over all channels, missing ones included."""
    shortest: int
    longest: int
    """Time steps of a channel."""
    frequencies: dict[str, int]
    """Series per frequency, the most frequent first."""
    missing: float
    """Share of missing values."""
    empty_series: int
    """Number of series without any value."""
    hash: str
    """SHA-256 of the corpus's content, independent of how it is split into files."""


class Corpus:
    """An open corpus on disk.

    Rows are channels: series s has the rows first_row[s] to first_row[s + 1], and row r has lengths[r] time steps.
    """

    def __init__(self, name: str, files: list["_MappedFile"]):
        self.name = name
        self._flat = [file.values for file in files]
        self._tables = [file.table for file in files]
        self._begin = np.concatenate([file.begin for file in files])
        self._file = np.repeat(np.arange(len(files), dtype=np.int32), [len(file.begin) for file in files])
        self.lengths: np.ndarray = np.concatenate([file.lengths for file in files])
        """[rows] int64"""
        num_channels = np.concatenate([file.num_channels for file in files])
        self.first_row: np.ndarray = np.concatenate(([0], np.cumsum(num_channels)))
        """[series + 1] int64"""
        if len(self) == 0:
            raise InputError(f"{name} holds no series")

    def __len__(self) -> int:
        """Number of series."""
        return len(self.first_row) - 1

    @property
    def num_channels(self) -> np.ndarray:
        """C of every series, [series] int64."""
        return np.diff(self.first_row)

    @property
    def series_lengths(self) -> np.ndarray:
        """T of every series, [series] int64; all channels of a series have the same length."""
        return self.lengths[self.first_row[:-1]]

    def gather(self, rows: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
        """Time steps [start, start + width) of each of `rows` [B], as float32 [B, width].

        NaN before a row's first step, after its last step, and where a value is not finite.
        """
        out = np.empty((len(rows), width), dtype=np.float32)
        files, positions = self._file[rows], self._begin[rows] + starts
        for number in np.unique(files):
            chosen, flat = np.flatnonzero(files == number), self._flat[number]
            _gather(flat, positions[chosen], width, out, chosen)
        steps = np.arange(width)
        partial = np.flatnonzero((starts < 0) | (starts + width > self.lengths[rows]))
        at = starts[partial, None] + steps
        out[partial] = np.where((at >= 0) & (at < self.lengths[rows[partial], None]), out[partial], np.nan)
        # infinities, and float64 values that overflow float32
        out[~np.isfinite(out)] = np.nan
        return out

    def column(self, name: str) -> pa.ChunkedArray:
        """item_id, freq or start of every series, as strings or timestamps in seconds."""
        kind = pa.timestamp("s") if name == "start" else pa.string()
        chunks = [table.column(name).cast(kind, safe=False).chunks for table in self._tables]
        return pa.chunked_array([chunk for part in chunks for chunk in part], type=kind)

    def frequencies(self) -> np.ndarray:
        """The frequency of every series as the corpus spells it, [series] of str."""
        encoded = pc.dictionary_encode(self.column("freq").fill_null("")).combine_chunks()
        words = np.array(encoded.dictionary.to_pylist(), dtype=object)
        return words[encoded.indices.to_numpy()]

    def fingerprint(self) -> str:
        """A hash of all lengths and a sample of values, which distinguishes corpora without reading them completely."""
        digest = hashlib.sha256(self.lengths.astype("<i8").tobytes() + self.first_row.astype("<i8").tobytes())
        rows = np.linspace(0, len(self.lengths) - 1, min(64, len(self.lengths))).astype(np.int64)
        digest.update(self.gather(rows, self.lengths[rows] // 2, 64).astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def info(self) -> CorpusInfo:
        """Read the corpus once, in chunks."""
        digest, missing = hashlib.sha256(), np.zeros(len(self.lengths), dtype=np.int64)
        for rows, values in self._runs():
            digest.update(np.ascontiguousarray(values, dtype="<f4").data)
            absent = np.concatenate(([0], np.cumsum(~np.isfinite(values))))
            ends = np.cumsum(self.lengths[rows])
            missing[rows] += absent[ends] - absent[ends - self.lengths[rows]]
        for array in (self.lengths, self.first_row):
            digest.update(array.astype("<i8").tobytes())
        for name in ("item_id", "freq", "start"):
            for chunk in self.column(name).cast(pa.string()).fill_null("").chunks:
                digest.update("".join(f"{len(text)}:{text}" for text in chunk.to_pylist()).encode())
        observed = np.add.reduceat(self.lengths - missing, self.first_row[:-1])
        return CorpusInfo(
            series=len(self),
            channels=len(self.lengths),
            steps=int(self.lengths.sum()),
            shortest=int(self.lengths.min()),
            longest=int(self.lengths.max()),
            frequencies=dict(Counter(self.frequencies().tolist()).most_common()),
            missing=float(missing.sum() / max(1, self.lengths.sum())),
            empty_series=int((observed == 0).sum()),
            hash=digest.hexdigest(),
        )

    def _runs(self) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, all their values in order), about `_CHUNK` values at a time, or a single row."""
        total = np.cumsum(self.lengths)
        start = 0
        while start < len(total):
            before = total[start - 1] if start else 0
            end = max(start + 1, int(np.searchsorted(total, before + _CHUNK, side="right")))
            rows = range(start, end)
            pieces = [self._flat[self._file[r]][self._begin[r] : self._begin[r] + self.lengths[r]] for r in rows]
            yield slice(start, end), _as_float32(np.concatenate(pieces))
            start = end


def _gather(flat: np.ndarray, positions: np.ndarray, width: int, out: np.ndarray, chosen: np.ndarray):
    """out[chosen] = flat[position : position + width]; the caller masks what lies outside of `flat`."""
    inside = (positions >= 0) & (positions + width <= len(flat))
    if len(flat) >= width:
        windows = np.lib.stride_tricks.as_strided(
            flat, (len(flat) - width + 1, width), (flat.itemsize, flat.itemsize), writeable=False
        )
        out[chosen[inside]] = _as_float32(windows[positions[inside]])
    for position, row in zip(positions[~inside], chosen[~inside], strict=True):
        first, last = max(0, -position), min(width, len(flat) - position)
        out[row] = np.nan
        out[row, first:last] = _as_float32(flat[position + first : position + last])


def _as_float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, copy=False)


@dataclass(frozen=True)
class _MappedFile:
    """One Arrow file: its columns, and the position of each channel in its values."""

    table: pa.Table
    values: np.ndarray
    """The whole file, viewed as values of the target's type."""
    begin: np.ndarray
    """[rows] int64: index in `values` of a channel's first time step."""
    lengths: np.ndarray
    num_channels: np.ndarray


def open_corpus(path: str | Path) -> Corpus:
    """Open the corpus in a folder written by `datasets` or `llata-fast corpus build`.

    A folder of splits must hold exactly one. Only the index is loaded into memory. Raises InputError if the folder is
    not a corpus, is damaged, or has another schema.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"no corpus at {path}: no such folder")
    if (folder / _SPLITS).is_file():
        splits = _read_json(folder / _SPLITS).get("splits")
        if not isinstance(splits, list) or len(splits) != 1:
            raise InputError(f"{path} holds several splits: give one of its folders, such as {path}/train")
        return open_corpus(folder / str(splits[0]))
    if not (folder / _STATE).is_file():
        raise InputError(f"{path} holds no {_STATE}: not a corpus; `llata-fast corpus build` makes one")
    return Corpus(str(path), [_map_file(file) for file in _data_files(folder)])


def _data_files(folder: Path) -> list[Path]:
    state = _read_json(folder / _STATE)
    entries = state.get("_data_files")
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if not names:
        raise InputError(f"{folder / _STATE} names no data file")
    if state.get("_indices_data_files"):
        raise InputError(f"{folder} is a selection of another dataset: save it again after flatten_indices()")
    files = []
    for name in names:
        # a name that leads out of the folder is not a file of this corpus
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{folder / _STATE} names a data file outside of its folder: {name!r}")
        if not (folder / name).is_file():
            raise InputError(f"{folder} lacks its data file {name}")
        files.append(folder / name)
    return files


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a mapping")
    return value


def _map_file(path: Path) -> _MappedFile:
    try:
        mapped = pa.memory_map(str(path))
        whole = mapped.read_buffer()
        mapped.seek(0)
        is_file = whole.size >= 6 and whole[:6].to_pybytes() == _FILE_MAGIC
        reader = pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)
        table = reader.read_all()
        # offsets that point outside would read foreign memory
        table.validate(full=False)
        for name in {"item_id", "freq"} & set(table.column_names):
            table.column(name).validate(full=True)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(f"{path} is damaged: {in_one_line(error)}") from None
    _check_schema(table.schema, path)
    chunks = [_locate(chunk, whole, path) for chunk in table.column("target").chunks if len(chunk)]
    if not chunks:
        empty = np.zeros(0, dtype=np.int64)
        return _MappedFile(table, np.zeros(0, np.float32), empty, empty, empty)
    value_type, begins, lengths, counts = zip(*chunks, strict=True)
    values = np.frombuffer(whole, dtype=value_type[0], count=whole.size // value_type[0].itemsize)
    return _MappedFile(table, values, *(np.concatenate(parts) for parts in (begins, lengths, counts)))


def _check_schema(schema: pa.Schema, path: Path):
    if absent := [name for name in REQUIRED if name not in schema.names]:
        hint = _REBUILD if "timestamp" in schema.names else ""
        raise InputError(f"{path} has no column {absent[0]}: its columns are {', '.join(schema.names)}{hint}")
    text = (pa.types.is_string, pa.types.is_large_string)
    for name in ("item_id", "freq"):
        if not any(is_text(schema.field(name).type) for is_text in text):
            raise InputError(f"{path}: column {name} must be strings, not {schema.field(name).type}")
    if not pa.types.is_timestamp(schema.field("start").type):
        raise InputError(f"{path}: column start must be timestamps, not {schema.field('start').type}")
    kind = schema.field("target").type
    inner = kind.value_type if _is_list(kind) else None
    inner = inner.value_type if inner is not None and _is_list(inner) else inner
    if inner is None or not (pa.types.is_floating(inner) or pa.types.is_integer(inner)):
        raise InputError(f"{path}: column target must be lists of numbers, or lists of such lists, not {kind}")


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _locate(target: pa.Array, whole: pa.Buffer, path: Path):
    """(value type, [rows] offsets into the file's values, [rows] lengths, [series] channels) of a target column."""
    first, last = _bounds(target, path)
    child = target.values
    num_channels = np.ones(len(target), dtype=np.int64)
    if _is_list(child.type):
        num_channels = last - first
        inner_first, inner_last = _bounds(child, path)
        picked = ranges(first, num_channels)
        first, last, child = inner_first[picked], inner_last[picked], child.values
        if (num_channels == 0).any():
            raise InputError(f"{path}: series {int((num_channels == 0).argmax())} has no channel")
        starts = np.concatenate(([0], np.cumsum(num_channels)[:-1]))
        lengths = last - first
        if (uneven := np.maximum.reduceat(lengths, starts) != np.minimum.reduceat(lengths, starts)).any():
            raise InputError(f"{path}: channels of series {int(uneven.argmax())} differ in length")
    if child.null_count:
        raise InputError(
            f"{path}: missing values must be NaN, not null; convert it with `llata-fast corpus build {path.parent}`"
        )
    if ((first < 0) | (last < first) | (last > len(child))).any():
        raise InputError(f"{path} is damaged: its offsets point outside of its values")
    kind = np.dtype(child.type.to_pandas_dtype())
    buffer = child.buffers()[-1]
    position = 0 if buffer is None or not len(child) else buffer.address - whole.address + child.offset * kind.itemsize
    if not 0 <= position <= whole.size - len(child) * kind.itemsize:
        raise InputError(f"{path} is compressed{_REBUILD}")
    if position % kind.itemsize:
        raise InputError(f"{path} is damaged: its values are not aligned")
    return kind, first + position // kind.itemsize, last - first, num_channels


def _bounds(array: pa.Array, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The beginning and end of each list of `array` in `array.values`."""
    if array.null_count:
        raise InputError(f"{path}: series {int(np.asarray(array.is_null()).argmax())} has no target")
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        first = (np.arange(len(array), dtype=np.int64) + array.offset) * size
        return first, first + size
    offsets = array.offsets.to_numpy().astype(np.int64)
    return offsets[:-1], offsets[1:]


def check_frequencies(corpus: Corpus):
    """Raise InputError if a series has an unknown frequency."""
    for text in set(corpus.frequencies().tolist()):
        try:
            parse_step(str(text))
        except InputError as error:
            raise InputError(f"{corpus.name}: {error}") from None
