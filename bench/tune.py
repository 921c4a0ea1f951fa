"""Time every kernel's launch configs on this machine's GPU and write the best ones to kernels/configs.csv.

    python bench/tune.py [OP ...]             # launch configs
    python bench/tune.py --providers [OP ...] # Triton or the library, into kernels/providers.csv

Every shape class of every kernel is tuned separately, on the launches that tools/compile_only.py compiles; only the
tuned kernel runs while it is timed. The search changes the best config in one place at a time: it halves and doubles
sizes and tries other numbers of warps, stages and waves. Each candidate is timed in turn with the best, as replays of a
CUDA graph, and wins if it is faster by more than both spreads. Configs that fail to compile, or whose results differ
from the table's, are skipped. Nothing else should run on the GPU.
"""

import argparse
import contextlib
import csv
import dataclasses
import importlib
import json
import sys
from pathlib import Path
from unittest import mock

import common
import torch
from llata_fast.kernels import configs, providers
from llata_fast.kernels._launch import target_name

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from kernel_launches import launches

OPS = ("patch_embed", "prototype_attention", "deep_alignment_loss", "alignment_loss", "twin_norm", "forecast_losses")
WARM_UP, ROUNDS = 3, 20
CHOICES = {"num_warps": (1, 2, 4, 8, 16), "num_stages": (1, 2, 3, 4, 5), "waves": (1, 2, 3, 4, 5, 8, 16, 32)}


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times in ms: the median, and the 20th and 80th percentiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        at = lambda share: 1e3 * sorted(seconds)[round(share * (len(seconds) - 1))]
        return cls(at(0.5), at(0.2), at(0.8))

    def beats(self, other: "Timing") -> bool:
        """Whether it is faster by more than the spread of either."""
        return self.median + max(self.high - self.low, other.high - other.low) < other.median


@contextlib.contextmanager
def looked_up():
    """Context that yields a list to which the config of every launch is appended."""
    seen, launch_options = [], configs.Config.launch_options

    def remember(config):
        seen.append(config)
        return launch_options(config)

    with mock.patch.object(configs.Config, "launch_options", remember):
        yield seen


def reached(call) -> list[configs.Config]:
    """The configs of all launches in a call."""
    with looked_up() as seen:
        call()
    return list({(config.kernel, config.shape_class): config for config in seen}.values())


@contextlib.contextmanager
def alone(kernel: str):
    """Context in which only the Triton kernel `kernel` is launched."""
    from triton.runtime.jit import JITFunction

    run = JITFunction.run
    with looked_up() as seen:

        def run_one(self, *args, **kwargs):
            return run(self, *args, **kwargs) if seen[-1].kernel == kernel else None

        with mock.patch.object(JITFunction, "run", run_one):
            yield


def neighbours(config: configs.Config):
    for name, size in config.blocks.items():
        for other in (size // 2, size * 2):
            if other >= 1:
                yield dataclasses.replace(config, blocks={**config.blocks, name: other})
    for name, others in CHOICES.items():
        for other in others:
            if other != getattr(config, name):
                yield dataclasses.replace(config, **{name: other})


def use(config: configs.Config) -> None:
    configs.TABLE[config.kernel, config.shape_class, config.target] = config


def same_result(call, expected) -> bool:
    for ours, theirs in zip(results(call), expected, strict=True):
        if not torch.allclose(ours.double(), theirs.double(), rtol=2e-2, atol=2e-2 * theirs.abs().max().item()):
            return False
    return True


def results(call) -> list[torch.Tensor]:
    out = call()
    return [out] if torch.is_tensor(out) else [t for t in out if torch.is_tensor(t) and t.numel()]


def timings(first: configs.Config, second: configs.Config, call) -> tuple[Timing, Timing]:
    """Times of the kernel with both configs, measured in turns."""
    replays = []
    with alone(first.kernel):
        for config in (first, second):
            use(config)
            replays.append(common.Replayed(lambda: [call] * 8))
    times = ([], [])
    for _ in range(WARM_UP + ROUNDS):
        for taken, replay in zip(times, replays, strict=True):
            taken += replay.seconds(1)
    return tuple(Timing.of(taken[WARM_UP:]) for taken in times)


def tune(config: configs.Config, call, target: str, what: str, measure=timings) -> configs.Config:
    """Find the best config for the launches of `call` and put it in the table."""
    start = best = dataclasses.replace(config, target=target)
    use(start)
    expected, told = [t.clone() for t in results(call)], ""
    improved = True
    while improved:
        improved = False
        for candidate in neighbours(best):
            use(candidate)
            try:
                if not same_result(call, expected):
                    continue
                ours, theirs = measure(candidate, best, call)
            except Exception as error:  # the compiler or the device refuses this candidate
                print(f"  {candidate.blocks} {candidate.num_warps} {candidate.num_stages}: {type(error).__name__}")
                continue
            if ours.beats(theirs):
                told = told or f"{theirs.median:.4f} ms before"
                reason = f"measured: {what} in {ours.median:.4f} ms, {told}, {common.device_name()}"
                best, improved = dataclasses.replace(candidate, reason=reason), True
    del configs.TABLE[config.kernel, config.shape_class, target]
    best = config if best is start else best
    use(best)
    print(f"{config.kernel}, {config.shape_class}: {best.blocks} {best.num_warps} {best.num_stages} {best.reason}")
    return best


def write(path: Path, table: dict, kind: type) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for _, row in sorted(table.items()):
            values = {name: getattr(row, name) for name in names}
            writer.writerow([json.dumps(v) if isinstance(v, dict) else v for v in values.values()])


def tuned_launches(device: torch.device):
    """(variant, launch) for every kernel and shape class, on random values."""
    with torch.device(device):
        for variant, launch in launches():
            for tensor in torch.utils._pytree.tree_leaves(launch.args):
                if torch.is_tensor(tensor) and tensor.is_floating_point() and tensor.numel():
                    tensor.normal_()
            yield variant, launch


def tune_configs(ops: list[str], target: str) -> None:
    tuned = set()
    for variant, launch in tuned_launches(common.device()):
        for config in reached(launch):
            key = (config.kernel, config.shape_class)
            if key not in tuned and any(config.kernel.startswith(op) for op in [*ops, "reduce"]):
                tune(config, launch, target, variant or "plain")
                tuned.add(key)
                write(configs.PATH, configs.TABLE, configs.Config)
    for kernel, shape_class in sorted({(kernel, shape_class) for kernel, shape_class, _ in configs.TABLE} - tuned):
        if any(kernel.startswith(op) for op in ops):
            print(f"{kernel}, {shape_class}: no launch reached it")


def choose_providers(ops: list[str], target: str) -> None:
    """Time every op of a training step with Triton and with the library, and keep the faster one."""
    chosen = set()
    for op in ops:
        module = importlib.import_module(f"bench_{op}")
        for case in [case for case in module.CASES if "projections" not in case.sizes]:
            inputs, cotangent = module.make_inputs(case.sizes, common.dtype(), common.device())
            call = common.calls(module.PROVIDERS["triton"], inputs, case.sizes, cotangent, "fwd+bwd")
            for key in [key for key in asked_rows(call) if key[:2] not in chosen]:
                chosen.add(key[:2])
                row, taken = providers.TABLE[key], {}
                for name in (providers.TRITON, providers.LIBRARY):
                    providers.TABLE[key] = dataclasses.replace(row, provider=name)
                    replay = common.Replayed(lambda call=call: [call])
                    replay.seconds(WARM_UP)
                    taken[name] = Timing.of(replay.seconds(ROUNDS))
                # replace the table's provider only if the other is faster by more than the spread
                other = next(name for name in taken if name != row.provider)
                best = other if taken[other].beats(taken[row.provider]) else row.provider
                times = ", ".join(f"{name} {timing.median:.4f} ms" for name, timing in taken.items())
                reason = f"{case}, fwd+bwd: {times}, {common.device_name()}"
                providers.TABLE[key] = row
                measured = dataclasses.replace(row, target=target, provider=best, basis="measured", reason=reason)
                providers.TABLE[row.op, row.shape_class, target] = measured
                print(f"{row.op}, {row.shape_class}: {best} ({reason})")
                write(providers.PATH, providers.TABLE, providers.Provider)


def asked_rows(call) -> list[tuple[str, str, str]]:
    """Keys of the providers' rows that a call looks up."""
    seen = []

    class Asked(dict):
        def get(self, key, default=None):
            row = super().get(key, default)
            seen.append(key if row is not None else (*key[:2], "any"))
            return row

    table, providers.TABLE = providers.TABLE, Asked(providers.TABLE)
    try:
        call()
    finally:
        providers.TABLE = table
    return list(dict.fromkeys(seen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=", ".join(OPS))
    parser.add_argument("--providers", action="store_true", help="choose between Triton and the library")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/tune.py needs a CUDA device: the tables stay as they are")
    work = choose_providers if args.providers else tune_configs
    work(args.ops or list(OPS), target_name(torch.device("cuda")))


if __name__ == "__main__":
    main()
