"""A file to damage, its reader, and the judge of the result."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Case:
    """A file to damage, and the functions that read it and judge the result."""

    name: str
    path: Path
    """What is damaged."""
    read: Callable[[], Any]
    is_right: Callable[[Any], bool]
    structure: Any = None
    """Parsed content of a JSON or YAML file; then half of the damage changes its values."""
    vouch: Callable[[], Any] = lambda: None
    """Called after the file is damaged, and after it is restored."""
    slow: bool = False
    """Whether reading takes several seconds."""
