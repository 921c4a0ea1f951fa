"""Facts from a kernel's assembly: registers, spills, waits, load widths, and resident programs per multiprocessor."""

import math
import pathlib
import re
import subprocess
import tempfile
from dataclasses import dataclass

import triton

# prefix of each target's matrix instructions, in PTX (HMMA, HGMMA and UTCHMMA in SASS) or GCN
MATRIX_INSTRUCTION = {"sm_80": "mma.sync.", "sm_90": "wgmma.mma_async.", "sm_100": "tcgen05.mma.", "gfx942": "v_mfma_"}

_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global [^;]*?, (0x[0-9a-f]+|\d+)(?:, [^,;]+)?;")
_LOAD = re.compile(r"ld\.global(?:\.\w+)*?(?:\.v(\d))?\.[bfus](\d+)")
_WAIT = re.compile(r"cp\.async\.wait_group\s+(\d+)")
_LABEL = re.compile(r"^\$(L__BB\d+_\d+):")
_BRANCH = re.compile(r"\bbra(?:\.uni)?\s+\$(L__BB\d+_\d+)")


@dataclass(frozen=True)
class Multiprocessor:
    """Resources that the programs on one multiprocessor share."""

    registers: int = 65536
    shared_bytes: int = 228 * 1024
    threads: int = 2048
    programs: int = 32
    reserved_bytes: int = 1024
    """Bytes of shared memory reserved for every program."""

    def resident(self, registers: int, shared_bytes: int, num_warps: int) -> tuple[int, str]:
        """Number of programs that fit at once, and the resource that limits it."""
        # registers are allocated to a warp in units of 256
        warp_registers = math.ceil(registers * 32 / 256) * 256
        limits = {
            "registers": self.registers // (warp_registers * num_warps),
            "shared memory": self.shared_bytes // (shared_bytes + self.reserved_bytes),
            "threads": self.threads // (32 * num_warps),
            "programs": self.programs,
        }
        limit = min(limits, key=lambda name: limits[name])
        return limits[limit], limit


def resource_usage(cubin: bytes) -> str:
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.check_output([tool, "--dump-resource-usage", file.name], text=True)


def assembly_facts(kernel, target: str) -> dict[str, int | str]:
    if target.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        field = lambda name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1])
        registers = field("vgpr_count")
        # private memory is one lane's stack, that is spills, like STACK below
        spill_bytes = field("private_segment_fixed_size")
        loop = {"waits": "-", "in_flight": "-", "load_bytes": "-"}
    else:
        text = kernel.asm["ptx"]
        usage = resource_usage(kernel.asm["cubin"])
        registers, spill_bytes = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
        loop = loop_facts(text, MATRIX_INSTRUCTION[target])
    return {
        "registers": registers,
        "spill_bytes": spill_bytes,
        "shared_bytes": kernel.metadata.shared,
        "matrix_instructions": text.count(MATRIX_INSTRUCTION[target]),
        **loop,
    }


def loop_facts(ptx: str, matrix_instruction: str) -> dict[str, str]:
    """Facts on loops that copy to shared memory and feed matrix instructions from it.

    waits: number of instructions that wait for copies or tensor cores. in_flight: the smallest number of groups of
    copies that a wait leaves in flight; 0 means that it waits for the copy issued last. load_bytes: narrowest to widest
    load from global memory by a thread in the whole kernel. "-" means none.
    """
    lines = ptx.splitlines()
    loops = [lines[start:end] for start, end in _innermost(lines)]
    piped = [loop for loop in loops if any("cp.async.c" in line for line in loop)]
    piped = [loop for loop in piped if any(matrix_instruction in line for line in loop)]
    text = "\n".join(line for loop in piped for line in loop)
    left = [int(number) for number in _WAIT.findall(text)]
    waits = len(left) + text.count("wgmma.wait_group")
    widths = [int(size, 0) for size in _COPY.findall(ptx)]
    widths += [int(count or 1) * int(bits) // 8 for count, bits in _LOAD.findall(ptx)]
    narrow, wide = (min(widths), max(widths)) if widths else ("-", "-")
    return {
        "waits": str(waits) if piped else "-",
        "in_flight": str(min(left)) if left else "-",
        "load_bytes": str(wide) if narrow == wide else f"{narrow}-{wide}",
    }


def _innermost(lines: list[str]) -> list[tuple[int, int]]:
    """First and last line of every innermost loop."""
    labels = {match[1]: number for number, line in enumerate(lines) if (match := _LABEL.match(line))}
    loops = []
    for number, line in enumerate(lines):
        start = labels.get(match[1], number) if (match := _BRANCH.search(line)) else number
        if start < number:
            loops.append((start, number))
    return [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
