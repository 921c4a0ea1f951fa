"""Arrays and columns of every type: without numbers or names they are refused; masked values are missing."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_model

from llata_fast.data.panel import Panel
from llata_fast.errors import InputError
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.preprocessor import Preprocessor

STEPS = 14


@pytest.fixture
def forecaster(backbone, plain_ops):
    return Forecaster(tiny_model(backbone).eval(), Preprocessor("x", ["a"], "date", "D", 7, [0.0], [1.0]))


@pytest.mark.parametrize(
    "given",
    [
        lambda values: values.astype(np.float16),
        lambda values: values.astype(">f8"),
        lambda values: values.astype(object),
        lambda values: values.astype(int).tolist(),
        lambda values: pd.Series(values),
        lambda values: np.ma.masked_array(values),
        lambda values: torch.from_numpy(values).bfloat16(),
        lambda values: torch.from_numpy(values).requires_grad_(),
        lambda values: [decimal.Decimal(int(value)) for value in values],
    ],
)
def test_arrays_of_any_numbers(given, forecaster):
    values = np.arange(STEPS) % 5.0
    (expected,), _ = forecaster.predict([values])
    (found,), _ = forecaster.predict([given(values)])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_masked_values_are_missing(forecaster):
    values = np.arange(STEPS) % 5.0
    masked = np.ma.masked_array(np.where(values == 3, 1e6, values), mask=values == 3)
    (found,), _ = forecaster.predict([masked])
    (expected,), _ = forecaster.predict([np.where(values == 3, np.nan, values)])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "arrays",
    [
        5,
        None,
        "text",
        [],
        [[]],
        [None],
        [{"a": 1}],
        [["x"] * STEPS],
        [np.zeros(STEPS, complex)],
        [np.zeros((STEPS, 2, 2))],
        [np.full(STEPS, np.inf)],
        [torch.zeros(STEPS, device="meta")],
    ],
    ids=str,
)
def test_arrays_of_anything_else(arrays, forecaster):
    with pytest.raises(InputError):
        forecaster.predict(arrays)


ODD = {
    "lists": [[1.0]] * STEPS,
    "mappings": [{"a": 1}] * STEPS,
    "sets": [{1}] * STEPS,
    "arrays": [np.zeros(2)] * STEPS,
    "durations": pd.to_timedelta(np.arange(STEPS), "D"),
    "times": [datetime.time(1)] * STEPS,
    "infinity": [np.inf] * STEPS,
    "complex": [1j] * STEPS,
    "nothing": [None] * STEPS,
    "classes": [object] * STEPS,
    "dates": pd.date_range("2024-01-01", periods=STEPS),
    "zoned": pd.date_range("2024-01-01", periods=STEPS, tz="UTC"),
    "intervals": pd.interval_range(0, STEPS),
}


@pytest.mark.parametrize("column", ["id", "date", "y"])
@pytest.mark.parametrize("kind", ODD)
def test_columns_of_a_table(kind, column):
    """Any values that can be told apart may be ids; as dates or numbers they are refused, unless they are dates."""
    table = {"id": ["x"] * STEPS, "date": pd.date_range("2024-01-01", periods=STEPS), "y": np.arange(STEPS) * 1.0}
    table = pd.DataFrame(table | {column: ODD[kind]})
    read = lambda: Panel.from_df(table, id_column="id", timestamp_column="date", target="y", freq="D", missing="mask")
    refused = ("lists", "mappings", "sets", "arrays", "nothing") if column == "id" else tuple(ODD)
    if (
        (column == "date" and kind in ("dates", "zoned"))
        or (column == "y" and kind == "nothing")
        or kind not in refused
    ):
        assert len(read().values) >= 1
        return
    with pytest.raises(InputError, match=column):
        read()
