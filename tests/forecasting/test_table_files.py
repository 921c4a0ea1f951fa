"""A table's format is decided once for the whole table, whatever pieces it is written in."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llata_fast.data.dates import date_format, parse_dates
from llata_fast.data.steps import parse_step
from llata_fast.errors import InputError
from llata_fast.forecasting.table_files import check_table_format, open_table

STEPS = ("250ms", "15min", "h", "6h", "D", "B", "W", "MS", "M@15", "QE", "YS", "h@Mon-Fri 08:00-15:00")


def lines_of(path, table, form, sizes):
    with open_table(path, form) as write:
        start = 0
        for size in [*sizes, len(table)]:
            if start < len(table):
                write(table.iloc[start : start + size])
            start += size
    return path.read_text().splitlines()


@given(
    step=st.sampled_from(STEPS),
    hours=st.integers(0, 400_000),
    zone=st.sampled_from([None, "UTC", "+05:30"]),
    sizes=st.lists(st.integers(1, 9), max_size=12),
)
@settings(deadline=None, max_examples=60)
def test_pieces_are_written_like_the_complete_table(tmp_path_factory, step, hours, zone, sizes):
    folder = tmp_path_factory.mktemp("table")
    start = np.datetime64("1980-01-01", "us") + np.timedelta64(hours // 24 * 24 if "@" in step else hours, "h")
    dates = pd.DatetimeIndex(parse_step(step).after(start, 30), tz=zone)
    table = pd.DataFrame({"origin": dates[0], "date": dates, "x": np.arange(30.0)})
    form = date_format(dates, parse_step(step))
    whole = lines_of(folder / "whole.csv", table, form, [])
    assert lines_of(folder / "pieces.csv", table, form, sizes) == whole
    assert len({len(line.split(",")[1]) for line in whole[1:]}) == 1
    read = pd.read_csv(folder / "whole.csv", parse_dates=["origin", "date"])
    assert list(read["date"]) == list(dates)
    assert list(parse_dates(read["date"].astype(str))) == list(dates)


def test_numbers_stay_numbers(tmp_path):
    table = pd.DataFrame({"date": [7, 8], "x": [1.5, np.nan]})
    assert lines_of(tmp_path / "a.csv", table, None, [1]) == ["date,x", "7,1.5", "8,"]


def test_an_interrupted_table_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), open_table(path) as write:
        write(pd.DataFrame({"x": [1]}))
        raise KeyboardInterrupt
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_other_formats_are_refused():
    with pytest.raises(InputError, match=".csv, .csv.gz or .parquet"):
        check_table_format("a.xlsx")
