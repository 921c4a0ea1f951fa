"""Counts outcomes of faults: one clear line, the right result, a traceback, a silently wrong result, or a hang."""

import contextlib
import io
import json
import signal
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llata_fast.errors import InputError

LINE, RIGHT, TRACEBACK, WRONG, HANG = "clear line", "right result", "traceback", "silently wrong", "hang"
OUTCOMES = (LINE, RIGHT, TRACEBACK, WRONG, HANG)
BAD = (TRACEBACK, WRONG, HANG)

# far longer than any of these takes, even on a busy machine
_LIMIT_S = 60


class Tally:
    """Outcomes by damaged file or value, and an example of every bad outcome."""

    def __init__(self, path: Path | None = None):
        """`path` stores the counts as JSON; counting continues from an existing file."""
        self.counts: dict[str, Counter] = defaultdict(Counter)
        self.examples: list[str] = []
        self._path, self._before, self._began = path, 0.0, time.monotonic()
        if path is not None and path.is_file():
            stored = json.loads(path.read_text())
            self.counts.update({subject: Counter(counts) for subject, counts in stored["counts"].items()})
            self.examples, self._before = stored["examples"], stored["seconds"]

    @property
    def seconds(self) -> float:
        """Seconds spent on counting so far."""
        return self._before + time.monotonic() - self._began

    def keep(self):
        if self._path is not None:
            stored = {"counts": self.counts, "examples": self.examples, "seconds": self.seconds}
            self._path.write_text(json.dumps(stored))

    def add(self, subject: str, outcome: str, example: str = ""):
        self.counts[subject][outcome] += 1
        if outcome in BAD:
            self.examples.append(f"{subject}: {outcome}: {example}")

    @property
    def bad(self) -> int:
        return sum(counts[outcome] for counts in self.counts.values() for outcome in BAD)

    def total(self) -> int:
        return sum(counts.total() for counts in self.counts.values())


class _Hang(BaseException):
    """Nothing catches it."""


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    def ring(*_):
        raise _Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, _LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome_of(call: Callable[[], Any], is_right: Callable[[Any], bool]) -> tuple[str, str]:
    """Outcome of `call()`, one of OUTCOMES, and its message."""
    said = io.StringIO()
    try:
        with _bounded(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            result = call()
    except InputError as error:
        return LINE, str(error)
    except SystemExit as end:
        line = said.getvalue().strip()
        return (LINE if end.code == 2 and "\n" not in line else TRACEBACK), f"exit {end.code}: {line}"
    except _Hang:
        return HANG, f"after {_LIMIT_S} s"
    except Exception:
        return TRACEBACK, traceback.format_exc(limit=-4)
    try:
        right = is_right(result)
    except Exception as error:
        # the reader must not accept what an independent reader refuses
        return WRONG, f"{str(result)[:300]}, which the judge refuses: {error!r}"
    return (RIGHT, "") if right else (WRONG, str(result)[:300])
