"""A short run of `odd_values.py`."""

import logging

import pytest
from faults.odd_values import try_odd_values
from faults.outcomes import Tally


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
