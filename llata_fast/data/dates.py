"""Parse text as dates: whatever has exactly one reading is accepted, and the rest is refused with a suggested form.

It is independent of files: `parse_dates` takes the labels of any table and names the row that fails. `docs/data.md`
lists the accepted and refused forms.
"""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta, timezone

import numpy as np
import pandas as pd

from .digits import read_numbers
from .grids import find_grid, fit, is_local, plain, regularity
from .periods import MONTH_NAMES, DateError, read_periods, refusal
from .steps import DAY, SECOND, Step

_HOUR = 3600 * SECOND
_DIGITS = r"[-+]?[0-9]+(?:\.0+)?"
_TIME = (
    r"(?:(?:[Tt]|, ?| ?- ?| )[0-9]{1,2}(?:[:.][0-9]{2}(?:[:.][0-9]{2}(?:[.,][0-9]{1,9})?)?|[0-9]{2}|[0-9]{4})?"
    r"(?: ?[AaPp]\.?[Mm]\.?)?)"
)
_ZONE = r"(?: ?(?:[Zz]|UTC|GMT|[-+][0-9]{2}(?::?[0-9]{2})?)(?:\[[A-Za-z_/]+\])?)"
_WEEKDAY = r"(?i)^(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?\.?,? +"
_INTERVAL = re.compile(r"[\[(]?(.+?)(?: +(?:-|–|—|to|until|bis) +| ?/ ?(?=[0-9]{4}-)|, ?(?=[0-9]{4}-))(.+?)[\])]?")
_BARE_TIME = re.compile(r"[0-9]{1,2}[:.][0-9]{2}(?:[:.][0-9]{2})?(?: ?[ap]m)?", re.IGNORECASE)
_DATE = "[0-9]{4}[-/. ][0-9]{1,2}[-/. ][0-9]{1,2}"
_HOUR_24 = r"([Tt ])24([:.]?00(?:[:.]00)?(?:\.0+)?)$"
# the forms that pandas parses fast and without help
_PLAIN = r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?)?"


def parse_dates(
    labels: pd.Series | pd.Index | np.ndarray,
    name: str = "date",
    *,
    item: slice | np.ndarray = slice(None),
    expected: Step | None = None,
) -> pd.Index:
    """The moments named by `labels` [rows]: a DatetimeIndex in microseconds, or whole numbers (int64) of an index.

    Labels are text, dates, periods or numbers, all in one form. A period is read as its first moment. A constant offset
    from UTC is kept; if the offset changes, steps of a day or more are read in local time, shorter ones in UTC.

    Args:
        name: of the column; it distinguishes years and Unix time from other numbers.
        item: rows of one series; if text has several readings, the one that makes this series regular is taken.
        expected: the step that the dates should have, which settles remaining ambiguities.

    Raises:
        DateError: a label is not a date, or has several readings; its `row` counts in `labels`.
    """
    labels = pd.Series(labels).reset_index(drop=True)
    if isinstance(labels.dtype, pd.CategoricalDtype):
        labels = labels.astype(labels.cat.categories.dtype)
    if (missing := labels.isna().to_numpy()).any():
        raise DateError("the date is missing", int(missing.argmax()))
    if not len(labels):
        return pd.DatetimeIndex([], dtype="M8[us]")
    if isinstance(labels.dtype, pd.PeriodDtype):
        labels = labels.dt.to_timestamp(how="start")
    elif pd.api.types.infer_dtype(labels) in ("date", "datetime"):
        labels = pd.to_datetime(labels)
    if pd.api.types.is_datetime64_any_dtype(labels.dtype):
        return pd.DatetimeIndex(labels, name=None).as_unit("us")
    text = labels.astype(str).str.strip()
    if re.fullmatch(_DIGITS, text.iloc[0]):
        if len(other := np.flatnonzero(~text.str.fullmatch(_DIGITS))):
            raise DateError(f"{text.iloc[other[0]]!r} is not a whole number like {text.iloc[0]!r}", int(other[0]))
        return read_numbers(text, name, expected)
    if (periods := read_periods(text)) is not None:
        return pd.DatetimeIndex(periods)
    if (match := _INTERVAL.fullmatch(text.iloc[0])) and not _BARE_TIME.fullmatch(match[2]):
        text = _starts(text)
    return _read_clock(text, item, expected)


def _starts(text: pd.Series) -> pd.Series:
    """The beginnings of intervals, such as 2024-01-01 00:00 - 2024-01-01 01:00."""
    starts = []
    for row, label in enumerate(text):
        if (match := _INTERVAL.fullmatch(label)) is None:
            raise DateError(f"{label!r} is not an interval like {text.iloc[0]!r}", row)
        starts.append(match[1])
    return pd.Series(starts)


def _read_clock(text: pd.Series, item: slice | np.ndarray, expected: Step | None) -> pd.DatetimeIndex:
    """Parse dates with or without a time of day."""
    if text.str.fullmatch(_PLAIN).all():
        dates = pd.to_datetime(text, format="ISO8601", errors="coerce")
        if dates.notna().all():
            return pd.DatetimeIndex(dates, name=None).as_unit("us")
    text = text.str.replace(r"\s+", " ", regex=True)
    if re.match(_WEEKDAY, text.iloc[0]):
        text = text.str.replace(_WEEKDAY, "", regex=True)
    example, orders = _example(text)
    if example is None:
        raise DateError(f"{text.iloc[0]!r} {refusal(text.iloc[0])}", 0)
    iso_example, _ = orders[0](pd.Series([example]))
    zoned = re.fullmatch(f"{_DATE}{_TIME}{_ZONE}", iso_example.iloc[0]) is not None
    readings: list[pd.DatetimeIndex] = []
    worst: list[np.ndarray] = []
    for rewrite in orders:
        iso, wrong = _to_iso(text, rewrite, zoned)
        reading = None if wrong.any() else _moments(iso, zoned, item)
        if isinstance(reading, np.ndarray):
            wrong = reading
        elif reading is not None:
            readings.append(reading)
        worst.append(wrong)
    if not readings:
        wrong = min(worst, key=np.sum)
        row = int(wrong.argmax())
        raise DateError(_unlike(text.iloc[row], example, zoned), row)
    return _meant(readings, text, item, expected)


def _unlike(cell: str, example: str, zoned: bool) -> str:
    if re.sub("[0-9]", "0", cell) == re.sub("[0-9]", "0", example):
        return f"{cell!r} is not a date of the calendar"
    has_zone = re.fullmatch(f".*:.*{_ZONE}", cell) is not None
    if ":" in cell and zoned != has_zone:
        return f"{cell!r} has {'no' if zoned else 'an'} UTC offset, but {example!r} has {'one' if zoned else 'none'}"
    hint = "; write month names in English" if re.search("(?i)[a-z]{3}", example) else ""
    return f"{cell!r} is not a date like {example!r}{hint}"


# rewrites the date at the start of each label as ISO 8601; a label that it leaves unchanged is not a date
_Rewrite = Callable[[pd.Series], tuple[pd.Series, np.ndarray]]


def _example(text: pd.Series) -> tuple[str | None, list[_Rewrite]]:
    """A label that is a date, and the possible readings of its day; the longest label, as midnight may be left out."""
    lengths = text.str.len().to_numpy()
    for row in dict.fromkeys((int(lengths.argmax()), 0, len(text) - 1, len(text) // 2, len(text) // 3)):
        if orders := list(_orders(text.iloc[row])):
            return text.iloc[row], orders
    return None, []


def _orders(label: str) -> Iterator[_Rewrite]:
    """The possible readings of the day at the start of `label`."""
    tail = f"{_TIME}?{_ZONE}?"
    if re.fullmatch(f"[0-9]{{8}}{_TIME}{_ZONE}?", label):
        yield _by_pattern("^([0-9]{4})([0-9]{2})([0-9]{2})", r"\1-\2-\3")
    for before, after, order in (
        ("([0-9]{1,2})(?:st|nd|rd|th)?[- /.]*", "[- /.,]*({year})", r"\2-{month}-\1"),
        ("", "[- /.]*([0-9]{1,2})(?:st|nd|rd|th)?[- /.,]+({year})", r"\2-{month}-\1"),
        ("({year})[- /.]*", "[- /.]*([0-9]{1,2})", r"\1-{month}-\2"),
    ):
        for year in ("[0-9]{4}", "[0-9]{2}"):
            first, second = (part.replace("{year}", year) for part in (before, after))
            if re.fullmatch(f"(?i){first}(?:{'|'.join(MONTH_NAMES)}){second}{tail}", label):
                yield _by_name(first, second, order, short="2" if year == "[0-9]{2}" else "4")
    match = re.match("([0-9]+)([-/. ])([0-9]{1,2})([-/. ])([0-9]+)", label)
    if match is None or match[2] != match[4] or not re.fullmatch(tail, label[match.end() :]):
        return
    separator = re.escape(match[2])
    lengths = len(match[1]), len(match[5])
    two, four = "([0-9]{1,2})", "([0-9]{4})"
    if lengths[0] == 4 and lengths[1] <= 2:
        yield _by_pattern(f"^{four}{separator}{two}{separator}{two}", r"\1-\2-\3")
    elif lengths[1] == 4 and lengths[0] <= 2:
        pattern = f"^{two}{separator}{two}{separator}{four}"
        yield _by_pattern(pattern, r"\3-\2-\1")
        # points are used only with the day first
        if match[2] != ".":
            yield _by_pattern(pattern, r"\3-\1-\2")
    elif max(lengths) <= 2:
        pattern = f"^{two}{separator}{two}{separator}{two}"
        if lengths[1] == 2:
            yield _by_pattern(pattern, r"\3-\2-\1", short=True)
            yield _by_pattern(pattern, r"\3-\1-\2", short=True)
        if lengths[0] == 2:
            yield _by_pattern(pattern, r"\1-\2-\3", short=True)


def _by_pattern(pattern: str, order: str, short: bool = False) -> _Rewrite:
    def rewrite(text: pd.Series) -> tuple[pd.Series, np.ndarray]:
        matched = text.str.match(_ungrouped(pattern)).to_numpy()
        text = text.str.replace(pattern, order, regex=True)
        return _in_full_years(text) if short else text, matched

    return rewrite


def _ungrouped(pattern: str) -> str:
    # pandas warns about groups in a pattern that is only matched
    return re.sub(r"\((?!\?)", "(?:", pattern)


def _by_name(before: str, after: str, order: str, short: str) -> _Rewrite:
    def rewrite(text: pd.Series) -> tuple[pd.Series, np.ndarray]:
        matched = np.zeros(len(text), dtype=bool)
        for number, name in enumerate(MONTH_NAMES, 1):
            pattern = f"(?i)^{before}{name}{after}"
            here = text.str.match(_ungrouped(pattern)).to_numpy()
            if here.any():
                matched |= here
                text = text.where(
                    ~here, text.str.replace(pattern, order.replace("{month}", f"{number:02}"), regex=True)
                )
        return _in_full_years(text) if short == "2" else text, matched

    return rewrite


def _in_full_years(text: pd.Series) -> pd.Series:
    """Expand two-digit years into POSIX's range, 1969 to 2068."""
    text = text.str.replace("^(69|[7-9][0-9])-", r"19\1-", regex=True)
    return text.str.replace("^([0-5]?[0-9]|6[0-8])-", r"20\1-", regex=True)


def _to_iso(text: pd.Series, rewrite: _Rewrite, zoned: bool) -> tuple[pd.Series, np.ndarray]:
    """Labels in ISO 8601 (except a twelve-hour clock and hour 24), and a mask of those with another form."""
    iso, matched = rewrite(text)
    form = _DATE + (f"{_TIME}{_ZONE}" if zoned else f"{_TIME}?")
    return iso, ~(matched & iso.str.fullmatch(form).to_numpy())


def _moments(iso: pd.Series, zoned: bool, item: slice | np.ndarray) -> pd.DatetimeIndex | np.ndarray:
    """The moments of ISO 8601 labels, or a mask of those that do not exist in the calendar."""
    labels = iso
    iso = iso.str.replace(r"^([0-9]{4}.[0-9]{1,2}.[0-9]{1,2})(?:, ?| ?- ?)([0-9])", r"\1 \2", regex=True)
    offsets = None
    if zoned:
        iso, offsets = _without_zone(iso)
    iso = iso.str.replace(r"( [0-9]{1,2})\.([0-9]{2})\b", r"\1:\2", regex=True)
    wall, wrong = _wall(iso)
    if wrong.any():
        return wrong
    if offsets is None:
        return pd.DatetimeIndex(wall)
    known = np.unique(offsets)
    if len(known) > 2 and len(known) * 10 > len(offsets):
        raise DateError(
            f"{labels.iloc[0]!r} can be an interval or an offset from UTC, a different one in every row: write its "
            "beginning",
            0,
        )
    instants = wall - offsets.astype("m8[us]")
    if len(known) == 1:
        zone = timezone(timedelta(microseconds=int(known[0]))) if known[0] else "UTC"
        return pd.DatetimeIndex(instants, tz="UTC").tz_convert(zone)
    return _one_clock(instants, wall, item)


def _one_clock(instants: np.ndarray, wall: np.ndarray, item: slice | np.ndarray) -> pd.DatetimeIndex:
    """Dates whose offset changes: local time if rows are at least days apart, otherwise instants."""
    if regularity(wall[item]) <= regularity(instants[item]):
        grid = find_grid(wall[item])
        if grid is not None and is_local(grid.step):
            return pd.DatetimeIndex(wall)
    return pd.DatetimeIndex(instants, tz="UTC")


def _without_zone(iso: pd.Series) -> tuple[pd.Series, np.ndarray]:
    """Labels without their time zone, and their offsets from UTC in microseconds (int64)."""
    bare = iso.str.replace(f"{_ZONE}$", "", regex=True)
    zones = pd.Series([label[len(rest) :] for label, rest in zip(iso, bare, strict=True)])
    codes, names = pd.factorize(zones)
    return bare, np.array([_offset(name) for name in names], dtype=np.int64)[codes]


def _offset(zone: str) -> int:
    match = re.search(r"([-+])([0-9]{2}):?([0-9]{2})?", zone)
    if match is None:
        return 0
    return int(f"{match[1]}1") * (int(match[2]) * 60 + int(match[3] or 0)) * 60 * SECOND


def _wall(iso: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Local times (datetime64[us]), and a mask of labels that are not a time."""
    late = iso.str.contains("[Tt ]24[:.]?00").to_numpy()
    if late.any():
        late = iso.str.contains(_ungrouped(_HOUR_24)).to_numpy()
        iso = iso.str.replace(_HOUR_24, r"\g<1>00\2", regex=True)
    twelve = iso.str.contains("[AaPp][.]?[Mm]").to_numpy()
    if twelve.any():
        afternoon = iso.str.contains("[Pp][.]?[Mm]").to_numpy()
        iso = iso.str.replace(" ?[AaPp][.]?[Mm][.]?$", "", regex=True)
    # an hour without minutes
    iso = iso.str.replace("([Tt ][0-9]{1,2})$", r"\1:00", regex=True).str.replace(",", ".", regex=False)
    parsed = pd.to_datetime(iso, format="ISO8601", errors="coerce")
    wrong = parsed.isna().to_numpy()
    moments = parsed.to_numpy().astype("M8[us]")
    if twelve.any():
        hour = ((moments - moments.astype("M8[D]")).astype(np.int64) // _HOUR).astype(np.int64)
        bare = iso.str.fullmatch("[^ Tt]+").to_numpy()
        wrong = wrong | (((hour > 12) | ~twelve) & ~bare)
        shift = np.where(afternoon, 12, 0) - np.where(twelve & (hour == 12), 12, 0)
        moments = moments + (shift * _HOUR).astype("m8[us]")
    return moments + np.where(late, DAY, 0).astype("m8[us]"), wrong


def _meant(
    readings: list[pd.DatetimeIndex], text: pd.Series, item: slice | np.ndarray, expected: Step | None
) -> pd.DatetimeIndex:
    """Of several readings of the same text, the one that makes a regular series."""
    distinct = [reading for row, reading in enumerate(readings) if not any(map(reading.equals, readings[:row]))]
    if len(distinct) == 1:
        return distinct[0]
    if expected is not None:
        fitting = [reading for reading in distinct if _has_step(plain(reading[item], is_local(expected)), expected)]
        if len(fitting) == 1:
            return fitting[0]
    ranks = [regularity(plain(reading[item], local=True)) for reading in distinct]
    if ranks.count(min(ranks)) == 1 and min(ranks)[0] < 2:
        return distinct[ranks.index(min(ranks))]
    raise DateError(
        f"{text.iloc[0]!r} and the other dates can be read day first or month first; write them as 2024-01-31"
    )


def _has_step(dates: np.ndarray, step: Step) -> bool:
    expected, own = fit(step, dates), find_grid(dates)
    if expected is not None and not expected.holes:
        return True
    return own is not None and own.step.same_length(step)


def date_format(dates: pd.Index, *steps: Step) -> str | None:
    """The format in which `dates`, and dates that follow by any of `steps`, are written; None for whole numbers.

    It has no time of day if no date has one, except that dates with a UTC offset always include the time.
    """
    if not isinstance(dates, pd.DatetimeIndex):
        return None
    times = plain(dates, local=True).astype(np.int64) % DAY
    # what fixed steps and opening hours add to the time of day
    shifts = [getattr(step, "amount", getattr(step, "base", DAY)) for step in steps]
    if (times % SECOND).any() or any(shift % SECOND for shift in shifts):
        return "%Y-%m-%d %H:%M:%S.%f"
    if times.any() or dates.tz is not None or any(shift % DAY for shift in shifts):
        return "%Y-%m-%d %H:%M:%S"
    return "%Y-%m-%d"
