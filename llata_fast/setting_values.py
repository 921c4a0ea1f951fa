"""Whether a setting's value has the right type and lies in its range, by the field's metadata (`settings.py`)."""

import math
import os
from collections.abc import Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from .errors import InputError


def check_values(settings: Any, kind: type | None = None):
    """Raise InputError for the first field of `kind` whose value has the wrong type or is out of range, by name.

    `~` in paths is expanded: no shell does so for a path in a YAML file.
    """
    kind = kind or type(settings)
    hints = get_type_hints(kind)
    for item in fields(kind):
        name, value = item.name, getattr(settings, item.name)
        if isinstance(value, str) and (value == "~" or value.startswith("~/")):
            value = os.path.expanduser(value)
            setattr(settings, name, value)
        if value is None and type(None) in get_args(hints[name]):
            continue
        if choices := item.metadata["choices"]:
            if value not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        elif not _has_type(value, hints[name]):
            raise InputError(f"{name} must be {_in_words(hints[name])}, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} must be a finite number, got {value}")
        low, high, below = (item.metadata[limit] for limit in ("at_least", "at_most", "below"))
        too_low = low is not None and value < low
        too_high = (high is not None and value > high) or (below is not None and value >= below)
        if too_low or too_high:
            raise InputError(f"{name} must be {_interval(low, high, below)}, got {value}")


def _has_type(value: Any, hint: Any) -> bool:
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for kind in kinds:
        if get_origin(kind) is list:
            (entry_kind,) = get_args(kind)
            fits = isinstance(value, (list, tuple)) and all(_has_type(entry, entry_kind) for entry in value)
        elif kind in (int, float):
            # an int counts as a number, a bool does not
            fits = isinstance(value, (kind, int)) and not isinstance(value, bool)
        else:
            fits = isinstance(value, kind)
        if fits:
            return True
    return False


def check_quantile_levels(levels: Sequence[float]):
    """Raise InputError unless the levels lie between 0 and 1 and increase."""
    if not levels:
        raise InputError("quantile_levels is empty: give levels between 0 and 1, or leave it out")
    if wrong := [level for level in levels if not 0 < level < 1]:
        raise InputError(f"quantile_levels must lie between 0 and 1, got {wrong[0]:g}")
    if any(low >= high for low, high in zip(levels, levels[1:], strict=False)):
        raise InputError(f"quantile_levels must increase, got {' '.join(f'{level:g}' for level in levels)}")


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}


def _in_words(hint: Any) -> str:
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return " or ".join(
        _WORDS.get(kind, "a list of numbers" if kind == list[float] else "a list of names")
        for kind in kinds
        if kind is not type(None)
    )


def _interval(low: float | None, high: float | None, below: float | None) -> str:
    if high is None and below is None:
        return f"at least {low}"
    return f"in [{low}, {high}]" if below is None else f"in [{low}, {below})"
