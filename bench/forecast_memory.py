"""Measure the memory that `llata-fast predict` needs for a wide table, by number of channels and of forecasts.

    python bench/forecast_memory.py                                     # up to 10,000 channels and 1,000,000 forecasts
    python bench/forecast_memory.py --channels 100 1000 --windows 1000  # a quick try

An untrained model on SmolLM2's first block forecasts random walks in a separate process and writes a CSV. Many channels
are combined with few forecasts, and many forecasts with one channel; a channel is one token, or 10 patches. Memory is
the process's peak of resident pages, sampled ten times a second; `rest_mib` excludes what a forecast of one channel
takes. The last line is one JSON object.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from many_items import watched

from llata_fast.config import LlataConfig
from llata_fast.data import read_wide_csv
from llata_fast.data.windows import own_scaler
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.modeling import LlataForPrediction
from llata_fast.preprocessor import Preprocessor

CONTEXT, HORIZON = 96, 6
FORECASTS = 2
"""Number of forecasts for a table of many channels."""
TOKENS: dict[str, dict[str, int]] = {"variates": {}, "patches": {"patch_length": 15, "patch_stride": 9}}


def main():
    options = _parser().parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for kind in options.tokens:
            model = untrained(options.backbone, **TOKENS[kind])
            cases = [(1, 1), *((channels, FORECASTS) for channels in options.channels)]
            cases += [(1, windows) for windows in options.windows]
            for channels, windows in cases:
                rows.append({"tokens": kind, **_measured(model, Path(folder), channels, windows)})
                rows[-1]["rest_mib"] = rows[-1]["peak_mib"] - next(
                    row["peak_mib"] for row in rows if row["tokens"] == kind
                )
                print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1, float_format="%.1f"))
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs"
    print(json.dumps({"machine": machine, "load": os.getloadavg()[0], "rows": rows}))


def untrained(backbone: str, **patches: int) -> LlataForPrediction:
    """An untrained model."""
    sizes = {"num_layers": 1, "context_length": CONTEXT, "prediction_length": HORIZON}
    return LlataForPrediction.from_backbone(LlataConfig(backbone=backbone, **sizes, **patches))


def _measured(model: LlataForPrediction, folder: Path, channels: int, windows: int) -> dict[str, float]:
    run, table, output = folder / "run", folder / "table.csv", folder / "forecast.csv"
    _write_walks(table, windows + CONTEXT - 1, channels)
    Forecaster(model, Preprocessor.of("walks", series := read_wide_csv(table), own_scaler(series))).save_pretrained(run)
    command = [sys.executable, "-m", "llata_fast", "predict", str(run), "--input", str(table), "--every", "1"]
    seconds, peak = watched([*command, "--output", str(output)])
    with output.open() as file:
        forecast_rows = sum(1 for _ in file) - 1
    return {"channels": channels, "forecasts": forecast_rows // HORIZON, "seconds": seconds, "peak_mib": peak["VmRSS"]}


def _write_walks(path: Path, rows: int, channels: int):
    walks = np.random.default_rng(0).normal(size=(rows, channels)).cumsum(0).round(2)
    table = pd.DataFrame(walks, columns=[f"c{channel}" for channel in range(channels)])
    table.insert(0, "date", pd.date_range("1900-01-01", periods=rows, freq="h"))
    table.to_csv(path, index=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--windows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--tokens", nargs="+", choices=TOKENS, default=list(TOKENS))
    parser.add_argument("--backbone", default="SmolLM2-135M-Instruct")
    parser.add_argument("--folder", help="where to write the tables; default: the temporary folder")
    return parser


if __name__ == "__main__":
    main()
