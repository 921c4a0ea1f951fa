"""Compile every kernel with every default config for GPUs that are not here, and read what the compiler made of it.

    python tools/compile_only.py --targets sm_90 gfx942    # prints the table's rows for these targets
    python tools/compile_only.py --sample                  # every kernel, but only its first shape class
    python tools/compile_only.py --write                   # kernels/RESOURCES.md, all targets

The real launchers run on CPU tensors under a stub driver that names the target, so no signature is written twice.
The interpreter must be off, hence a process of its own; results are kept in Triton's cache, by source hash.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import subprocess
import tempfile
from functools import partial

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from llata_fast.kernels import _launch, configs
from llata_fast.kernels.alignment_loss import alignment_loss_bwd, alignment_loss_fwd
from llata_fast.kernels.patch_embed import patch_embed_bwd, patch_embed_fwd
from llata_fast.kernels.prototype_attention import prototype_attention_bwd, prototype_attention_fwd
from llata_fast.kernels.twin_norm import twin_norm_bwd, twin_norm_fwd
from triton.backends.compiler import GPUTarget
from triton.runtime.cache import get_cache_manager
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# bytes of shared memory that one program may use
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
TABLE = configs.PATH.with_name("RESOURCES.md")
# what the target's tensor cores are called in its assembly: PTX (HMMA, HGMMA and UTCHMMA in SASS) or GCN
MATRIX_INSTRUCTION = {"sm_80": "mma.sync.", "sm_90": "wgmma.mma_async.", "sm_100": "tcgen05.mma.", "gfx942": "v_mfma_"}


@dataclasses.dataclass(frozen=True)
class Resources:
    """One row of kernels/RESOURCES.md: the worst of a config's launches."""

    kernel: str
    shape_class: str
    variant: str
    target: str
    config: str
    """Which row of the config table it is: the target's own or "any"."""
    registers: int
    spill_bytes: int
    shared_bytes: int
    matrix_instructions: int

    def faults(self) -> list[str]:
        """What a default config must not do."""
        faults = []
        if self.spill_bytes:
            faults.append(f"spills {self.spill_bytes} bytes")
        if self.shared_bytes > SHARED_LIMIT[self.target]:
            faults.append(f"needs {self.shared_bytes} of {SHARED_LIMIT[self.target]} bytes of shared memory")
        if "16-bit" in self.shape_class and not self.matrix_instructions:
            faults.append(f"has no {MATRIX_INSTRUCTION[self.target]}")
        return faults

    def line(self) -> str:
        return f"| {' | '.join(str(value) for value in dataclasses.astuple(self))} |"


HEADER = """# What the compiler makes of the kernels

`make resources` writes this file: every kernel with every default config, compiled without a GPU by Triton {version}.
Spills are bytes of stack a thread, matrix instructions those of the tensor cores (HMMA, HGMMA, UTCHMMA, MFMA). The
32-bit classes multiply in exact fp32 on FMA units, except on gfx942, whose matrix cores can.

Sources: `{digest}`

"""


def parse_rows(text: str) -> list[Resources]:
    rows = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [Resources(*row[:5], *map(int, row[5:])) for row in rows if row[-1].isdecimal()]


def read_table() -> list[Resources]:
    return parse_rows(TABLE.read_text())


def write_table(rows: list[Resources]) -> None:
    names = [field.name for field in dataclasses.fields(Resources)]
    heading = [f"| {' | '.join(name.replace('_', ' ') for name in names)} |", f"| {' | '.join('-' for _ in names)} |"]
    lines = [*heading, *(row.line() for row in rows)]
    TABLE.write_text(HEADER.format(version=triton.__version__, digest=source_digest()) + "\n".join(lines) + "\n")


def source_digest() -> str:
    """Of everything that the table follows from, the compiler's version apart."""
    sources = [*sorted(TABLE.parent.glob("*.py")), configs.PATH, pathlib.Path(__file__)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


class StubDriver:
    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch  # keys the kernel cache: one slot per target

    def get_current_stream(self, device=None):
        return 0


@contextlib.contextmanager
def compile_only(target: GPUTarget):
    """Yield a list that every launch is added to, as its config and the compiled kernel, instead of being run."""
    built, looked_up = [], []
    run, launch_options, active = JITFunction.run, configs.Config.launch_options, driver._active

    def compile_(self, *args, grid, warmup, **kwargs):
        built.append((looked_up[-1], run(self, *args, grid=grid, warmup=True, **kwargs)))

    def remember(config):
        looked_up.append(config)
        return launch_options(config)

    driver.set_active(StubDriver(target))
    JITFunction.run, configs.Config.launch_options = compile_, remember
    _launch.target_name.cache_clear()
    try:
        yield built
    finally:
        JITFunction.run, configs.Config.launch_options, driver._active = run, launch_options, active


def launches(sample: bool = False):
    """(variant, launch) for every kernel and shape class; values are never read, so memory stays untouched."""
    yield from _norm_launches(sample)
    for dtype in (torch.bfloat16,) if sample else (torch.bfloat16, torch.float32):
        empty = partial(torch.empty, dtype=dtype)
        for L, P, S in ((512, 16, 8),) if sample else ((512, 16, 8), (96, 96, 96), (512, 512, 512)):
            B, C, D, N = 16, 862, 768, (L - P) // S + 1
            x, weight, bias = empty(B, L, C, dtype=torch.float32), empty(D, P), empty(D)
            stats = [empty(B, C, dtype=torch.float32)] * 3
            for mask in (None,) if sample else (None, torch.empty(x.shape, dtype=torch.bool)):
                variant = "" if mask is None else "masked"
                yield variant, partial(patch_embed_fwd, x, weight, bias, mask, S, 1e-5)
                yield variant, partial(patch_embed_bwd, empty(B, C, N, D), x, weight, *stats, mask, S)
        for E in (64,) if sample else (64, 128, 256):
            q, k, lse = empty(10272, 12, E), empty(500, 12, E), empty(12, 10272, dtype=torch.float32)
            yield "", partial(prototype_attention_fwd, q, k, k, 0.1)
            yield "", partial(prototype_attention_bwd, q, q, k, k, q, lse, 0.1)
        for G, M, D in ((1, 256, 768),) if sample else ((1, 256, 768), (7, 10272, 2048)):
            weight, loss, slope = empty(G, D, D), empty(1, dtype=torch.float32), empty(G, M, D)
            slope = slope if dtype == torch.bfloat16 else empty(0)
            # a residual stream is fp32 under autocast, too
            for features_dtype in (dtype,) if sample else {dtype, torch.float32}:
                features = [empty(2 * M, D, dtype=features_dtype)] * G
                variant = "" if features_dtype == dtype else ", fp32 features"
                for kind in ("l1",) if sample else ("l1", "smooth_l1", "mse"):
                    inputs = features, [], weight, weight
                    yield kind + variant, partial(alignment_loss_fwd, *inputs, [1.0] * G, kind, True)
                backward = partial(alignment_loss_bwd, loss, *inputs, slope, [1.0] * G, "l1")
                yield variant.removeprefix(", "), backward


def _norm_launches(sample: bool):
    """(variant, launch) of the norms: an fp32 stream with a bf16 update, as under autocast, and bf16 throughout."""
    for D in (768,) if sample else (128, 768, 4096, 8192):
        weight, rows = torch.empty(D), torch.empty(64, dtype=torch.float32)
        streams = (torch.float32,) if sample else (torch.float32, torch.bfloat16)
        for stream in streams:
            x, update = torch.empty(64, D, dtype=stream), torch.empty(64, D, dtype=torch.bfloat16)
            for kind in ("layer",) if sample else ("layer", "rms"):
                bias = weight if kind == "layer" else None
                variant = f"{kind}, {str(stream).removeprefix('torch.')} stream"
                mean = rows if kind == "layer" else rows[:0]
                forward = x, weight, bias, weight, bias, update, 32, 1e-5, 0.0, kind, torch.bfloat16
                yield variant, partial(twin_norm_fwd, *forward)
                backward = update, x, x, weight, bias, weight, mean, rows, 32, 0.0, kind, stream, torch.bfloat16
                yield variant, partial(twin_norm_bwd, *backward)


def resource_usage(cubin: bytes) -> str:
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.check_output([tool, "--dump-resource-usage", file.name], text=True)


def assembly_facts(kernel, target: str) -> dict[str, int]:
    if target.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        field = lambda name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1])
        registers = field("vgpr_count")
        # private memory is the stack of one lane: spills, as in STACK below
        spill_bytes = field("private_segment_fixed_size")
    else:
        text = kernel.asm["ptx"]
        usage = resource_usage(kernel.asm["cubin"])
        registers, spill_bytes = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    return {
        "registers": registers,
        "spill_bytes": spill_bytes,
        "shared_bytes": kernel.metadata.shared,
        "matrix_instructions": text.count(MATRIX_INSTRUCTION[target]),
    }


def cached_facts(kernel, target: str) -> dict[str, int]:
    """`assembly_facts`, kept beside the binary in Triton's cache, whose folder is a hash of sources and options."""
    cache = get_cache_manager(kernel.hash)
    path = cache.get_file("resources.json")
    if path is None:
        path = cache.put(json.dumps(assembly_facts(kernel, target)), "resources.json", binary=False)
    return json.loads(pathlib.Path(path).read_text())


def resources(target: str, sample: bool = False) -> list[Resources]:
    rows, compiled = {}, set()
    for variant, launch in launches(sample):
        with compile_only(TARGETS[target]) as built:
            launch()
        for config, kernel in built:
            # a kernel that does not depend on the variant is listed once
            if (kernel.hash, config.shape_class) in compiled:
                continue
            compiled.add((kernel.hash, config.shape_class))
            facts = cached_facts(kernel, target)
            key = (config.kernel, config.shape_class, variant, target, config.target)
            if key in rows:
                worst_of = {name: min if name == "matrix_instructions" else max for name in facts}
                facts = {name: worst_of[name](value, getattr(rows[key], name)) for name, value in facts.items()}
            rows[key] = Resources(*key, **facts)
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--sample", action="store_true", help="every kernel, but only its first shape class")
    parser.add_argument("--write", action="store_true", help="write kernels/RESOURCES.md instead of printing")
    args = parser.parse_args()
    rows = [row for target in args.targets for row in resources(target, args.sample)]
    if args.write:
        write_table(rows)
    else:
        print(*(row.line() for row in rows), sep="\n")


if __name__ == "__main__":
    main()
