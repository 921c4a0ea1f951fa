"""Measure how fast `llata-fast predict` forecasts a table of many items, and how much memory it takes.

    python bench/many_items.py                             # 100,000 items of 120 weeks, SmolLM2's first block
    python bench/many_items.py --items 10000 --run RUN     # a quick try with your own run on weekly items

A Parquet file of random walks is written in pieces; the command reads it in a separate process and streams forecasts
with quantiles to Parquet. Memory is that process's peak of resident and of anonymous pages (RssAnon), sampled ten times
a second; `input_mib` is the size of the table in memory. The last line is one JSON object.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow.parquet import ParquetFile, ParquetWriter

from llata_fast import Forecaster
from llata_fast.data.panel import read_panel

HORIZON, CONTEXT = 8, 104
_CHUNK = 2_000


def main():
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        table, output = Path(folder, "items.parquet"), Path(folder, "forecast.parquet")
        run = options.run or _fitted(Path(folder, "run"), options.backbone)
        input_mib = write_items(table, options.items, options.rows)
        command = [sys.executable, "-m", "llata_fast", "predict", str(run), "--input", str(table), "--id_column", "sku"]
        command += ["--target", "qty", "--quantile_levels", "0.1", "0.5", "0.9", "--output", str(output)]
        seconds, peak = watched(command)
        rows = ParquetFile(output).metadata.num_rows
    figures = {
        "items": options.items,
        "input_rows": options.items * options.rows,
        "input_mib": input_mib,
        "forecast_rows": rows,
        "seconds": seconds,
        "items_per_s": options.items / seconds,
        "forecast_rows_per_s": rows / seconds,
        "peak_rss_mib": peak["VmRSS"],
        "peak_anonymous_mib": peak["RssAnon"],
        "load": os.getloadavg()[0],
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }
    for name, value in figures.items():
        print(f"{name:<20} {value:,.1f}" if isinstance(value, float) else f"{name:<20} {value}")
    print(json.dumps(figures))


def write_items(path: Path, items: int, rows: int) -> float:
    """Write one weekly random walk per item; returns the size of ids, dates and values in memory, in MiB."""
    dates = pd.date_range("2022-01-07", periods=rows, freq="W-FRI")
    rng, size = np.random.default_rng(0), 0
    writer = None
    for start in range(0, items, _CHUNK):
        names = np.char.add("sku", np.arange(start, min(start + _CHUNK, items)).astype(str))
        walks = 50 + rng.normal(size=(len(names), rows)).cumsum(1)
        frame = pd.DataFrame(
            {"sku": np.repeat(names, rows), "datetime": np.tile(dates, len(names)), "qty": walks.ravel()}
        )
        piece = pa.Table.from_pandas(frame, preserve_index=False)
        size += piece.nbytes
        writer = writer or ParquetWriter(path, piece.schema)
        writer.write_table(piece)
    writer.close()
    return size / 2**20


def watched(command: list[str]) -> tuple[float, dict[str, float]]:
    """Run a command; returns the seconds it takes and the peaks of its memory in MiB."""
    began, peak = time.perf_counter(), {"VmRSS": 0.0, "RssAnon": 0.0}
    process = subprocess.Popen(command)
    done = threading.Event()

    def watch():
        while not done.wait(0.1):
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            for name, _, value in (line.partition(":") for line in lines):
                if name in peak:
                    peak[name] = max(peak[name], int(value.split()[0]) / 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    done.set()
    watcher.join()
    if status:
        raise SystemExit(status)
    return time.perf_counter() - began, peak


def _fitted(folder: Path, backbone: str) -> Path:
    """Train for a few steps on EIA's weekly items; returns the run's folder."""
    panel = read_panel("EIA")
    lengths = {"prediction_length": HORIZON, "context_length": CONTEXT}
    Forecaster.fit(panel, **lengths, output_dir=folder, backbone=backbone, max_steps=20, report_to="none")
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=120, help="weeks per item")
    parser.add_argument("--run", help="folder of a run on weekly items; by default one is trained")
    parser.add_argument("--backbone", default="SmolLM2-135M-Instruct")
    parser.add_argument("--folder", help="where to write the tables; default: the temporary folder")
    return parser


if __name__ == "__main__":
    main()
