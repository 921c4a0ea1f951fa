"""What is a hub id, and how long to wait for the hub."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ANSWER_SECONDS = 10.0
"""Time limit for asking whether the hub has a file: huggingface_hub itself retries for half a minute."""
KERNEL_SECONDS = 15.0
"""Time limit for downloading a kernel that is only worth trying."""


def is_hub_id(source: str) -> bool:
    """Whether `source` can only mean a hub id (owner/name), not a path; reads no network."""
    path = source.startswith((".", "/", "~")) or ":" in source or Path(source).exists()
    return source.count("/") == 1 and not path


def within(seconds: float, call: Callable[[], T]) -> T:
    """`call()`, abandoned with a TimeoutError after `seconds`.

    It runs in a thread, as HTTP timeouts do not cover the name lookup.
    """
    answers: queue.Queue[tuple[T | None, Exception | None]] = queue.Queue()

    def work():
        try:
            answers.put((call(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # a result, as there is no error
