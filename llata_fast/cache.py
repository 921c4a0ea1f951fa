"""Where what can be had again is kept between runs."""

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """`$XDG_CACHE_HOME/llata_fast/<kind>`, by default below `~/.cache`; it need not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "llata_fast", kind)
