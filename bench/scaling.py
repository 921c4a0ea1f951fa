"""Scaling studies: measured on this machine, simulated for others; all rows go to one CSV.

    python bench/scaling.py --measure                          # all combinations that the CSV lacks
    python bench/scaling.py --simulate --device h100-80g       # 8 to 1,024 GPUs, with the planner's alpha-beta model
    python bench/scaling.py --corpora --corpus_steps 27e9      # hours of a pre-training on that many steps of corpora
    python bench/scaling.py --plot                             # plots from the CSVs alone

A measured row comes from `deepspeed --num_gpus N train.py ...` on a generated series. Weak scaling fixes the windows
per rank, strong scaling the windows per step. Efficiency is throughput per rank, relative to one rank (simulated: to
the smallest number of ranks). The share of communication is, in a measured step, the time beyond one rank's step on as
many windows; in a simulated step, communication time that computation does not hide. If the CSV has measured rows for
the simulated device, its utilisation comes from them, otherwise from the planner's assumption; `basis` says which.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from tqdm import tqdm

from llata_fast.planning.plan_text import model_config
from llata_fast.config import LlataConfig
from llata_fast.settings import ModelSettings
from llata_fast.planning.hardware import DEVICES
from llata_fast.planning.planner import ASSUMPTIONS, GIB, Request, make_plan
from llata_fast.planning.stages import Weights, weigh
from llata_fast.planning.trace import Trace, Workload, trace_step

import scaling_corpora

ROOT = Path(__file__).resolve().parent.parent
KEY = ["kind", "device", "scaling", "backbone", "num_layers", "ranks", "stage", "batch"]
STAGES = ("ddp", "zero1", "zero2", "zero3")
CHANNELS, CONTEXT, HORIZON = 7, 96, 96
PUBLISHED = ["openai-community/gpt2:12", "meta-llama/Llama-2-7b:32", "meta-llama/Llama-3.1-70B:80"]
CLUSTERS = [2**power for power in range(3, 11)]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="run the combinations that the CSV lacks")
    parser.add_argument("--simulate", action="store_true", help="add simulated rows")
    parser.add_argument("--corpora", action="store_true", help="plan a pre-training on corpora on 8 to 1,024 GPUs")
    parser.add_argument("--corpus_steps", type=float, default=scaling_corpora.LOTSA, help="default LOTSA's, 27e9")
    parser.add_argument("--plot", action="store_true", help="draw the pictures")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "scaling")
    parser.add_argument("--backbones", nargs="+", help="source:layers; default random:gpt2:2, or of published sizes")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--scaling", nargs="+", default=("weak", "strong"), choices=("weak", "strong"))
    parser.add_argument("--ranks", nargs="+", type=int, help="default 1 2 measured, 8 to 1024 simulated")
    parser.add_argument(
        "--batch", nargs="+", type=int, help="windows per rank; strong scaling: of the smallest number of ranks"
    )
    parser.add_argument("--steps", type=int, default=4, help="training steps of a measured run")
    parser.add_argument("--device", help=f"measured: cpu; simulated: {', '.join(DEVICES)}")
    options = parser.parse_args()
    if options.device is not None and options.device not in DEVICES:
        parser.error(f"device {options.device!r} is not one of {', '.join(DEVICES)}")
    if not (options.measure or options.simulate or options.corpora or options.plot):
        parser.error("nothing to do: give --measure, --simulate, --corpora or --plot")
    return options


def combinations(options: argparse.Namespace, kind: str, device: str, backbones, ranks, batches) -> list[dict]:
    """All combinations as key columns of rows; `batch` is the windows of a step over all ranks."""
    rows = []
    for backbone, scaling, stage, windows, count in product(backbones, options.scaling, options.stages, batches, ranks):
        source, _, layers = backbone.rpartition(":")
        batch = windows * (count if scaling == "weak" else min(ranks))
        if batch % count == 0:
            values = (kind, device, scaling, source, int(layers), count, stage, batch)
            rows.append(dict(zip(KEY, values, strict=True)))
    return rows


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEY)


def missing(rows: list[dict], table: pd.DataFrame) -> list[dict]:
    """The rows that the table does not contain."""
    held = set(table[KEY].itertuples(index=False, name=None))
    return [row for row in rows if tuple(row[name] for name in KEY) not in held]


def append(path: Path, row: dict):
    """Write the row at once, so that an interrupted study can continue."""
    pd.concat([read(path), pd.DataFrame([row])], ignore_index=True).to_csv(path, index=False)


def measure(row: dict, steps: int) -> dict:
    """Train `row` with the launcher: seconds per step, windows per second, peak memory of a rank."""
    with tempfile.TemporaryDirectory() as folder:
        rows = CONTEXT + HORIZON + 200
        values = np.random.default_rng(0).normal(size=(rows * 3, CHANNELS)).cumsum(axis=0)
        series = pd.DataFrame(values, columns=[f"c{channel}" for channel in range(CHANNELS)])
        series.insert(0, "date", pd.date_range("2024-01-01", periods=len(series), freq="h"))
        series.to_csv(Path(folder, "series.csv"), index=False)
        run = Path(folder, "run")
        # the run's figures leave out the first step, a warm-up
        peak = _launch(row, Path(folder, "series.csv"), run, 1 + steps)
        speed = json.loads((run / "metrics.json").read_text())["speed"]
    return row | {
        "step_seconds": speed["step_ms"] / 1e3,
        "windows_per_s": speed["windows_per_s"],
        "peak_gib": peak / GIB,
        "basis": "measured",
    }


def _launch(row: dict, series: Path, run: Path, steps: int) -> int:
    """Peak resident memory of the largest rank, in bytes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "dataset": series, "output_dir": run, "backbone": row["backbone"], "num_layers": row["num_layers"],
        "context_length": CONTEXT, "prediction_length": HORIZON, "batch_size": row["batch"], "max_steps": steps,
        "eval_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "logging_steps": 1000,
    }  # fmt: skip
    if row["device"] == "cpu":
        settings |= {"use_cpu": True, "precision": "fp32"}
    if row["stage"] != "ddp":
        settings["deepspeed"] = ROOT / "ds_configs" / f"{row['stage']}.json"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [
        shutil.which("deepspeed", path=path),
        "--num_gpus",
        str(row["ranks"]),
        "--master_port",
        str(port),
        str(ROOT / "train.py"),
    ]
    command += [f"--{name}={value}" for name, value in settings.items()]
    env = {"OMP_NUM_THREADS": "1"} | os.environ | {"PATH": path}
    with open(run.with_suffix(".log"), "w+") as log:
        process = psutil.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, *_resident(process))
            time.sleep(0.1)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}\n{log.read()[-2000:]}")
    return peak


def _resident(process: psutil.Process) -> list[int]:
    sizes = [0, 0]
    for child in process.children(recursive=True):
        try:
            sizes.append(child.memory_info().rss)
        except psutil.Error:
            # it ended in the meantime
            continue
    return sizes


def measured_utilisation(table: pd.DataFrame, device: str) -> dict:
    """The utilisation of `device` from its measured rows; {} if there are none."""
    if table.empty:
        return {}
    alone = table[(table.kind == "measured") & (table.device == device) & (table.ranks == 1) & (table.stage == "ddp")]
    if alone.empty:
        return {}
    row = alone.iloc[-1]
    arguments = ModelSettings(
        backbone=row.backbone, num_layers=int(row.num_layers), context_length=CONTEXT, prediction_length=HORIZON
    )
    precision = "fp32" if device == "cpu" else "autocast"
    trace = trace_step(model_config(arguments), Workload(int(row.batch), CHANNELS, precision, on_gpu=device != "cpu"))
    peak = DEVICES[device].fp32_tflops if device == "cpu" else DEVICES[device].bf16_tflops
    return {"utilisation": trace.flops / row.step_seconds / (1e12 * peak)}


class Models:
    """Weights and traces of each model; two batch sizes are traced, since all figures are affine in the batch size."""

    def __init__(self):
        self.known: dict[tuple, tuple[Trace, Trace]] = {}
        self.weights: dict[tuple, Weights] = {}

    def weigh(self, config: LlataConfig, precision: str) -> Weights:
        key = (config.backbone, config.num_layers, precision)
        if key not in self.weights:
            self.weights[key] = weigh(config, precision)
        return self.weights[key]

    def trace(self, config: LlataConfig, workload: Workload) -> Trace:
        key = (config.backbone, config.num_layers, workload.precision, workload.checkpointing, workload.on_gpu)
        if key not in self.known:
            self.known[key] = tuple(trace_step(config, replace(workload, batch_size=size)) for size in (16, 32))
        low, high = self.known[key]
        return Trace(*(a + (b - a) * (workload.batch_size - 16) / 16 for a, b in zip(low, high, strict=True)))


def simulate(row: dict, models: Models, measured: dict) -> dict:
    """The planner's figures for `row`."""
    arguments = ModelSettings(
        backbone=row["backbone"], num_layers=row["num_layers"], context_length=CONTEXT, prediction_length=HORIZON
    )
    request = Request(
        row["device"], row["ranks"], row["batch"], channels=CHANNELS, checkpointing=False,
        precision="fp32" if row["device"] == "cpu" else "bf16", **measured,
    )  # fmt: skip
    plan = make_plan(model_config(arguments), request, (row["stage"],), models.trace, models.weigh).stages[0]
    return row | {
        "step_seconds": plan.step_seconds,
        "windows_per_s": row["batch"] / plan.step_seconds,
        "peak_gib": plan.memory_bytes / GIB,
        "comm_share": plan.exposed_seconds / plan.step_seconds,
        "sent_gb": plan.wire_bytes / 1e9,
        "fits": plan.fits,
        "basis": "calibrated by measured rows" if measured else "data sheet",
    }


def complete(table: pd.DataFrame) -> pd.DataFrame:
    """Add columns that compare rows: efficiency, and the share of communication of measured rows."""
    table = table.copy()
    table["windows_per_rank"] = table.batch // table.ranks
    # constant along a curve: windows per rank, or per step
    table["curve"] = table.windows_per_rank.where(table.scaling == "weak", table.batch)
    curve = ["kind", "device", "scaling", "backbone", "num_layers", "stage", "curve"]
    for _, rows in table.groupby(curve):
        fewest = rows.sort_values("ranks").iloc[0]
        rate = rows.windows_per_s / rows.ranks
        table.loc[rows.index, "efficiency"] = rate / (fewest.windows_per_s / fewest.ranks)
    alone = table[(table.kind == "measured") & (table.ranks == 1)]
    for index, row in table[(table.kind == "measured") & (table.ranks > 1)].iterrows():
        same = alone[
            (alone.backbone == row.backbone) & (alone.num_layers == row.num_layers) & (alone.stage == row.stage)
            & (alone.batch == row.windows_per_rank)
        ]  # fmt: skip
        if len(same):
            table.loc[index, "comm_share"] = max(0.0, 1 - same.iloc[0].step_seconds / row.step_seconds)
    return table


def crossovers(table: pd.DataFrame) -> list[str]:
    """One sentence per backbone: from which number of GPUs each stage is the simplest that fits and is equally fast.

    Estimates within 10 % count as equal, as in the planner.
    """
    lines = []
    weak = table[(table.kind == "simulated") & (table.scaling == "weak")]
    for (backbone, device, windows), rows in weak.groupby(["backbone", "device", "curve"], sort=False):
        parts, last = [], None
        for ranks, at in rows.groupby("ranks"):
            fitting = at[at.fits.astype(bool)]
            near = fitting[fitting.windows_per_s * (1 + ASSUMPTIONS["tie"]) >= fitting.windows_per_s.max()]
            best = "none fits" if fitting.empty else min(near.stage, key=STAGES.index)
            if best != last:
                parts.append(f"{best} from {ranks}")
                last = best
        lines.append(f"{backbone} on {device}, {windows:g} windows per GPU: {', '.join(parts)} GPUs.")
    return lines


def main():
    options = parse_options()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "scaling.csv"
    if options.measure:
        rows = combinations(
            options, "measured", options.device or "cpu", options.backbones or ["random:gpt2:2"],
            options.ranks or [1, 2], options.batch or [16],
        )  # fmt: skip
        for row in tqdm(missing(rows, read(path)), desc="measured runs"):
            append(path, measure(row, options.steps))
    if options.simulate:
        rows = combinations(
            options, "simulated", options.device or "h100-80g", options.backbones or PUBLISHED,
            options.ranks or CLUSTERS, options.batch or [32, 512],
        )  # fmt: skip
        models, known = Models(), {}
        results = []
        for row in tqdm(missing(rows, read(path)), desc="simulated rows"):
            if row["device"] not in known:
                known[row["device"]] = measured_utilisation(read(path), row["device"])
            results.append(simulate(row, models, known[row["device"]]))
        if results:
            pd.concat([read(path), pd.DataFrame(results)], ignore_index=True).to_csv(path, index=False)
    corpora = options.out / scaling_corpora.FILE
    if options.corpora:
        device, clusters = options.device or "h100-80g", options.ranks or CLUSTERS[::2]
        scaling_corpora.add_rows(corpora, device, options.backbones or PUBLISHED, clusters, options.corpus_steps)
    table = complete(read(path))
    table.to_csv(path, index=False)
    if options.plot:
        from scaling_report import draw, write_readme

        draw(table, options.out, ROOT / "bench" / "results" / "quality")
        scaling_corpora.draw(corpora)
        write_readme(table, options.out, crossovers(table), ASSUMPTIONS, scaling_corpora.section(corpora))
    summary = {"rows": len(table), "measured": int((table.kind == "measured").sum()), "crossovers": crossovers(table)}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
