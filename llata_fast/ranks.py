"""What one rank does for all, and how ranks leave the process group; in a single process, plain calls.

A process must destroy its process group before it ends. A gloo thread drops the last reference to a collective's
tensors some time after the main thread has the result; if the interpreter is shutting down by then, taking the GIL ends
the thread inside a function that must not throw, and `terminate` aborts the process (exit code 250 under DeepSpeed's
launcher). torchrun on another node then waits five minutes for it. So every command that may join ranks runs inside
`leaving_in_order`.
"""

import faulthandler
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import distributed

from .errors import InputError
from .lifelines import Lifelines, several_started

T = TypeVar("T")

_LEAVE_SECONDS = 60

_open = 0
_lifelines: Lifelines | None = None
_cpu_group: distributed.ProcessGroup | None = None


class Stopped(SystemExit):
    """The program ends early on request, with exit code 0, after it has said so."""

    def __init__(self, together: bool):
        super().__init__(0)
        self.together = together
        """Whether every rank ends at this same point."""


@contextmanager
def leaving_in_order() -> Iterator[None]:
    """Leave the process group that the body joins: together on success, at once on an error.

    When nested, the outermost one leaves. A rank that fails because another one ended exits with code 1 and without a
    traceback, as stderr already names the rank that died.
    """
    global _open, _lifelines
    _open += 1
    status: int | None = 1
    try:
        if _open == 1 and several_started():
            _lifelines = Lifelines()
        yield
        status = None
    except Stopped as stop:
        status = None if stop.together else 0
        raise
    except SystemExit as end:
        # a SystemExit without a code, as from --help
        status = 1 if end.code else 0
        raise
    except Exception as error:
        if _lifelines is not None and not isinstance(error, InputError) and _lifelines.lost.wait(2):
            sys.exit(1)
        raise
    finally:
        _open -= 1
        if _open == 0 and (_lifelines is not None or _joined()):
            _leave(status)


def _leave(early: int | None):
    """Destroy the process group: together with the other ranks, or alone before an early end with that exit code."""
    global _lifelines, _cpu_group
    lifelines, _lifelines, _cpu_group = _lifelines, None, None
    # a rank stuck in here must show where and end: torch does not release the GIL while it waits
    faulthandler.dump_traceback_later(_LEAVE_SECONDS, exit=True)
    if lifelines is not None:
        lifelines.leave() if early is None else lifelines.end_early(early)
    # collect whatever holds the group, such as a wrapped model: its threads end with the last reference
    gc.collect()
    if _joined():
        distributed.destroy_process_group()
    if lifelines is not None:
        lifelines.close()
    faulthandler.cancel_dump_traceback_later()


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank; every rank calls it. It does not wait for devices."""
    global _cpu_group
    if not _several_ranks():
        return flag
    if _cpu_group is None and distributed.get_backend() != "gloo":
        _cpu_group = distributed.new_group(backend="gloo")
    flags = torch.tensor(int(flag))
    distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=_cpu_group)
    return bool(flags)


def on_first_rank(compute: Callable[[], T]) -> T | None:
    """`compute()` on rank 0, None on the others, which wait for it.

    Raises:
        InputError: on every rank, if `compute` raised one.
    """
    result, problem = None, None
    if not _several_ranks() or distributed.get_rank() == 0:
        try:
            result = compute()
        except InputError as error:
            problem = str(error)
    if problem := _from_rank_0(problem):
        raise InputError(problem)
    return result


def from_first_rank(compute: Callable[[], T]) -> T:
    """The result of `compute()` on rank 0, on every rank (it must pickle); raises as `on_first_rank` does."""
    return _from_rank_0(on_first_rank(compute))


def join_ranks() -> tuple[int, int]:
    """This process's rank and the number of ranks; joins them over gloo if a launcher started several."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return (distributed.get_rank(), count) if count > 1 else (0, 1)


def on_rank_0(value: T) -> list[T] | None:
    """On rank 0, every rank's `value` (it must pickle) in rank order; None on the others."""
    if not _several_ranks():
        return [value]
    first = distributed.get_rank() == 0
    gathered: list = [None] * distributed.get_world_size()
    distributed.gather_object(value, gathered if first else None)
    return gathered if first else None


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _several_ranks() -> bool:
    return _joined() and distributed.get_world_size() > 1


def _from_rank_0(value):
    if not _several_ranks():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
