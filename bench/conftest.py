"""Options and the fixture of the kernel benchmarks."""

import dataclasses
import json
import pathlib
import statistics
import sys
import time

import pytest
import torch

# for common.py; only this folder goes on the path, never the root, which contains the folder kernels/
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import common


def pytest_addoption(parser):
    group = parser.getgroup("kernel benchmarks")
    group.addoption("--out", type=pathlib.Path, help="folder for one CSV per op, in a subfolder named after the device")
    group.addoption("--provider", help="this provider alone")
    group.addoption("--quick", action="store_true", help="only the first case of each op, few rounds")


def pytest_configure(config):
    config.bench_rows = []


def pytest_unconfigure(config):
    # the very last line is for machines
    if config.bench_rows:
        print(json.dumps({"rows": [dataclasses.asdict(row) for row in config.bench_rows]}))


@pytest.fixture
def measure(benchmark, request):
    """`measure(module, case, provider, mode)` times one provider and records its row."""
    option = request.config.getoption

    def run(module, case, provider, mode):
        op = module.__name__.rsplit(".", 1)[-1].removeprefix("bench_")
        on_gpu = common.device().type == "cuda"
        if option("--provider") not in (None, provider):
            pytest.skip("another provider was asked for")
        if option("--quick") and case is not next(c for c in module.CASES if on_gpu or c.cpu):
            pytest.skip("not a quick case")
        if not on_gpu and not case.cpu:
            pytest.skip("needs a CUDA device: too large for a CPU")
        if not on_gpu and provider != common.REF:
            needs = "timed in turn with ref" if provider == common.REFERENCE else "needs a CUDA device"
            pytest.skip(needs)
        rows = list(measured_rows(module, op, case, provider, mode, benchmark, option("--quick")))
        request.config.bench_rows += rows
        if option("--out"):
            common.upsert(rows, option("--out") / common.device_folder() / f"{op}.csv")
        assert not rows[0].error, rows[0].error

    return run


def measured_rows(module, op, case, provider, mode, benchmark, quick):
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(False)
    inputs, cotangent = module.make_inputs(case.sizes, common.dtype(), common.device())
    sizes = " ".join(f"{letter}={size}" for letter, size in case.sizes.items())
    dtype = str(common.dtype()).removeprefix("torch.")
    row = common.Row(op, str(case), provider, mode, dtype, common.device_name(), sizes, **common.versions())
    ref = module.PROVIDERS[common.REF]
    providers = [provider] if common.device().type == "cuda" else [common.REF, common.REFERENCE]
    for name in providers:
        try:
            common.check(module.PROVIDERS[name], ref, inputs, case.sizes, cotangent)
        except Exception as error:
            yield dataclasses.replace(row, provider=name, error=str(error).splitlines()[0])
            return

    cost = module.cost(case.sizes, common.dtype())
    make_call = lambda inputs: common.calls(module.PROVIDERS[provider], inputs, case.sizes, cotangent, mode)
    rounds = 3 if quick else 9
    if common.device().type == "cuda":
        copies = common.rotated(inputs)
        times = common.Replayed(lambda: [make_call(copy) for copy in copies]).seconds(3 * rounds)
        del copies
        call = make_call(inputs)
        benchmark.pedantic(lambda: (call(), torch.cuda.synchronize()), rounds=rounds, warmup_rounds=3)
        wall = round(statistics.median(benchmark.stats.stats.data) * 1e3, 4)
        yield common.timed_row(dataclasses.replace(row, peak_mib=common.peak_mib(call)), times, cost, wall)
        return

    call = make_call(inputs)
    yardstick = common.calls(module.PROVIDERS[common.REFERENCE], inputs, case.sizes, cotangent, mode)
    yardstick_times = []

    def take_turns():
        start = time.perf_counter()
        yardstick()
        yardstick_times.append(time.perf_counter() - start)

    benchmark.pedantic(call, setup=take_turns, rounds=rounds, warmup_rounds=1)
    yield common.timed_row(row, sorted(benchmark.stats.stats.data), cost)
    # the first round is a warm-up
    reference = dataclasses.replace(row, provider=common.REFERENCE)
    yield common.timed_row(reference, sorted(yardstick_times[1:]), cost)
