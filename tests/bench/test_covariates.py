"""The covariate study: the tables it reads from wheels, and its three runs."""

import importlib.util
import lzma
import runpy
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import random_backbone

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("plain_ops")


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("covariates_study", ROOT / "bench" / "covariates.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def orders(bench, tmp_path):
    """A wheel of orders: two items sold every week, one sold too seldom, a return, and a free item."""
    days = pd.date_range("2010-01-04 10:00", periods=120, freq="7D")
    rng = np.random.default_rng(0)
    tables = [
        pd.DataFrame({"StockCode": item, "InvoiceDate": days[:weeks], "Quantity": rng.poisson(20, weeks) + 1})
        for item, weeks in (("a", 120), ("b", 120), ("seldom", 20))
    ]
    table = pd.concat(tables, ignore_index=True).assign(Price=2.0)
    odd = pd.DataFrame({"StockCode": "a", "InvoiceDate": days[:2], "Quantity": [-5, 7], "Price": [2.0, 0.0]})
    twice = pd.DataFrame({"StockCode": "b", "InvoiceDate": days[:1], "Quantity": [3], "Price": [4.0]})
    table = pd.concat([table, odd, twice], ignore_index=True)
    file = runpy.run_path(str(ROOT / "examples" / "retail.py"))["FILE"]
    path = tmp_path / "orders.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(file, lzma.compress(table.to_csv(index=False).encode()))
    return path, table


def test_weeks_are_quantities_and_mean_prices(bench, orders):
    path, table = orders
    found = bench.retail(str(path))
    assert set(found["item_id"]) == {"a", "b"} and len(found) == 240
    first = found[found["item_id"] == "b"].iloc[0]
    sold = table[(table["StockCode"] == "b") & (table["InvoiceDate"] == table["InvoiceDate"].min())]
    assert first["target"] == sold["Quantity"].sum()
    assert first["price"] == pytest.approx((sold["Quantity"] * sold["Price"]).sum() / sold["Quantity"].sum())


def test_the_three_runs(bench, orders, tmp_path, monkeypatch, capsys):
    backbone = random_backbone(tmp_path)
    options = ["--data", "retail", "--wheel", str(orders[0]), "--work", str(tmp_path / "work"), "--backbone", backbone]
    monkeypatch.setattr(sys, "argv", ["covariates.py", *options, "--max_steps", "1"])
    bench.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    ways = {way for way in ("without", "with", "shuffled") for row in rows if row[:1] == [way]}
    assert ways == {"without", "with", "shuffled"}
    assert sum("ridge_covariates" in row for row in rows) == 2
    assert len(list((tmp_path / "work").glob("retail_llata_2021_*/metrics.json"))) == 3


def test_a_missing_wheel_is_requested(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["covariates.py", "--data", "sales", "--work", "work"])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 2
    assert "--wheel: sales is read from a wheel" in capsys.readouterr().err
