"""Profile a training step and a forecast with torch.profiler.

    python bench/profile_step.py --out bench/results --compiled --batch 256

The model and its size options are those of train_step.py. Tables are written to DIR/<device>/profile_<what>.txt, sorted
by an operation's self time; the last line on stdout is one JSON object.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import json
from pathlib import Path

import common
import torch
from torch.profiler import ProfilerActivity, profile
from train_step import Provider, batch
from train_step import parse_options as parse_model

ROWS = 40


def profiled(call, steps: int) -> tuple[str, float]:
    """Profile `steps` calls after a warm-up; returns the table, and the device's busy time per call in ms."""
    on_gpu = torch.cuda.is_available()
    for _ in range(3):
        call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=False) as profiler:
        for _ in range(steps):
            call()
        if on_gpu:
            torch.cuda.synchronize()
    averages = profiler.key_averages()
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    busy = sum(getattr(event, order) for event in averages) / 1e3 / steps
    return averages.table(sort_by=order, row_limit=ROWS, max_name_column_width=90), busy


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="bf16" if torch.cuda.is_available() else "fp32"
    )
    parser.add_argument("--compiled", action="store_true", help="torch.compile, on a GPU with CUDA graphs")
    parser.add_argument("--steps", type=int, default=5, help="number of calls in a table")
    own, rest = parser.parse_known_args()
    # the model's options: --batch, --channels, --backbone, --hidden_size, --num_layers, --dropout, --backbone_pass
    return argparse.Namespace(**vars(parse_model(rest)) | vars(own))


def main():
    options = parse_options()
    folder = options.out / common.device_folder()
    folder.mkdir(parents=True, exist_ok=True)
    provider = Provider(options, "llata_fast", options.precision, options.compiled)
    past, future = batch(options)
    setting = f"B {options.batch}, C {options.channels}, D {options.hidden_size}, {options.num_layers} layers, "
    setting += f"{options.precision}{', compiled' if options.compiled else ''}"
    facts = " ".join(f"{name} {value}" for name, value in {"torch": torch.__version__, **common.versions()}.items())
    busy = {}
    for kind in ("train", "inference"):
        table, busy[kind] = profiled(lambda kind=kind: getattr(provider, kind)(past, future), options.steps)
        path = folder / f"profile_{kind}{'_compiled' if options.compiled else ''}.txt"
        title = f"{kind}, {options.steps} calls; {setting}; {common.device_name()}; {facts}"
        path.write_text(f"{title}\n\n{table}\n")
        print(path)
    told = ", ".join(f"{kind} {ms:.1f} ms" for kind, ms in busy.items())
    print(json.dumps({"setting": setting, "busy_ms": busy, "headline": f"busy per call: {told} ({setting})"}))


if __name__ == "__main__":
    main()
