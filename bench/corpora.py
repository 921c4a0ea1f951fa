"""Measure how fast windows are read from a corpus larger than memory, and how much memory that takes.

    python bench/corpora.py                                # a corpus of 4 GB, 50,000 series, context 512, horizon 96
    python bench/corpora.py --gigabytes 0.1 --batches 50   # a quick try

Every figure comes from a separate process: seconds from `Mixture(...)` to the first batch, windows per second of one
thread from the page cache (the corpus is read once before), and the growth of anonymous memory (RssAnon) after the
imports. The last line is one JSON object.
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
import time
from pathlib import Path

import numpy as np

from llata_fast.data.corpora import open_corpus
from llata_fast.data.corpus_writer import CorpusLayout, CorpusSeries, new_corpus, write_shards
from llata_fast.data.mixture import Mixture, MixtureEntry, WindowSizes


def main():
    options = _parser().parse_args()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        corpus = options.corpus or str(Path(folder, "corpus"))
        if not options.corpus:
            write(corpus, options)
        began = time.perf_counter()
        # read the file once: the first read would measure the disk, not the reader
        steps = open_corpus(corpus).info().steps
        scan = time.perf_counter() - began
        command = [sys.executable, __file__, "--measure", "--corpus", corpus, "--batches", str(options.batches)]
        command += ["--context", str(options.context), "--horizon", str(options.horizon)]
        command += ["--batch_size", str(options.batch_size)]
        figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    figures = {"gigabytes": steps * 4 / 1e9, "info_seconds": scan} | figures
    figures |= {"load": os.getloadavg()[0], "machine": f"{platform.machine()}, {os.cpu_count()} CPUs"}
    for name, value in figures.items():
        print(f"{name:<22} {value:,.3f}" if isinstance(value, float) else f"{name:<22} {value}")
    print(json.dumps(figures))


def measure(options: argparse.Namespace) -> dict:
    """The figures measured in one process."""
    idle = anonymous_bytes()
    began = time.perf_counter()
    sizes = WindowSizes(options.context, options.horizon, shortest_context=32)
    mixture = Mixture([MixtureEntry(options.corpus)], sizes, seed=0)
    mixture.batch(0, options.batch_size)
    first = time.perf_counter() - began
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(1, options.batches + 1):
        mixture.batch(number, options.batch_size)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    windows = options.batches * options.batch_size
    return {
        "first_batch_seconds": first,
        "windows_per_second": windows / wall,
        # CPU time, since wall time includes other processes on a busy machine
        "windows_per_cpu_second": windows / cpu,
        "anonymous_megabytes": (anonymous_bytes() - idle) / 1e6,
    }


def anonymous_bytes() -> int:
    """This process's memory that is not backed by a file, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def write(folder: str, options: argparse.Namespace):
    """Write a corpus of random walks, which are quick to generate; their values do not matter here."""
    rng = np.random.default_rng(0)
    count = max(1, int(options.gigabytes * 1e9 / 4 / options.length))
    steps = rng.normal(size=1 << 20).cumsum().astype(np.float32)

    def series():
        for number in range(count):
            length = int(rng.integers(options.length // 2, options.length * 3 // 2))
            values = np.resize(steps[rng.integers(0, len(steps) // 2) :], length)
            yield CorpusSeries(f"s{number}", np.datetime64("2020-01-01"), "h", values[None])

    with new_corpus(folder, CorpusLayout()) as partial:
        write_shards(partial, "data", series(), CorpusLayout())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the corpus to write")
    parser.add_argument("--length", type=int, default=20_000, help="mean number of steps per series")
    parser.add_argument("--corpus", help="measure this existing corpus instead")
    parser.add_argument("--folder", help="where to write the corpus; default: the temporary folder")
    parser.add_argument("--context", type=int, default=512, help="L, steps")
    parser.add_argument("--horizon", type=int, default=96, help="H, steps")
    parser.add_argument("--batch_size", type=int, default=256, help="windows per batch")
    parser.add_argument("--batches", type=int, default=2000, help="number of batches to time")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
