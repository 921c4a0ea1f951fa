"""Monash's .tsf format: a header of @ lines, then one series per line, `T1:1979-01-01 00-00-00:1.5,?,2.5`."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import InputError

_WORDS = {
    "yearly": "YE",
    "quarterly": "QE",
    "monthly": "ME",
    "weekly": "W",
    "daily": "D",
    "hourly": "h",
    "half_hourly": "30min",
    "minutely": "min",
}
_UNITS = {"second": "s", "minute": "min", "hour": "h", "day": "D", "week": "W", "month": "ME", "year": "YE"}
_EPOCH = "1970-01-01 00-00-00"
"""Start of series in files without dates."""


def read_tsf(path: Path) -> tuple[str | None, Iterator[tuple[str, pd.Timestamp, np.ndarray]]]:
    """The file's @frequency as a step (None if it states none), and name, start and values [T] float64 of each series.

    "?" is a missing value, NaN. Raises InputError, with the line number, for anything that is not .tsf.
    """
    attributes: list[tuple[str, str]] = []
    frequency = None
    lines = _numbered_lines(path)
    for number, line in lines:
        word, _, rest = line.partition(" ")
        if word == "@data":
            break
        if word == "@attribute":
            parts = rest.split()
            if len(parts) != 2 or parts[1] not in ("string", "numeric", "date"):
                raise InputError(f"{path}, line {number}: @attribute needs a name and string, numeric or date")
            attributes.append((parts[0], parts[1]))
        elif word == "@frequency":
            frequency = _step(rest.strip())
        elif not word.startswith("@"):
            raise InputError(f"{path}, line {number} comes before @data but is not an @ line")
    else:
        raise InputError(f"{path} has no @data line: not a .tsf file, or one that was cut short")
    return frequency, (_read_line(path, number, line, attributes) for number, line in lines)


def _step(words: str) -> str:
    """half_hourly -> 30min, 4_seconds -> 4s; any other word is left unchanged."""
    if (counted := re.fullmatch(r"(\d+)_([a-z]+?)s?", words)) and counted[2] in _UNITS:
        return counted[1] + _UNITS[counted[2]]
    return _WORDS.get(words, words)


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        # files of its tools are not always UTF-8
        with path.open(encoding="latin-1") as file:
            for number, line in enumerate(file, 1):
                line = line.strip()
                if line and not line.startswith("#"):
                    yield number, line
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _read_line(
    path: Path, number: int, line: str, attributes: list[tuple[str, str]]
) -> tuple[str, pd.Timestamp, np.ndarray]:
    *fields, values = line.split(":")
    where = f"{path}, line {number}"
    if len(fields) != len(attributes):
        raise InputError(f"{where} has {len(fields)} attributes, but the header declares {len(attributes)}")
    given = {kind: field for field, (_, kind) in zip(fields, attributes, strict=True)}
    named = {name: field for field, (name, _) in zip(fields, attributes, strict=True)}
    name = named.get("series_name", f"T{number}")
    try:
        start = pd.to_datetime(given.get("date", _EPOCH), format="%Y-%m-%d %H-%M-%S")
    except ValueError:
        raise InputError(f"{where}: {given['date']!r} is not a date like 1979-01-01 00-00-00") from None
    try:
        steps = np.array([np.nan if value == "?" else float(value) for value in values.split(",")])
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    return name, start, steps
