"""What one rank does for all of them; with a single process, plain calls."""

from collections.abc import Callable
from typing import TypeVar

from torch import distributed

from .errors import InputError

T = TypeVar("T")


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
    if not _several_ranks():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
