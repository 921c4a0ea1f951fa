"""Names in pictures are never read as formulas, and a failing picture never fails a run."""

import warnings

import numpy as np
import pandas as pd
import pytest

from llata_fast.errors import InputWarning
from llata_fast.forecasting.pictures import HAS_MATPLOTLIB, plot_forecast

pytestmark = pytest.mark.skipif(not HAS_MATPLOTLIB, reason="needs matplotlib")


def draw(path, columns, index, title="", names=("forecast",)):
    frame = pd.DataFrame(np.arange(20.0 * len(columns)).reshape(20, -1), index=index, columns=columns)
    forecasts = {name: frame.iloc[12:] for name in names}
    return plot_forecast(path, history=frame.iloc[:12], forecasts=forecasts, truth=frame.iloc[12:], title=title)


@pytest.mark.parametrize(
    "name", ["revenue ($$)", "spread $bid-$ask", r"a$\frac$b", "50 %", "$", "a_b^c", "", "{x}", r"\alpha", "$$$"]
)
def test_names_are_drawn_literally(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw(tmp_path / "a.png", [name, "b"], pd.date_range("2024-01-01", periods=20), name, (f"x {name}",))
    assert drawn and (tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(1500, 1520),
        pd.date_range("2024-01-01", periods=20, freq="h", tz="UTC"),
        pd.date_range("1066-01-01", periods=20, unit="s"),
        pd.date_range("3000-12-01", periods=20, unit="s"),
    ],
    ids=["numbers", "zone", "early", "late"],
)
def test_any_dates(tmp_path, index):
    assert draw(tmp_path / "a.png", ["a"], index)


def test_a_picture_that_fails_is_a_warning(tmp_path):
    with pytest.warns(InputWarning, match="a.png could not be drawn: FileNotFoundError"):
        assert not draw(tmp_path / "absent" / "a.png", ["a"], pd.date_range("2024-01-01", periods=20))
