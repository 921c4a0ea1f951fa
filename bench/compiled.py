"""Find the batch sizes for which torch.compile pays: time training steps eager and compiled, and the compilation.

    python bench/compiled.py            # measure
    python bench/compiled.py --write    # also set the batch size up to which runs compile by default

On a GPU, kernel launches limit a step with few windows; CUDA graphs remove them, but compiling takes time once. It pays
for a batch size if a training of STEPS steps ends sooner compiled. `--write` sets COMPILED_BELOW in
llata_fast/training/arguments.py so that all smaller batches pay. The model is that of train_step.py: GPT-2, 6 layers,
C 7, bf16. The last line on stdout is one JSON object.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import functools
import json
import re
import sys
import time
from pathlib import Path

import torch
from train_step import Provider, batch, interleaved
from train_step import parse_options as parse_model

ROOT = Path(__file__).resolve().parent.parent
ARGUMENTS = ROOT / "llata_fast" / "training" / "arguments.py"
BATCHES = (32, 128, 512)
# steps of a training that compiling must not delay
STEPS = 2000
REPEATS = 15


def measure(windows: int, dry_run: bool) -> dict:
    """Milliseconds per step eager and compiled, seconds to compile, and the steps that make up for them."""
    settings = parse_model(["--batch", str(windows), "--num_layers", "1" if dry_run else "6"])
    precision = "bf16" if settings.device == "cuda" else "fp32"
    # compiling takes too long for a dry run
    eager, compiled = (Provider(settings, "llata_fast", precision, flag and not dry_run) for flag in (False, True))
    inputs = batch(settings)
    start = time.perf_counter()
    # the second call records the graphs
    for _ in range(3):
        compiled.train(*inputs)
    if settings.device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    both = {"eager": eager, "compiled": compiled}
    calls = {name: functools.partial(provider.train, *inputs) for name, provider in both.items()}
    taken = interleaved(calls, 1 if dry_run else REPEATS, settings.device, f"{windows} windows")
    gain = taken["eager"] - taken["compiled"]
    return {
        "windows": windows,
        "eager_ms": 1e3 * taken["eager"],
        "compiled_ms": 1e3 * taken["compiled"],
        "compile_s": seconds,
        "steps_to_pay": seconds / gain if gain > 0 else None,
    }


def compiled_below(rows: list[dict]) -> int:
    """One more than the largest batch size up to which all pay; rows are sorted by batch size."""
    below = 0
    for row in rows:
        if row["steps_to_pay"] is None or row["steps_to_pay"] > STEPS:
            break
        below = row["windows"] + 1
    return below


def write(below: int, path: Path = ARGUMENTS):
    text, count = re.subn(r"^COMPILED_BELOW = \d+$", f"COMPILED_BELOW = {below}", path.read_text(), flags=re.MULTILINE)
    if count != 1:
        sys.exit(f"{path} has {count} lines COMPILED_BELOW: nothing is written")
    path.write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="set COMPILED_BELOW to the measured value")
    parser.add_argument("--dry-run", action="store_true", help="one small batch, nothing compiled, nothing written")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not options.dry_run:
        sys.exit("bench/compiled.py needs a CUDA device: elsewhere a step is not bound by launches")
    rows = []
    for windows in (2,) if options.dry_run else BATCHES:
        rows.append(measure(windows, options.dry_run))
        print({key: round(value, 1) if isinstance(value, float) else value for key, value in rows[-1].items()})
    below = 0 if options.dry_run else compiled_below(rows)
    if options.write and not options.dry_run:
        write(below)
    told = ", ".join(f"{row['windows']}: {row['eager_ms']:.1f} to {row['compiled_ms']:.1f} ms" for row in rows)
    print(json.dumps({"rows": rows, "compiled_below": below, "headline": f"compiled below {below} windows ({told})"}))


if __name__ == "__main__":
    main()
