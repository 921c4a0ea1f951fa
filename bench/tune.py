"""Time neighbours of the launch configs on this machine's GPU and write the best into kernels/configs.csv.

    python bench/tune.py [OP ...]

For every kernel and shape class that the benchmarks' cases reach: sizes halved and doubled, other numbers of warps,
stages and waves, one change at a time from the best so far, until none gains 2 %. Medians of CUDA events; a config
that does not compile, or whose result differs from the table's, is passed over. Run it alone on the GPU.
"""

import argparse
import csv
import dataclasses
import importlib
import json
import statistics
import sys

import common
import torch
from llata_fast.kernels import configs
from llata_fast.kernels._launch import target_name

OPS = ("patch_embed", "prototype_attention", "deep_alignment_loss", "alignment_loss", "twin_norm")
GAIN = 0.98


def reached_rows(call) -> list[configs.Config]:
    """Configs that a call launches with."""
    seen, launch_options = [], configs.Config.launch_options

    def remember(config):
        seen.append(config)
        return launch_options(config)

    configs.Config.launch_options = remember
    try:
        call()
    finally:
        configs.Config.launch_options = launch_options
    return list({config.kernel + config.shape_class: config for config in seen}.values())


def neighbours(config: configs.Config):
    for name, size in config.blocks.items():
        for other in (size // 2, size * 2):
            if other >= 1:
                yield dataclasses.replace(config, blocks={**config.blocks, name: other})
    for name, others in (("num_warps", (4, 8)), ("num_stages", (1, 2, 3, 4, 5)), ("waves", (1, 2, 3, 4, 8, 16, 32))):
        for other in others:
            if other != getattr(config, name):
                yield dataclasses.replace(config, **{name: other})


def use(config: configs.Config) -> None:
    configs.TABLE[config.kernel, config.shape_class, config.target] = config


def milliseconds(call, expected) -> float:
    """Median time of a call; infinite where it fails or gives another result."""
    try:
        for ours, theirs in zip(call(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2 * theirs.abs().max().item())
        return statistics.median(common.seconds(call, 1)) * 1e3
    except Exception:
        return float("inf")


def tune(config: configs.Config, call, what: str) -> configs.Config:
    target = target_name(torch.device("cuda"))
    best = dataclasses.replace(config, target=target)
    expected = [t.clone() for t in call()]
    start = best_ms = milliseconds(call, expected)
    improved = True
    while improved:
        improved = False
        for candidate in neighbours(best):
            use(candidate)
            ms = milliseconds(call, expected)
            if ms < best_ms * GAIN:
                best, best_ms, improved = candidate, ms, True
    reason = f"measured: {what} in {best_ms:.3f} ms, {start:.3f} ms before, {torch.cuda.get_device_name()}"
    best = config if best_ms >= start * GAIN else dataclasses.replace(best, reason=reason)
    configs.TABLE.pop((config.kernel, config.shape_class, target), None)
    use(best)
    print(f"{config.kernel}, {config.shape_class}: {best.blocks} {best.num_warps} {best.num_stages} {best.reason}")
    return best


def write_table() -> None:
    rows = sorted(configs.TABLE.values(), key=lambda config: (config.kernel, config.shape_class, config.target))
    names = [field.name for field in dataclasses.fields(configs.Config)]
    with configs.PATH.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            values = dataclasses.asdict(row) | {"blocks": json.dumps(row.blocks)}
            writer.writerow([values[name] for name in names])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=", ".join(OPS))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/tune.py needs a CUDA device: the table stays as it is")
    tuned = set()
    for op in args.ops or OPS:
        module = importlib.import_module(f"bench_{op}")
        # largest first, as the first case that reaches a row is the one it is tuned for; projections would only dilute
        cases = [case for case in module.CASES if "projections" not in case.sizes]
        for case in sorted(cases, key=lambda case: -module.cost(case.sizes, common.dtype())["fwd"][1]):
            inputs, cotangent = module.make_inputs(case.sizes, common.dtype(), common.device())
            for mode in ("fwd", "bwd"):
                timed = common.calls(module.PROVIDERS["triton"], inputs, case.sizes, cotangent, mode)
                call = lambda timed=timed: [out] if torch.is_tensor(out := timed()) else list(out)
                for config in reached_rows(call):
                    key = (config.kernel, config.shape_class)
                    if key not in tuned:
                        tune(config, call, f"{case}, {mode}")
                        tuned.add(key)
                        write_table()


if __name__ == "__main__":
    main()
