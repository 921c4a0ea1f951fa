"""A panel's covariates: placed on the items' grids, typed, continued into the future, or refused in one line."""

import numpy as np
import pandas as pd
import pytest

from llata_fast.data.panel import Panel
from llata_fast.errors import InputError

ROLES = {"known_covariates": ["price", "promo"], "past_covariates": ["visits"], "static_covariates": ["store"]}


def sales(sizes=(8, 6), freq="D", start="2024-01-01"):
    parts = []
    for item, size in enumerate(sizes):
        steps = np.arange(size)
        columns = {
            "item_id": f"i{item}",
            "timestamp": pd.date_range(start, periods=size, freq=freq),
            "target": 10.0 * item + steps,
            "price": 1.0 + item + steps / 10,
            "promo": steps % 3 == 0,
            "visits": steps + 0.5,
            "store": f"s{item}",
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def after(table, horizon=3, freq="D"):
    """The known covariates for the `horizon` steps after each item."""
    parts = []
    for name, rows in table.groupby("item_id", sort=False):
        dates = pd.date_range(rows["timestamp"].max(), periods=horizon + 1, freq=freq)[1:]
        part = {"item_id": name, "timestamp": dates, "price": 7.0 + np.arange(horizon), "promo": True}
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def test_every_covariate_is_aligned_with_its_target():
    table = sales().drop(index=[3, 10])
    shuffled = table.sample(frac=1, random_state=1)
    before = shuffled.copy()
    panel = Panel.from_df(shuffled, **ROLES)
    pd.testing.assert_frame_equal(shuffled, before)
    assert panel.covariates.columns == ("price", "promo", "visits")
    back = panel.to_df().dropna(subset="target").sort_values(["item_id", "timestamp"]).reset_index(drop=True)
    expected = table.assign(promo=table["promo"].astype(str)).reset_index(drop=True)
    pd.testing.assert_frame_equal(back, expected[list(back)], check_dtype=False)
    # covariates are missing where the table has no row, but static ones are not
    whole = panel.to_df()
    hole = whole[(whole["item_id"] == "i0") & (whole["timestamp"] == "2024-01-04")].iloc[0]
    assert np.isnan(hole["price"]) and pd.isna(hole["promo"]) and hole["store"] == "s0"


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (["b", "a", None, "b"], ("a", "b")),
        ([True, False, None, True], ("False", "True")),
        (pd.Categorical([3, 1, 3, 1]), ("1", "3")),
        (pd.Categorical([3.0, 1.0, None, 1.0]), ("1", "3")),
        ([3, 1, 3, 1], None),
        (pd.array([3, None, 3, 1], dtype="Int64"), None),
        ([None, None, None, None], None),
    ],
    ids=["text", "booleans", "categories", "categories with a gap", "numbers", "nullable numbers", "nothing"],
)
def test_text_and_booleans_are_categories(values, texts):
    table = sales((4,)).assign(price=values)
    covariates = Panel.from_df(table, known_covariates="price").covariates
    assert covariates.categories.get("price") == texts
    missing = pd.Series(values).isna().to_numpy()
    assert (np.isnan(covariates.values[:, 0]) == missing).all()


@pytest.mark.parametrize(
    ("change", "roles", "message"),
    [
        ({}, {"known_covariates": ["cost"]}, "no column 'cost' (known_covariates) among item_id"),
        ({}, {"past_covariates": ["target"]}, "'target' cannot be one of past_covariates: it is already the target"),
        ({}, {"static_covariates": ["item_id"]}, "'item_id' cannot be one of static_covariates: it is already the id"),
        (
            {},
            ROLES | {"past_covariates": "price"},
            "'price' cannot be one of past_covariates: it is already one of known_",
        ),
        ({"price": np.inf}, ROLES, "item 'i0', column 'price', row 0: the value is infinite"),
        ({"price": pd.Timestamp("2024")}, ROLES, "row 0: Timestamp('2024-01-01 00:00:00') is neither a number nor"),
        ({}, {"static_covariates": "visits"}, "item 'i0', row 1, column 'visits': the value differs from the"),
        ({}, {"calendar": "Atlantis"}, "calendar Atlantis: neither hour, weekday, month nor a country"),
        ({"timestamp": range(14)}, {"calendar": True}, "a calendar needs dates, but these timestamps are whole"),
        ({"calendar_month": 1}, {"calendar": True, "past_covariates": "calendar_month"}, "rename it"),
    ],
)
def test_invalid_covariates_are_refused_in_one_line(change, roles, message):
    if roles.get("calendar") == "Atlantis":
        pytest.importorskip("holidays")
    with pytest.raises(InputError) as error:
        Panel.from_df(sales().assign(**change), **roles)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_calendar_uses_local_time():
    hours = pd.date_range("2024-03-30 22:00", periods=30, freq="h", tz="Europe/Berlin")
    table = pd.DataFrame({"item_id": 1, "timestamp": hours, "target": 1.0})
    panel = Panel.from_df(table, calendar=True).ahead(30)
    covariates = panel.covariates
    assert covariates.known == ("calendar_hour", "calendar_weekday", "calendar_month")
    later = pd.date_range(hours[0], periods=60, freq="h")
    for place, values in enumerate((later.hour, later.day_of_week, later.month - 1)):
        assert (covariates.values[:, place] == values).all()


@pytest.mark.parametrize(
    ("freq", "columns"),
    [("15min", ("hour", "weekday", "month")), ("D", ("weekday", "month")), ("W-MON", ("month",)), ("MS", ("month",))],
)
def test_a_calendar_has_only_units_longer_than_the_step(freq, columns):
    covariates = Panel.from_df(sales((8,), freq), calendar=True).covariates
    assert covariates.calendar == tuple(f"calendar_{name}" for name in columns)


@pytest.mark.parametrize(
    ("freq", "marked"), [("D", ["2024-12-25"]), ("W-MON", ["2024-12-23", "2024-12-30", "2025-01-20"])]
)
def test_holidays_are_those_of_a_country(freq, marked):
    pytest.importorskip("holidays")
    table = sales((8,), freq, "2024-12-20")
    panel = Panel.from_df(table, calendar=["weekday", "US"])
    free = panel.covariates.values[:, 1] == 1
    assert list(panel.to_df()["timestamp"][free].astype(str)) == marked


def test_a_table_of_the_future_extends_known_covariates():
    table = sales()
    panel = Panel.from_df(table, **ROLES, calendar=True)
    future = after(table).assign(promo=[True, False, None] * 2)
    # other ids and times are ignored
    extra = future.assign(timestamp=future["timestamp"] + pd.Timedelta(days=100))
    foreign = future.assign(item_id="other")
    ahead = panel.ahead(3, pd.concat([extra, foreign, future]).sample(frac=1, random_state=0))
    covariates = ahead.covariates
    assert (np.diff(covariates.offsets) == panel.lengths + 3).all()
    rows = covariates.values[covariates.offsets[1] - 3 : covariates.offsets[1]]
    np.testing.assert_array_equal(rows[:, 0], [7, 8, 9])
    np.testing.assert_array_equal(rows[:, 1], [1, 0, np.nan])
    # 9 to 11 January 2024
    np.testing.assert_array_equal(rows[:, 2], [1, 2, 3])
    assert np.isnan(rows[:, 4]).all(), "nobody knows the future of a past covariate"
    np.testing.assert_array_equal(covariates.values[:8], panel.covariates.values[:8])
    assert (np.diff(panel.covariates.offsets) == panel.lengths).all(), "the caller's panel is not changed"


def test_known_covariates_of_removed_rows_remain():
    panel = Panel.from_df(sales(), **ROLES)
    cut = panel.until(3)
    assert list(cut.lengths) == [5, 3]
    np.testing.assert_array_equal(cut.ahead(3).covariates.values, panel.covariates.values)
    np.testing.assert_array_equal(cut.select(["i1"]).covariates.values, panel.covariates.values[8:])
    with pytest.raises(InputError, match="the known covariates price, promo end with the targets: give their next 4"):
        cut.ahead(4)


FUTURE = {
    "lacks a column": (lambda f: f.drop(columns="price"), "no column 'price' (known_covariates) among item_id"),
    "lacks the id": (
        lambda f: f.rename(columns={"item_id": "id"}),
        "no column 'item_id' (as in the table of the past)",
    ),
    "lacks an item": (lambda f: f[f["item_id"] == "i0"], "lacks rows of item 'i1': its 3 steps ahead are 2024-01-07"),
    "starts late": (
        lambda f: f.drop(index=[0]),
        "item 'i0' starts late, at 2024-01-10 00:00:00: its 3 steps ahead are",
    ),
    "stops early": (
        lambda f: f.drop(index=[2, 5]),
        "item 'i0' ends early, at 2024-01-10 00:00:00 (and so do 1 others)",
    ),
    "has a hole": (lambda f: f.drop(index=[4]), "item 'i1' has no row for 2024-01-08 00:00:00: its 3 steps ahead"),
    "repeats": (lambda f: f.iloc[[0, 1, 1, 2, 3, 4, 5]], "item 'i0', row 2: 2024-01-10 00:00:00 appears twice, first"),
    "is off the grid": (
        lambda f: f.assign(timestamp=f["timestamp"] + pd.Timedelta(hours=1)),
        "item 'i0', row 0: 2024-01-09 01:00:00 is not one of the item's dates, which continue with 2024-01-09",
    ),
    "is text": (lambda f: f.assign(price="cheap"), "column 'price': it holds categories, but numbers in the past"),
    "is infinite": (lambda f: f.assign(price=np.inf), "item 'i0', column 'price', row 0: the value is infinite"),
    "is not a date": (lambda f: f.assign(timestamp="soon"), "column 'timestamp', row 0: "),
    "is no table": (lambda f: f.to_numpy(), "future_df must be a DataFrame or an Arrow table, got ndarray"),
}


@pytest.mark.parametrize("case", FUTURE)
def test_an_incomplete_future_is_refused(case):
    spoil, message = FUTURE[case]
    panel = Panel.from_df(sales(), **ROLES)
    with pytest.raises(InputError) as error:
        panel.ahead(3, spoil(after(sales())))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("roles", [{}, {"calendar": True}, {"past_covariates": "visits"}])
def test_a_future_without_known_covariates_is_refused(roles):
    panel = Panel.from_df(sales(), **roles)
    with pytest.raises(InputError, match="future_df is not used: there are no known covariates"):
        panel.ahead(3, after(sales()))


def test_covariates_are_read_from_files(tmp_path):
    table = sales()
    table.to_csv(tmp_path / "sales.csv", index=False)
    table.to_parquet(tmp_path / "sales.parquet")
    expected = Panel.from_df(table, **ROLES)
    for panel in (
        Panel.from_csv(tmp_path / "sales.csv", **ROLES),
        Panel.from_parquet(tmp_path / "sales.parquet", **ROLES),
    ):
        np.testing.assert_array_equal(panel.covariates.values, expected.covariates.values)
        assert panel.covariates.categories == expected.covariates.categories
