"""Write a corpus: Arrow shards of limited size, in the layout of `datasets.save_to_disk`."""

import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..durable import partial_name, write_text
from ..errors import InputError

SHARD_BYTES = 500_000_000
"""File size in bytes after which the next file begins, as in `datasets`."""
_BATCH_VALUES, _BATCH_SERIES = 4_000_000, 10_000
"""Bytes buffered before writing; a single longer series is buffered completely."""
_VALUE_TYPES = {"item_id": "string", "start": "timestamp[s]", "freq": "string"}


@dataclass(frozen=True, eq=False)
class CorpusSeries:
    """One series to be written to a corpus."""

    item_id: str
    start: np.datetime64
    freq: str
    target: np.ndarray
    """[C, T] float32, NaN where missing"""
    feat_dynamic_real: np.ndarray | None = None
    """[K, T or more] float32: covariates known in advance"""
    past_feat_dynamic_real: np.ndarray | None = None
    """[K, T] float32"""
    channel_names: tuple[str, ...] | None = None
    """Names of the channels, if the source has any."""


@dataclass(frozen=True)
class CorpusLayout:
    """The columns of a corpus being written."""

    multivariate: bool = False
    """Whether a row holds [C, T] instead of one channel."""
    covariates: tuple[str, ...] = ()
    """Which of feat_dynamic_real and past_feat_dynamic_real it has."""

    @property
    def schema(self) -> pa.Schema:
        several = pa.list_(pa.list_(pa.float32()))
        target = several if self.multivariate else pa.list_(pa.float32())
        fields = [("item_id", pa.string()), ("start", pa.timestamp("s")), ("freq", pa.string()), ("target", target)]
        return pa.schema(fields + [(name, several) for name in self.covariates])

    @property
    def features(self) -> dict:
        """The columns as `datasets` describes them, in a form that versions before 4 also read."""

        def lists(depth: int) -> dict:
            inner = lists(depth - 1) if depth > 1 else {"dtype": "float32", "_type": "Value"}
            return {"feature": inner, "_type": "Sequence"}

        features = {name: {"dtype": kind, "_type": "Value"} for name, kind in _VALUE_TYPES.items()}
        features["target"] = lists(2 if self.multivariate else 1)
        return features | {name: lists(2) for name in self.covariates}


@contextmanager
def new_corpus(output: str | Path, layout: CorpusLayout) -> Iterator[Path]:
    """A folder for the shards of a corpus; it becomes `output` when the block succeeds, and is deleted otherwise.

    Raises:
        InputError: `output` exists and is not empty, cannot be created, or no shard was written.
    """
    target = Path(output).expanduser()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InputError(f"{output} already exists: give another --output")
    partial = partial_name(target.with_name(f"{target.name}.{uuid.uuid4().hex}"))
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from None
    try:
        yield partial
        shards = sorted(partial.glob("*.arrow"))
        if not shards:
            raise InputError(f"{output} would hold no series: the sources are empty")
        names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
        for shard, name in zip(shards, names, strict=True):
            shard.rename(partial / name)
        write_text(partial / "dataset_info.json", json.dumps({"features": layout.features}, indent=2))
        # written last: without this file, a folder is not a corpus
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": uuid.uuid4().hex[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        write_text(partial / "state.json", json.dumps(state, indent=2))
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_shards(folder: Path, stem: str, series: Iterable[CorpusSeries], layout: CorpusLayout) -> int:
    """Write `series` to `folder/<stem>-<number>.arrow` in batches of limited size; returns the number of series."""
    total, batches = 0, _batches(series, layout)
    batch, number = next(batches, None), 0
    while batch is not None:
        with pa.OSFile(str(folder / f"{stem}-{number:05d}.arrow"), "wb") as sink:
            with pa.ipc.new_stream(sink, layout.schema) as writer:
                while batch is not None and sink.tell() < SHARD_BYTES:
                    writer.write_batch(batch)
                    total += len(batch)
                    batch = next(batches, None)
        number += 1
    return total


def _batches(series: Iterable[CorpusSeries], layout: CorpusLayout) -> Iterator[pa.RecordBatch]:
    held: list[CorpusSeries] = []
    values = 0
    for one in series:
        held.append(one)
        values += one.target.size
        if values >= _BATCH_VALUES or len(held) >= _BATCH_SERIES:
            yield _record_batch(held, layout)
            held, values = [], 0
    if held:
        yield _record_batch(held, layout)


def _record_batch(series: list[CorpusSeries], layout: CorpusLayout) -> pa.RecordBatch:
    columns = {
        "item_id": pa.array([one.item_id for one in series], pa.string()),
        "start": pa.array(np.array([one.start for one in series], dtype="datetime64[s]")),
        "freq": pa.array([one.freq for one in series], pa.string()),
    }
    targets = [one.target for one in series]
    columns["target"] = _nested(targets) if layout.multivariate else _lists([row for one in targets for row in one])
    for name in layout.covariates:
        columns[name] = _nested([getattr(one, name) for one in series])
    return pa.record_batch(columns, schema=layout.schema)


def _lists(rows: list[np.ndarray]) -> pa.ListArray:
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int32)
    values = np.concatenate(rows) if rows else np.zeros(0, np.float32)
    return pa.ListArray.from_arrays(offsets, pa.array(values, pa.float32()))


def _nested(matrices: Sequence[np.ndarray | None]) -> pa.ListArray:
    inner = _lists([row for matrix in matrices if matrix is not None for row in matrix])
    counts = [0 if matrix is None else len(matrix) for matrix in matrices]
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    absent = pa.array([matrix is None for matrix in matrices])
    return pa.ListArray.from_arrays(offsets, inner, mask=absent if absent.true_count else None)
