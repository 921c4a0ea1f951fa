"""How much memory a table may take."""

import os
from pathlib import Path


def free_memory() -> int:
    """Bytes that can be taken without swapping; where the system does not say, all that the machine has."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
