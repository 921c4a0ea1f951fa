"""Every line of the covariates page runs, at a small size."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from docs.test_pages import TINY
from tiny import random_backbone

from llata_fast.__main__ import main

pytestmark = pytest.mark.usefixtures("plain_ops_throughout")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "covariates.md"
SMALL = ["--max_steps", "2", "--batch_size", "8", "--num_layers", "1", "--num_prototypes", "9", "--use_cpu"]
SMALL += ["--intermediate_size", "20", "--report_to", "none", "--backbone"]


def sales(days, start):
    draws = np.random.default_rng(len(start))
    dates = pd.date_range(start, periods=days)
    frames = [
        pd.DataFrame({"item_id": name, "timestamp": dates, "store": f"of {name}", "visits": draws.poisson(9, days)})
        for name in ("A", "B")
    ]
    table = pd.concat(frames, ignore_index=True)
    table["price"] = draws.uniform(1, 2, len(table))
    return table.assign(qty=30 - 10 * table["price"] + draws.normal(size=len(table)))


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    df, next_df = sales(120, "2024-01-01"), sales(7, "2024-04-30").drop(columns="qty")
    df.to_parquet("sales.parquet")
    next_df.to_parquet("next.parquet")
    text, backbone = PAGE.read_text(), random_backbone(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = {"BACKBONE": backbone, "df": df, "next_df": next_df}
    exec(compile(block.replace("max_steps=200", TINY), PAGE.name, "exec"), names)
    assert len(names["out"]) == 14 and "ridge_covariates" in names["scores"].index

    lines = re.findall(r"^ {4}llata-fast (.*)$", text, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["fit", "predict", "backtest", "plan"]
    fit, predict, backtest, _ = (line.split() for line in lines)
    main([*fit, "--overwrite_output_dir", *SMALL, backbone])
    main(predict)
    main(backtest)
    assert "ridge_covariates" in capsys.readouterr().out
    assert len(pd.read_csv("forecast.csv")) == 14
