"""What one rank does for all of them, and how all of them leave; with a single process, plain calls.

A process that ends with its process group alive leaves threads behind that may abort it (exit code 250 under a
launcher), and may take the store along that the other ranks still talk to. Hence every command that may join ranks
does so inside `leaving_in_order`.
"""

import faulthandler
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import distributed

from .errors import InputError
from .lifelines import Lifelines

T = TypeVar("T")

_LEAVE_SECONDS = 90

_open = 0
_lifelines: Lifelines | None = None


@contextmanager
def leaving_in_order() -> Iterator[None]:
    """Whatever joins ranks inside leaves them at the end, on success together, on error at once.

    Nested, the outermost one leaves. A rank that fails because another one has died ends with 1 and without a
    traceback: who died is on stderr already.
    """
    global _open
    _open += 1
    failed = True
    try:
        yield
        failed = False
    except Exception as error:
        if _lifelines is not None and not isinstance(error, InputError) and _lifelines.lost.wait(2):
            sys.exit(1)
        raise
    finally:
        _open -= 1
        if _open == 0 and distributed.is_available() and distributed.is_initialized():
            _leave(failed)


def _leave(failed: bool):
    global _lifelines
    lifelines, _lifelines = _lifelines, None
    # a rank that cannot leave shows where it waits, and ends: torch waits without giving the interpreter back
    faulthandler.dump_traceback_later(_LEAVE_SECONDS, exit=True)
    if lifelines is not None:
        lifelines.fail() if failed else lifelines.leave()
    # what holds the group, a model wrapped for it above all, goes first: its threads end with the last reference
    gc.collect()
    distributed.destroy_process_group()
    if lifelines is not None:
        lifelines.close()
    faulthandler.cancel_dump_traceback_later()


def on_first_rank(compute: Callable[[], T]) -> T | None:
    """`compute()` on rank 0, None on the others, which wait for it.

    Raises:
        InputError: on every rank, where `compute` raised one.
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
    """Rank 0's `compute()` on every rank (it must pickle); raises as `on_first_rank` does."""
    return _from_rank_0(on_first_rank(compute))


def _several_ranks() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _from_rank_0(value):
    global _lifelines
    if not _several_ranks():
        return value
    if _open and _lifelines is None:
        # the first thing that they do together
        _lifelines = Lifelines()
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
