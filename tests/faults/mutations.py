"""Random damage to files, from a seeded generator: to bytes, and to values in JSON and YAML."""

import copy
import json
import random
from typing import Any

# replacements that a reader does not expect
_ODD = [
    None,
    True,
    0,
    -1,
    1.5,
    10**400,
    float("nan"),
    float("inf"),
    -1e308,
    "",
    "a",
    "0",
    "\x00",
    "é" * 40,
    [],
    [None],
    [[1]],
    {},
    {"a": 1},
    {"": None},
]


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Damage of one kind, as from disks, copies and kills."""
    kinds = ["cut", "flip", "flips", "zeros", "drop", "repeat", "swap", "insert", "empty", "append", "nested"]
    kind = rng.choice(kinds)
    size = len(data)
    if size < 2 or kind == "empty":
        return b""
    at = rng.randrange(size)
    end = min(size, at + rng.choice([1, 2, 16, 512, 4096]))
    if kind == "cut":
        return data[:at]
    if kind in ("flip", "flips"):
        out = bytearray(data)
        for _ in range(1 if kind == "flip" else rng.randrange(2, 40)):
            out[rng.randrange(size)] ^= 1 << rng.randrange(8)
        return bytes(out)
    if kind == "zeros":
        return data[:at] + bytes(end - at) + data[end:]
    if kind == "nested":
        # nested deeper than a recursive reader can follow
        return rng.choice([b"[", b'{"a":', b"- "]) * 9000
    if kind == "drop":
        return data[:at] + data[end:]
    if kind == "repeat":
        return data[:end] + data[at:]
    if kind == "swap":
        other = rng.randrange(size)
        low, high = sorted((at, other))
        return data[:low] + data[high:] + data[low:high]
    noise = rng.randbytes(rng.choice([1, 7, 300]))
    return data[:at] + noise + data[at:] if kind == "insert" else data + noise


def damaged_values(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one or two entries replaced, renamed, dropped or moved."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 2])):
        value = _damage(value, rng)
    return value


def _damage(root: Any, rng: random.Random) -> Any:
    places = list(_places(root))
    if not places or rng.random() < 0.03:
        return copy.deepcopy(rng.choice(_ODD))
    container, key = rng.choice(places)
    kind = rng.choice(["odd", "odd", "odd", "drop", "rename", "other", "text"])
    if kind == "odd":
        container[key] = copy.deepcopy(rng.choice(_ODD))
    elif kind == "text":
        container[key] = str(container[key])
    elif kind == "other":
        other, name = rng.choice(places)
        container[key] = copy.deepcopy(other[name])
    elif kind == "drop":
        del container[key]
    elif isinstance(container, dict):
        container[rng.choice(["", "x", f"{key}_", str(key).upper()])] = container.pop(key)
    else:
        container.insert(key, copy.deepcopy(rng.choice(_ODD)))
    return root


def _places(value: Any):
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(entries):
        yield value, key
        yield from _places(item)


def json_bytes(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()
