"""The leave-one-out study: a series does not affect its own rule, rehearsals end before the test, rules mix forms."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from llata_fast.data import TimeSeries

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def bench():
    """bench/left_out.py and bench/left_out_tables.py as modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        modules = {}
        for name in ("left_out_tables", "left_out"):
            spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
            modules[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[name])
        yield modules
        for name in (*modules, "left_out_series"):
            sys.modules.pop(name, None)


def series(rows=1000, split_rows=None):
    dates = pd.date_range("2024-01-01", periods=rows, freq="h")
    values = np.random.default_rng(0).normal(size=(rows, 2)).cumsum(0)
    return TimeSeries("walks", values, dates, ("a", "b"), "h", 24, "date", split_rows)


def test_rehearsals_end_where_the_test_begins(bench):
    parts = bench["left_out"].parts_of(series())
    assert [len(part) for part in parts.values()] == [1000, 800, 640]
    parts = bench["left_out"].parts_of(series(split_rows=(600, 100, 150)))
    assert [len(part) for part in parts.values()] == [1000, 700, 560]


def test_every_rule_is_a_mixture_of_the_forms(bench):
    torch.manual_seed(0)
    forms = [
        "linear",
        "one map, level stays",
        "own maps, level stays",
        "one map, level returns",
        "last season repeated",
    ]
    sizes = torch.tensor([[1.0], [1.1], [0.9], [1.2], [3.0]])
    scored = [torch.randn(5, 2000).double() * sizes for _ in range(4)]
    for name, weigh in bench["left_out"].rules().items():
        shares = weigh(forms, scored, 0)
        assert shares.sum().item() == pytest.approx(1) and (shares >= 0).all(), name
    assert bench["left_out"].rules()["best form"](forms, scored, 0).tolist() == [0, 0, 1, 0, 0]
    assert bench["left_out"].rules()["baseline"](forms, scored, 0).tolist() == [1, 0, 0, 0, 0]
    assert bench["left_out"].rules()["no own maps"](forms, scored, 0)[2] == 0


def test_a_rule_is_chosen_by_the_other_series(bench):
    """`good` is best in the rehearsals of x and y; `bad` is by far the best only in those of z."""
    tables, rows = bench["left_out_tables"], []
    scores = {"x": (0.9, 1.1), "y": (0.8, 1.0), "z": (1.5, 0.2)}
    for name, (good, bad) in scores.items():
        for part in ("whole", "before test"):
            # validation picks the map that is worse in the test
            rows += [(name, part, 96, "linear", "", 1.0, 1.0, 2.0, 2.0), (name, part, 96, "dlinear", "", 1.5, 1, 1, 1)]
            rows += [(name, part, 96, rule, "", 1, 1, 2 * e, 2 * e) for rule, e in (("good", good), ("bad", bad))]
    table = tables.ratios(pd.DataFrame(rows, columns=tables.COLUMNS[:9]))
    assert set(table["picked"]) == {"linear"} and set(table["model"]) == {"good", "bad"}
    assert table.set_index(["series", "part", "model"]).loc[("y", "whole", "good"), "mse_ratio"] == pytest.approx(0.8)
    # over all three series, z would make it `bad`
    assert tables.chosen_rules(table).to_dict() == {"x": "bad", "y": "bad", "z": "good"}


def test_a_series_that_is_too_short_is_left_out(bench):
    assert list(bench["left_out"].closed_forms(series(300), 96)) == []
