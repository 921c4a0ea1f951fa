"""Covariates as model inputs: scaled by the training rows alone, unseen categories 0, missing values NaN."""

import numpy as np
import pytest
import torch
from data.test_covariates import ROLES, sales

from llata_fast.data.covariate_encoding import FARTHEST, CovariateEncoding, Scale, WindowCovariates
from llata_fast.data.panel import Panel
from llata_fast.errors import InputError


def encoded(panel, ends=None):
    encoding = CovariateEncoding.fit(panel, panel.lengths if ends is None else np.asarray(ends))
    return encoding, WindowCovariates(panel, encoding)


def window(covariates, item=0, cut=4, L=3, H=2, **more):
    found = covariates.of(torch.tensor([item]), torch.tensor([cut]), L, H, **more)
    return {name: values[0] for name, values in found.items()}


def test_only_training_rows_are_measured():
    table = sales((8,)).astype({"promo": str})
    later = table.copy()
    later.loc[5:, "price"] *= 1000
    later.loc[5:, "promo"] = "never seen"
    encodings = [encoded(Panel.from_df(frame, **ROLES), [5])[0] for frame in (table, later)]
    assert encodings[0] == encodings[1]
    assert encodings[0].categories == {"promo": ("False", "True"), "store": ("s0",)}
    values = table["price"][:5].to_numpy()
    assert encodings[0].numbers["price"] == Scale(pytest.approx(values.mean()), pytest.approx(values.std()))


def test_windows_contain_only_what_is_known_at_their_origin():
    table = sales((8, 6))
    encoding, covariates = encoded(Panel.from_df(table, **ROLES), [8, 6])
    found = window(covariates, item=1, cut=4)
    rows = table[table["item_id"] == "i1"]
    assert list(found) == ["past_covariates", "future_covariates", "static_covariates"]
    np.testing.assert_array_equal(found["past_covariates"][:, 1], rows["promo"][1:4] + 1)
    np.testing.assert_array_equal(found["future_covariates"][:, 1], rows["promo"][4:6] + 1)
    visits = encoding.numbers["visits"]
    np.testing.assert_allclose(found["past_covariates"][:, 2], (rows["visits"][1:4] - visits.mean) / visits.scale, 1e-6)
    assert found["static_covariates"].tolist() == [2.0]
    # outside the item everything is missing, whatever the neighbouring item has
    early = window(covariates, item=1, cut=1)["past_covariates"]
    assert early[:2].isnan().all() and not early[2].isnan().any()
    late = window(covariates, item=0, cut=7)["future_covariates"]
    assert not late[0].isnan().any() and late[1].isnan().all()


def test_past_covariates_end_where_the_targets_do():
    _, covariates = encoded(Panel.from_df(sales((8,)), **ROLES))
    unrolled = window(covariates, cut=6, seen=torch.tensor([4]))["past_covariates"]
    assert unrolled[:, 2].isnan().tolist() == [False, True, True]
    assert not unrolled[:, :2].isnan().any()


def test_unseen_categories_share_an_index_and_missing_ones_have_none():
    table = sales((8,)).assign(promo=["a", "b", "a", "b", "c", None, "a", "b"])
    _, covariates = encoded(Panel.from_df(table, **ROLES), [4])
    found = window(covariates, cut=4)
    assert found["past_covariates"][:, 1].tolist() == [2, 1, 2]
    assert found["future_covariates"][0, 1] == 0 and found["future_covariates"][1, 1].isnan()


@pytest.mark.parametrize("level", [1e-6, 1.0, 1e6])
def test_prices_count_relative_to_their_level(level):
    table = sales((8, 8))
    table["price"] = np.where(table["item_id"] == "i0", level, 50.0 * level)
    cut = table.groupby("item_id").cumcount().isin([2, 5])
    table.loc[cut, "price"] *= 0.8
    encoding, covariates = encoded(Panel.from_df(table, known_covariates="price"))
    assert encoding.numbers["price"].relative
    cheap, dear = (window(covariates, item=item, cut=5, L=2) for item in (0, 1))
    torch.testing.assert_close(cheap, dear)
    moved = cheap["future_covariates"][:, 0] * encoding.numbers["price"].scale
    torch.testing.assert_close(moved, torch.tensor([-0.2, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "values",
    [np.full(8, 3.0), np.full(8, np.nan), np.array([1e300, -1e300] * 4), np.array([0.0] * 7 + [1e12])],
    ids=["constant", "missing", "huge", "one far from all"],
)
def test_encoded_values_are_bounded(values):
    _, covariates = encoded(Panel.from_df(sales((8,)).assign(price=values), **ROLES))
    found = window(covariates, cut=6, L=6)["future_covariates"][:, 0]
    assert (found.isnan() | (found.abs() <= FARTHEST)).all()
    assert found.isnan().all() == bool(np.isnan(values).all())


def test_an_encoding_is_read_as_written():
    encoding, _ = encoded(Panel.from_df(sales(), **ROLES, calendar=True))
    assert CovariateEncoding.from_dict(encoding.to_dict()) == encoding
    # a weekday and the month of January
    assert encoding.sizes == {"known": [0, 2, 7, 1], "past": [0], "static": [2]}
    for damage in (
        {},
        [],
        encoding.to_dict() | {"numbers": {}},
        encoding.to_dict() | {"numbers": {"price": {"mean": 1}}},
    ):
        with pytest.raises(InputError):
            CovariateEncoding.from_dict(damage)


@pytest.mark.parametrize(
    ("roles", "change", "message"),
    [
        ({}, {}, "trained with 'price' as one of its known_covariates, but it is missing here"),
        (
            ROLES | {"past_covariates": None},
            {},
            "trained with 'visits' as one of its past_covariates, but it is missing here",
        ),
        (ROLES, {}, "trained with the calendar's weekday: give calendar"),
        (
            ROLES | {"calendar": "weekday"},
            {"price": "dear"},
            "the run was trained with numbers, but here are cat",
        ),
    ],
)
def test_other_covariates_are_refused(roles, change, message):
    encoding, _ = encoded(Panel.from_df(sales(), **ROLES, calendar="weekday"))
    with pytest.raises(InputError) as error:
        encoding.check(Panel.from_df(sales().assign(**change), **roles))
    assert message in str(error.value)


def test_extra_columns_and_another_order_are_accepted():
    table = sales()
    panel = Panel.from_df(table, **ROLES)
    encoding, covariates = encoded(panel)
    more = Panel.from_df(
        table.assign(rain=1.0),
        known_covariates=["rain", "promo", "price"],
        past_covariates="visits",
        static_covariates="store",
    )
    torch.testing.assert_close(window(WindowCovariates(more, encoding)), window(covariates))
