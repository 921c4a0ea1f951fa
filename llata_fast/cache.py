"""Cache folders, for files that can be computed or downloaded again."""

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """`$XDG_CACHE_HOME/llata_fast/<kind>`, or below `~/.cache` if that is unset; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "llata_fast", kind)
