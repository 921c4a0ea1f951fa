"""A short run of `odd_values.py`."""

import logging

import pandas as pd
import pytest
from faults.odd_values import try_odd_values
from faults.outcomes import Tally

from llata_fast.data import read_wide_csv
from llata_fast.data.panel import Panel
from llata_fast.errors import InputError


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_odd_values_end_in_one_line_or_the_right_result():
    tally = Tally()
    try_odd_values(25, 0, tally)
    assert tally.total() >= 100
    assert not tally.examples, "\n".join(tally.examples[:5])


@pytest.mark.parametrize("cell", ["9" * 400, "-" + "9" * 400])
def test_integers_beyond_every_float_are_named(cell, tmp_path):
    """In a column with floats, pandas raises its own error for them."""
    path = tmp_path / "table.csv"
    path.write_text(f"date,a\n2024-01-01T00:00,1.5\n2024-01-01T01:00,{cell}\n2024-01-01T02:00,2\n")
    with pytest.raises(InputError, match=r"line 3, column 'a': the value is infinite"):
        read_wide_csv(path)
    table = pd.DataFrame({"id": ["x"] * 3, "date": pd.date_range("2024", periods=3), "a": ["1.5", cell, "2"]})
    with pytest.raises(InputError, match="row 1: .* is infinite"):
        Panel.from_df(table, id_column="id", timestamp_column="date", target="a")
