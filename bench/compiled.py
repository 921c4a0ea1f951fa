"""Whether torch.compile pays: training steps eager and compiled, and what compiling costs, by the size of a batch.

    python bench/compiled.py            # measure
    python bench/compiled.py --write    # and let a run compile by default where it pays

On a GPU a step of few windows is bound by launches, which CUDA graphs take away; compiling takes its time once. A batch
pays if a training of STEPS steps ends sooner compiled. `--write` puts the batch up to which all pay into
llata_fast/training/arguments.py, as COMPILED_BELOW. The model is the train-step benchmark's: GPT-2, 6 layers, C 7,
bf16. The last line on stdout is one JSON object.
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
# of a training that compiling must not delay
STEPS = 2000
REPEATS = 15


def measure(windows: int, dry_run: bool) -> dict:
    """Milliseconds of a step either way, the seconds until it is compiled, and the steps that win them back."""
    settings = parse_model(["--batch", str(windows), "--num_layers", "1" if dry_run else "6"])
    precision = "bf16" if settings.device == "cuda" else "fp32"
    # a dry run has no time to compile
    eager, compiled = (Provider(settings, "llata_fast", precision, flag and not dry_run) for flag in (False, True))
    inputs = batch(settings)
    start = time.perf_counter()
    # records its graphs at the second call
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
    """One window more than the largest batch up to which all pay; rows are in the order of their sizes."""
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
    parser.add_argument("--write", action="store_true", help="COMPILED_BELOW, as measured here")
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
