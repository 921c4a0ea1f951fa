"""Compile every kernel with every default config for absent GPUs, and report the compiler's results.

    python tools/compile_only.py --targets sm_90 gfx942    # prints the table's rows for these targets
    python tools/compile_only.py --sample                  # only the first shape class of every kernel
    python tools/compile_only.py --write                   # kernels/RESOURCES.md, all targets

The real launchers run on CPU tensors under a stub driver for the target, so that no signature is written twice. The
interpreter must be off, so this needs a separate process. Results are kept in Triton's cache, by source hash.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
from unittest import mock

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)

import assembly
import triton
from kernel_launches import NAMED, launches, named_launches
from llata_fast.kernels import _launch, configs
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
# shared memory that one program may use, in bytes
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
# waves are counted for this GPU: an H100 or H200
WAVES_TARGET, MULTIPROCESSORS = "sm_90", 132
TABLE = configs.PATH.with_name("RESOURCES.md")


@dataclasses.dataclass(frozen=True)
class Resources:
    """One row of kernels/RESOURCES.md: the worst of a config's launches."""

    kernel: str
    shape_class: str
    variant: str
    target: str
    config: str
    """Target of the config table's row: this target's own or "any"."""
    registers: int
    spill_bytes: int
    shared_bytes: int
    matrix_instructions: int
    waits: str
    in_flight: str
    load_bytes: str

    def faults(self) -> list[str]:
        """Faults that a default config must not have."""
        faults = []
        if self.spill_bytes:
            faults.append(f"spills {self.spill_bytes} bytes")
        if self.shared_bytes > SHARED_LIMIT[self.target]:
            faults.append(f"needs {self.shared_bytes} of {SHARED_LIMIT[self.target]} bytes of shared memory")
        if "16-bit" in self.shape_class and not self.matrix_instructions:
            faults.append(f"has no {assembly.MATRIX_INSTRUCTION[self.target]}")
        if self.in_flight == "0":
            faults.append("waits for the copy that it has just issued")
        return faults

    def line(self) -> str:
        return f"| {' | '.join(str(value) for value in dataclasses.astuple(self))} |"


@dataclasses.dataclass(frozen=True)
class Waves:
    """One row of the waves table: how a launch at a named shape fills a GPU's multiprocessors."""

    kernel: str
    shape_class: str
    shape: str
    config: str
    programs: int
    resident: int
    """Programs that one multiprocessor runs at once."""
    limit: str
    """The resource that limits them."""

    @property
    def waves(self) -> float:
        return self.programs / (self.resident * MULTIPROCESSORS)

    @property
    def efficiency(self) -> float:
        """Occupied share of all places for programs, including the last wave's empty ones."""
        return self.waves / math.ceil(self.waves)

    def line(self) -> str:
        numbers = f"{self.waves:.2f}", f"{self.efficiency:.2f}"
        return f"| {' | '.join([*map(str, dataclasses.astuple(self)), *numbers])} |"


HEADER = """# What the compiler makes of the kernels

`make resources` writes this file: all kernels with all default configs, compiled without a GPU by Triton {version}.

Sources: `{digest}`

## Waves

Launches at the named shapes, bf16, on an H100 or H200: 132 multiprocessors with 65,536 registers and 228 KiB of shared
memory each, of which every program reserves 1 KiB. A warp with r registers per thread takes 32 r, rounded up to a
multiple of 256. A multiprocessor runs as many programs as fit, at most 32 programs and 64 warps. waves = programs /
(132 resident), efficiency = waves / ceil(waves): below one wave, the share of the GPU in use; above, the share of the
time of all waves in use.

{waves}

## Resources

Spills are bytes of stack per thread. Matrix instructions are those of the tensor cores (HMMA, HGMMA, UTCHMMA, MFMA).
Waits are those in loops that copy to shared memory and feed matrix instructions; in flight is the number of groups of
copies that the strictest wait leaves running, where 0 means waiting for the copy issued last. Load bytes are the
narrowest and the widest load of a thread. The 32-bit classes multiply in exact fp32 on FMA units, except as tf32 and on
gfx942, whose matrix cores support fp32. Odd sizes are numbers of rows and prototypes and lengths of patches. Widths
that are not multiples of 16, which no language model has, give right results but are loaded 2 bytes at a time and
spill.

"""
WAVES_HEADING = "kernel | shape class | shape | config | programs | resident | limit | waves | efficiency"


def _rows(text: str, columns: int) -> list[list[str]]:
    rows = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if len(row) == columns and row[0] not in ("kernel", "-")]


def parse_rows(text: str) -> list[Resources]:
    return [Resources(*row[:5], *map(int, row[5:9]), *row[9:]) for row in _rows(text, 12)]


def parse_waves(text: str) -> list[Waves]:
    return [Waves(*row[:4], *map(int, row[4:6]), row[6]) for row in _rows(text, 9)]


def read_table() -> list[Resources]:
    return parse_rows(TABLE.read_text())


def table(heading: str, lines: list[str]) -> str:
    return "\n".join([f"| {heading} |", f"|{' - |' * len(heading.split(' | '))}", *lines])


def write_table(rows: list[Resources], waves: list[Waves]) -> None:
    header = HEADER.format(
        version=triton.__version__, digest=source_digest(), waves=table(WAVES_HEADING, [row.line() for row in waves])
    )
    names = " | ".join(field.name.replace("_", " ") for field in dataclasses.fields(Resources))
    TABLE.write_text(header + table(names, [row.line() for row in rows]) + "\n")


def source_digest() -> str:
    """Hash of all sources that determine the table, except for the compiler's version."""
    tools = [
        pathlib.Path(__file__).with_name(name) for name in ("assembly.py", "compile_only.py", "kernel_launches.py")
    ]
    sources = [*sorted(TABLE.parent.glob("*.py")), configs.PATH, *tools]
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
    """Context that compiles launches instead of running them; yields a list of (config, compiled kernel, grid)."""
    built, looked_up = [], []
    run, launch_options, active = JITFunction.run, configs.Config.launch_options, driver._active

    def compile_(self, *args, grid, warmup, **kwargs):
        built.append((looked_up[-1], run(self, *args, grid=grid, warmup=True, **kwargs), grid))

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


def cached_facts(kernel, target: str) -> dict[str, int]:
    """`assembly_facts`, cached beside the binary in Triton's cache, whose folder is a hash of sources and options."""
    cache = get_cache_manager(kernel.hash)
    # another version of assembly.py may find other facts
    name = f"facts-{hashlib.sha256(pathlib.Path(assembly.__file__).read_bytes()).hexdigest()[:16]}.json"
    path = cache.get_file(name)
    if path is None:
        path = cache.put(json.dumps(assembly.assembly_facts(kernel, target)), name, binary=False)
    return json.loads(pathlib.Path(path).read_text())


def worst(name: str, first, second):
    """The worse of two launches' facts."""
    if name == "load_bytes":
        return max(first, second, key=lambda text: (text.count("-"), text))
    return min(first, second) if name in ("matrix_instructions", "in_flight") else max(first, second)


def resources(target: str, sample: bool = False) -> list[Resources]:
    rows, compiled = {}, set()
    # fp16, tf32 and odd sizes only for the GPU that waves are counted for
    for variant, launch in launches(sample, variants=target == WAVES_TARGET):
        with compile_only(TARGETS[target]) as built:
            launch()
        for config, kernel, _ in built:
            # list a kernel that does not depend on the variant only once
            if (kernel.hash, config.shape_class) in compiled:
                continue
            compiled.add((kernel.hash, config.shape_class))
            facts = cached_facts(kernel, target)
            key = (config.kernel, config.shape_class, variant, target, config.target)
            if key in rows:
                facts = {name: worst(name, value, getattr(rows[key], name)) for name, value in facts.items()}
            rows[key] = Resources(*key, **facts)
    return list(rows.values())


def waves() -> list[Waves]:
    """All launches at the named shapes, on a GPU of `WAVES_TARGET`."""
    rows = []
    for shape, launch in named_launches():
        with compile_only(TARGETS[WAVES_TARGET]) as built:
            launch()
        for config, kernel, grid in built:
            facts = cached_facts(kernel, WAVES_TARGET)
            resident = assembly.Multiprocessor().resident(
                facts["registers"], facts["shared_bytes"], kernel.metadata.num_warps
            )
            rows.append(Waves(config.kernel, config.shape_class, shape, config.target, math.prod(grid), *resident))
    return list(dict.fromkeys(rows))


def binaries(shape: str, windows: int) -> set[str]:
    """Function, types and specialised arguments of all that a step of so many windows would compile; nothing is."""
    found = set()

    def keep(*, key, fn, **_):
        found.add(f"{fn.module} {fn.name} {key}")
        return True  # which ends it there

    with mock.patch.object(triton.knobs.runtime, "jit_cache_hook", keep):
        for _, launch in named_launches({shape: (windows, *NAMED[shape][1:])}):
            with compile_only(TARGETS[WAVES_TARGET]):
                launch()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--sample", action="store_true", help="only the first shape class of every kernel")
    parser.add_argument("--waves", action="store_true", help="only the waves at the named shapes")
    parser.add_argument("--write", action="store_true", help="write kernels/RESOURCES.md instead of printing")
    args = parser.parse_args()
    if args.waves:
        print(*(row.line() for row in waves()), sep="\n")
        return
    rows = [row for target in args.targets for row in resources(target, args.sample)]
    if args.write:
        write_table(rows, waves())
    else:
        print(*(row.line() for row in rows), sep="\n")


if __name__ == "__main__":
    main()
