"""Read labels that name a period, such as 2005M01, Q1 2005 or 2019-W02, as the period's first moment."""

import re

import numpy as np
import pandas as pd

from ..errors import InputError

MONTH_NAMES = (
    *("jan(?:uary)?", "feb(?:ruary)?", "mar(?:ch)?", "apr(?:il)?", "may", "june?", "july?"),
    *("aug(?:ust)?", "sept?(?:ember)?", "oct(?:ober)?", "nov(?:ember)?", "dec(?:ember)?"),
)
MONTH_NAME = f"(?:{'|'.join(MONTH_NAMES)})"

_SEPARATOR = "[-/.: ]?"
_YEAR = "(?P<year>[0-9]{4})"
# each pattern names its parts; the first that matches a column's first label is the form of all its labels
_FORMS = [
    re.compile(form, re.IGNORECASE)
    for form in (
        f"{_YEAR}{_SEPARATOR}M(?P<month>[0-9]{{1,2}})",
        f"M(?P<month>[0-9]{{1,2}}){_SEPARATOR}{_YEAR}",
        f"{_YEAR}[-/](?P<month>[0-9]{{1,2}})",
        f"{_YEAR}[.](?P<month>[0-9]{{2}})",
        f"(?P<month>[0-9]{{1,2}})[-/.]{_YEAR}",
        f"(?P<name>{MONTH_NAME})[-/., ']*{_YEAR}",
        f"(?P<name>{MONTH_NAME})[. ]*'(?P<short_year>[0-9]{{2}})",
        f"{_YEAR}[-/., ]*(?P<name>{MONTH_NAME})",
        f"{_YEAR}{_SEPARATOR}Q(?P<quarter>[1-4])",
        f"(?:Q(?P<quarter>[1-4])|(?P<quarter_of>[1-4])Q){_SEPARATOR}{_YEAR}",
        f"{_YEAR}{_SEPARATOR}[HS](?P<half>[12])",
        f"[HS](?P<half>[12]){_SEPARATOR}{_YEAR}",
        f"{_YEAR}[-/ ]?W(?:eek|k)? ?(?P<week>[0-9]{{1,2}})(?:-?(?P<weekday>[1-7]))?",
        f"W(?:eek|k)? ?(?P<week>[0-9]{{1,2}})[-/ ]?{_YEAR}",
        f"{_YEAR}-(?P<day_of_year>[0-9]{{3}})",
    )
]

_DAY_OR_YEAR = "can be a month of a year or a day without its year: write 2005-01 for the month, 2005-01-31 for the day"
# forms that look like a date but are refused, and how to write them instead
_REFUSED = [
    (re.compile(form, re.IGNORECASE), reason)
    for form, reason in (
        (f"{MONTH_NAME}[-/. ]?[0-9]{{1,2}}|[0-9]{{1,2}}[-/. ]?{MONTH_NAME}", _DAY_OR_YEAR),
        (
            "FY.*|.* FY.*|.*[0-9]FY.*",
            "is in a fiscal year, which may begin in any month: write its first day",
        ),
        ("[0-9]{9,}[.][0-9]+", "is not a date; write Unix timestamps as dates, 2024-01-31 12:00:00.5"),
        ("[0-9]{5}[.][0-9]+", "is not a date; write a spreadsheet's numbers as dates, 2024-01-31 12:00"),
        ("[0-9]{4}[.][0-9]+", "is not a date; write parts of a year as its months or days, 2005-01 or 2005-01-31"),
        ("[0-9]{1,2}:[0-9]{2}.*", "is not a date; write the day before the time, 2024-01-31 12:00"),
        (f"[0-9]{{4}}{_SEPARATOR}Q.*|Q.*", "is not a quarter; write 2005-Q1"),
        ("[0-9]{2}[-/ ]?Q.*", "is not a quarter; write 2005-Q1"),
        (".*[0-9] ?[(]?[A-Z]{3,4}(?:/[A-Z]{3,4})?[)]?", "names a time zone: write the offset, 2024-01-31 12:00+01:00"),
        ("(?:[0-9]{4})?[-/ ]?W.*", "is not a week; write 2019-W02"),
        (
            "[0-9].*[a-zäöüéûç]{3,}.*|[a-zäöüéûç]{3,}.*[0-9]",
            "is not a date; month names are read in English: write 2005-01 or 2005-01-31",
        ),
    )
]


class DateError(InputError):
    """Text that cannot be read as a date; `row` is the row at fault, if it is a single one."""

    def __init__(self, reason: str, row: int | None = None):
        super().__init__(reason)
        self.row = row


def read_periods(text: pd.Series) -> np.ndarray | None:
    """First moments (datetime64[us]) of the periods named by `text` [rows]; None if its first label is not a period.

    Raises DateError for a label in another form.
    """
    form = next((form for form in _FORMS if form.fullmatch(text.iloc[0])), None)
    if form is None:
        return None
    codes, labels = pd.factorize(text)
    moments = np.empty(len(labels), dtype="M8[us]")
    for number, label in enumerate(labels):
        match = form.fullmatch(label)
        moment = _first_moment(match.groupdict()) if match else None
        if moment is None:
            row = int((codes == number).argmax())
            raise DateError(
                f"{label!r} is not a date like {labels[0]!r}{_season_hint(labels) or _week_hint(label)}", row
            )
        moments[number] = moment
    if _season_hint(labels):
        raise DateError(f"{labels[0]!r} can be a month or two years{_season_hint(labels)}", 0)
    return moments[codes]


def _first_moment(parts: dict[str, str | None]) -> np.datetime64 | None:
    """The first moment of the period; None if it does not exist in the calendar."""
    numbers = {name: int(part) for name, part in parts.items() if part and part.isdigit()}
    year = numbers.get("year")
    if year is None:
        # POSIX's range of two-digit years, 1969 to 2068
        year = numbers["short_year"] + (1900 if numbers["short_year"] >= 69 else 2000)
    if not 1 <= year <= 9999:
        return None
    if week := parts.get("week"):
        return _monday(year, int(week), numbers.get("weekday", 1))
    first = np.datetime64(f"{year:04}-01", "M")
    if (day := numbers.get("day_of_year")) is not None:
        moment = first.astype("M8[D]") + (day - 1)
        return moment.astype("M8[us]") if day and moment.astype("M8[Y]") == first.astype("M8[Y]") else None
    if name := parts.get("name"):
        month = next(number for number, form in enumerate(MONTH_NAMES, 1) if re.fullmatch(form, name, re.IGNORECASE))
    else:
        quarter = numbers.get("quarter", numbers.get("quarter_of"))
        month = (
            numbers.get("month")
            or (quarter and 3 * quarter - 2)
            or (numbers.get("half", 0) and 6 * numbers["half"] - 5)
        )
    return (first + (month - 1)).astype("M8[us]") if 1 <= month <= 12 else None


def _monday(year: int, week: int, weekday: int) -> np.datetime64 | None:
    """A day of an ISO 8601 week; week 1 contains 4 January."""
    fourth = np.datetime64(f"{year:04}-01-04", "D")
    monday = fourth - (fourth.astype(np.int64) + 3) % 7 + 7 * (week - 1)
    # a week belongs to the year of its Thursday
    if week < 1 or (monday + 3).astype("M8[Y]") != fourth.astype("M8[Y]"):
        return None
    return (monday + (weekday - 1)).astype("M8[us]")


def _season_hint(labels: pd.Index) -> str:
    """A hint for 2004/05, 2005/06, ...: years that begin in one calendar year and end in the next."""
    pairs = [re.fullmatch("[0-9]{2}([0-9]{2})[-/]([0-9]{2})", label) for label in labels]
    if len(pairs) > 1 and all(pair and (int(pair[1]) + 1) % 100 == int(pair[2]) for pair in pairs):
        return "; write the first day of a season, 2004-10-01"
    return ""


def _week_hint(label: str) -> str:
    match = re.fullmatch("[0-9]{4}[-/.]?([0-9]{2})", label)
    return "; write weeks as 2019-W13" if match and 12 < int(match[1]) <= 53 else ""


def refusal(cell: str) -> str:
    """Why a cell of no known form is refused, and how to write it instead."""
    return next(
        (reason for form, reason in _REFUSED if form.fullmatch(cell)), "is not a date; write it as 2024-01-31 12:00"
    )
