"""Shared by the kernel benchmarks: checking, timing and recording a provider.

Every `bench_<op>.py` defines CASES, PROVIDERS, `make_inputs` and `cost`; pytest-benchmark runs them (`pytest bench
--benchmark-only`), and `--out DIR` writes one CSV per op. A provider that fails the test suite's tolerance gets an
error row instead of a time. On a GPU, ms is the time of the kernels alone: CUDA graphs are replayed over copies of the
inputs that do not fit in the cache together. wall_ms is the eager call from Python until the GPU has finished. On a
CPU, `<op>_ref` and the reference implementation take turns in every round, so that slow phases of the machine affect
both.
"""

import csv
import dataclasses
import datetime
import functools
import pathlib
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable

import torch
from torch import Tensor

MODES = ("fwd", "bwd", "fwd+bwd")
# what CPU users get, and the baseline it is compared with
REF, REFERENCE = "ref", "reference"
KEY = ("op", "case", "provider", "mode", "dtype", "device")

Inputs = dict[str, Tensor]
# (inputs, sizes of the case) -> the output to differentiate
Provider = Callable[[Inputs, dict[str, int]], Tensor]


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    sizes: dict[str, int]
    cpu: bool = False
    """Whether it is small enough for a CPU."""

    def __str__(self):
        return self.name


@dataclasses.dataclass
class Row:
    """One measurement. ms: 50th, 20th and 80th percentile of the kernels' time; wall_ms: median eager call."""

    op: str
    case: str
    provider: str
    mode: str
    dtype: str
    device: str
    sizes: str
    ms_p50: float | str = ""
    ms_p20: float | str = ""
    ms_p80: float | str = ""
    wall_ms: float | str = ""
    gb_s: float | str = ""
    tflop_s: float | str = ""
    floor_fraction: float | str = ""
    """Lower bound of the time (fewest bytes and operations at this machine's copy and GEMM speed) over the time."""
    peak_mib: float | str = ""
    error: str = ""
    torch: str = torch.__version__
    triton: str = ""
    commit: str = ""
    date: str = ""


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


@functools.cache
def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = pathlib.Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return f"{model[1] if model else platform.machine()}, {torch.get_num_threads()} threads"


def device_folder() -> str:
    """Name of the folder for this device's results."""
    return re.sub(r"\W+", "-", device_name().lower()) if torch.cuda.is_available() else "cpu"


@functools.cache
def versions() -> dict[str, str]:
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = ""
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        commit = ""
    return {"triton": triton_version, "commit": commit, "date": datetime.date.today().isoformat()}


# enough copies of the inputs, used in turn, that none is still in the cache
ROTATED_CACHES, MOST_COPIES = 3, 64


def rotated(inputs: Inputs) -> list[Inputs]:
    """Copies of the inputs that together take three times the device's L2 cache; on a CPU only the inputs."""
    if not torch.cuda.is_available():
        return [inputs]
    size = sum(t.nbytes for t in inputs.values())
    wanted = ROTATED_CACHES * torch.cuda.get_device_properties(0).L2_cache_size
    copy = lambda: {name: t.detach().clone().requires_grad_(t.requires_grad) for name, t in inputs.items()}
    return [copy() for _ in range(max(2, min(MOST_COPIES, -(-wanted // size))))]


class Replayed:
    """Runs calls in turn without Python's overhead: as one CUDA graph on a GPU, as a loop on a CPU.

    `make` returns the calls. It runs on the captured stream, like the calls: a backward runs on its forward's stream.
    """

    def __init__(self, make: Callable[[], list[Callable[[], object]]]):
        self.graph = None
        if not torch.cuda.is_available():
            self.calls = make()
            self.run()
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.calls = make()
            # warm-up: compiles, and allocates memory that may not be allocated during capture
            for _ in range(2):
                self.run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self.run()
        self.graph = graph

    def run(self):
        if self.graph is not None:
            self.graph.replay()
            return
        for call in self.calls:
            call()

    def seconds(self, rounds: int) -> list[float]:
        """Sorted mean times of a call, in seconds, of `rounds` rounds."""
        times = []
        for _ in range(rounds):
            if self.graph is None:
                start = time.perf_counter()
                self.run()
                times.append(time.perf_counter() - start)
            else:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                self.run()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end) / 1e3)
        return sorted(taken / len(self.calls) for taken in times)


def seconds(call: Callable[[], object], rounds: int) -> list[float]:
    """Sorted times of `rounds` calls in seconds, after one warm-up call."""
    return Replayed(lambda: [call]).seconds(rounds)


@functools.cache
def ceilings() -> tuple[float, float]:
    """Measured bytes per second of a large copy (read plus written), and operations per second of a large GEMM."""
    size = 2**28 if torch.cuda.is_available() else 2**26
    source, target = torch.randn(size // 4, device=device()), torch.empty(size // 4, device=device())
    n = 8192 if torch.cuda.is_available() else 1536
    a, b = (torch.randn(n, n, device=device(), dtype=dtype()) for _ in range(2))
    copy = statistics.median(seconds(lambda: target.copy_(source), 7))
    gemm = statistics.median(seconds(lambda: a @ b, 7))
    return 2 * size / copy, 2 * n**3 / gemm


def check(provider: Provider, ref: Provider, inputs: Inputs, sizes: dict[str, int], cotangent: Tensor) -> None:
    """Raise unless output and gradients meet the test suite's tolerance, with `ref` in float64 as the exact result."""
    from check import assert_close_to_ref

    def results(fn, inputs):
        inputs = {name: t.detach().requires_grad_(t.requires_grad) for name, t in inputs.items()}
        out = fn(inputs, sizes)
        wanted = {name: t for name, t in inputs.items() if t.requires_grad}
        grads = torch.autograd.grad(out, list(wanted.values()), cotangent.to(out.dtype))
        return {"out": out.detach(), **{f"d{name}": grad for name, grad in zip(wanted, grads, strict=True)}}

    out = results(provider, inputs)
    eager = out if provider is ref else results(ref, inputs)
    doubles = {n: t.detach().double().requires_grad_(t.requires_grad) for n, t in inputs.items()}
    exact = results(ref, doubles)
    for name in out:
        # sums over thousands of rows: a rounding step is large compared with the absolute tolerance
        assert_close_to_ref(name, out[name], eager[name], exact[name], steps=2)


def calls(
    provider: Provider, inputs: Inputs, sizes: dict[str, int], cotangent: Tensor, mode: str
) -> Callable[[], object]:
    wanted = [t for t in inputs.values() if t.requires_grad]
    if mode == "fwd":
        return torch.no_grad()(lambda: provider(inputs, sizes))
    if mode == "bwd":
        out = provider(inputs, sizes)
        return lambda: torch.autograd.grad(out, wanted, cotangent, retain_graph=True)
    return lambda: torch.autograd.grad(provider(inputs, sizes), wanted, cotangent)


def peak_mib(call: Callable[[], object]) -> float | str:
    if not torch.cuda.is_available():
        return ""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def timed_row(row: Row, times: list[float], cost: dict[str, tuple[int, int]], wall: float | str = "") -> Row:
    """Fill the row from sorted times in seconds and each mode's (bytes, operations)."""
    size, flops = (sum(parts) for parts in zip(*(cost[mode] for mode in row.mode.split("+")), strict=True))
    p20, p50, p80 = (times[min(len(times) - 1, round(q * (len(times) - 1)))] for q in (0.2, 0.5, 0.8))
    bandwidth, rate = ceilings()
    return dataclasses.replace(
        row,
        ms_p50=round(p50 * 1e3, 4),
        ms_p20=round(p20 * 1e3, 4),
        ms_p80=round(p80 * 1e3, 4),
        wall_ms=wall,
        gb_s=round(size / p50 / 1e9, 1),
        tflop_s=round(flops / p50 / 1e12, 3),
        floor_fraction=round(max(size / bandwidth, flops / rate) / p50, 4),
    )


def upsert(rows: list[Row], path: pathlib.Path) -> None:
    """Write rows to the CSV; a repeated measurement replaces the old row."""
    kept = {}
    if path.exists():
        with path.open(newline="") as file:
            kept = {tuple(row[name] for name in KEY): row for row in csv.DictReader(file)}
    for row in rows:
        kept[tuple(getattr(row, name) for name in KEY)] = dataclasses.asdict(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept.values())
