"""One step, however a corpus spells it."""

import pandas as pd
import pytest

from llata_fast.data.frequencies import read_frequency, seasonality
from llata_fast.errors import InputError

SAME = [
    ("h", "H", "hourly", "60min", "60T", "1_hours"),
    ("30min", "30T", "half_hourly", "1800S"),
    ("10min", "10T", "10_minutes"),
    ("4s", "4S", "4_seconds"),
    ("ME", "M", "monthly"),
    ("QE-DEC", "Q", "Q-DEC", "QE", "quarterly"),
    ("YE-DEC", "A", "Y", "A-DEC", "yearly"),
    ("YS-JAN", "AS", "AS-JAN"),
    ("W-SUN", "W", "weekly"),
    ("D", "1D", "daily", "24h"),
]


@pytest.mark.parametrize("spellings", SAME, ids=lambda row: row[0])
def test_every_spelling_is_the_same_step(spellings):
    first = pd.date_range("2020-01-31", periods=30, freq=spellings[0])
    for spelling in spellings:
        assert (pd.date_range("2020-01-31", periods=30, freq=read_frequency(spelling)) == first).all()
        assert seasonality(spelling) == seasonality(spellings[0])


@pytest.mark.parametrize(
    "frequency, period",
    [("s", 86400), ("min", 1440), ("15T", 96), ("h", 24), ("2h", 12), ("6H", 4), ("D", 7), ("B", 5), ("W-MON", 52)]
    + [("M", 12), ("2MS", 6), ("Q", 4), ("A", 1), ("7D", 52), ("7h", 1), ("5ME", 1), ("2D", 1), ("bh", 1)],
)
def test_seasonality(frequency, period):
    assert seasonality(frequency) == period


@pytest.mark.parametrize("text", ["", "foo", "1e9", "-1h", "0h", "H H", "h; rm", "-", "3_elephants"])
def test_what_is_no_frequency_is_named(text):
    with pytest.raises(InputError, match="is not a frequency"):
        read_frequency(text)
