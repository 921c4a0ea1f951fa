"""A file that is damaged, and who reads and judges it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Case:
    """A file, or a folder with one, and who reads it."""

    name: str
    path: Path
    """What is damaged."""
    read: Callable[[], Any]
    is_right: Callable[[Any], bool]
    structure: Any = None
    """What a JSON or YAML file says: then half of the damage is to its values."""
