"""The steps of a panel's items: one shared step where it fits, otherwise the item's own."""

import warnings
from typing import NamedTuple

import numpy as np

from ..errors import InputError, InputWarning
from .grids import MAX_GRID_GROWTH, find_grid, is_local, plain
from .long_tables import LongTable, quoted
from .steps import Fixed, Step, Whole

# rows from which an item's step is inferred; the other rows are then checked against it
_ROWS_TO_LOOK_AT = 4000
# an item with its own step has at least this many rows, and no gap
_MIN_ROWS_OF_A_STEP = 4


class Placed(NamedTuple):
    """The positions of a long table's rows on their items' grids."""

    steps: tuple[Step, ...]
    step_of: np.ndarray
    """[items]"""
    origins: np.ndarray
    """[items]"""
    index: np.ndarray  # type: ignore[assignment]
    """[rows]: position in the item's grid."""
    offsets: np.ndarray
    """[items + 1]: offsets of the concatenated grids."""


def place_on_grids(table: LongTable, given: Step | None, missing: str) -> Placed:
    """Find the grid of every item; `given`, if any, is the step of all items.

    Raises InputError for an item whose dates fit no step, and for gaps unless `missing` masks them.
    """
    counts = np.bincount(table.codes, minlength=len(table.ids))
    starts = np.concatenate(([0], np.cumsum(counts)))
    local = _go_by_the_wall(table, starts, counts) if given is None else is_local(given)
    moments = plain(table.moments, local)
    if given is not None and isinstance(given, Whole) != (moments.dtype.kind == "i"):
        raise InputError(f"{table.name}: freq does not fit the kind of timestamps in {table.timestamp_column}")
    origins = moments[starts[:-1]]
    longest = int(counts.argmax())
    usual = given or _step_of(moments[starts[longest] : starts[longest + 1]]) or _fallback(table, moments, starts)
    index, on_grid = usual.index(moments, origins[table.codes])
    odd = np.zeros(len(table.ids), dtype=bool)
    np.logical_or.at(odd, table.codes[~on_grid], True)
    if given is None:
        odd |= _are_sparse(index, table.codes, counts)
    elif odd.any():
        row = int((~on_grid).argmax())
        raise InputError(f"{table.where(row)}: {table.moments[row]} is not on the grid of the given freq")

    steps, step_of = [usual], np.zeros(len(table.ids), dtype=np.int64)
    for item in np.flatnonzero(odd):
        rows = slice(starts[item], starts[item + 1])
        step = _own_step(moments[rows], steps, fits_usual=bool(on_grid[rows].all()))
        if step is None:
            raise InputError(
                f"{table.where(rows.start)}: no step fits its {counts[item]} dates, and neither does the step of most "
                f"items ({usual.alias(origins[longest])})"
            )
        if step not in steps:
            steps.append(step)
        step_of[item] = steps.index(step)
        index[rows], _ = step.index(moments[rows], origins[item])
    _warn_of_steps(table, steps, step_of, origins)
    sizes = index[starts[1:] - 1] + 1
    _check_growth(table, sizes, counts)
    if missing == "error" and (sizes > counts).any():
        _refuse_holes(table, index, starts, sizes > counts)
    return Placed(tuple(steps), step_of, origins, index, np.concatenate(([0], np.cumsum(sizes))))


def _step_of(dates: np.ndarray) -> Step | None:
    grid = find_grid(dates[:_ROWS_TO_LOOK_AT])
    return None if grid is None else grid.step


def _go_by_the_wall(table: LongTable, starts: np.ndarray, counts: np.ndarray) -> bool:
    """Whether the longest item's step follows local time; this matters only with a time zone."""
    item = int(counts.argmax())
    dates = table.moments[starts[item] : starts[item + 1]]
    if getattr(dates, "tz", None) is None:
        return True
    step = _step_of(plain(dates, True))
    return step is not None and is_local(step)


def _fallback(table: LongTable, moments: np.ndarray, starts: np.ndarray) -> Step:
    """The first step found among the items, longest first."""
    for item in np.argsort(-np.diff(starts), kind="stable")[:50]:
        dates = moments[starts[item] : starts[item + 1]]
        if (step := _step_of(dates)) is not None:
            return step
        if len(dates) == 2:
            # with two dates, their distance is the only step
            gap = int((dates[1:] - dates[:-1]).astype(np.int64)[0])
            return Whole(gap) if moments.dtype.kind == "i" else Fixed(gap)
    longest = int(np.diff(starts).argmax())
    raise InputError(
        f"{table.where(starts[longest])}: {np.diff(starts)[longest]} dates have no step in common; give it as freq"
    )


def _are_sparse(index: np.ndarray, codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Items [items] without any two adjacent rows: their step may be longer."""
    inside = codes[1:] == codes[:-1]
    nearest = np.full(len(counts), np.iinfo(np.int64).max)
    np.minimum.at(nearest, codes[1:][inside], np.diff(index)[inside])
    return (nearest > 1) & (counts >= _MIN_ROWS_OF_A_STEP)


def _own_step(dates: np.ndarray, known: list[Step], fits_usual: bool) -> Step | None:
    """An item's step: a known one, or its own; the usual one if its own would also leave gaps."""
    for step in known[1:]:
        index, on_grid = step.index(dates, dates[0])
        if on_grid.all() and (not fits_usual or index[-1] + 1 == len(dates)):
            return step
    grid = find_grid(dates)
    if fits_usual:
        return grid.step if grid is not None and not grid.holes else known[0]
    return None if grid is None else grid.step


def _warn_of_steps(table: LongTable, steps: list[Step], step_of: np.ndarray, origins: np.ndarray):
    for number, step in enumerate(steps[1:], start=1):
        items = np.flatnonzero(step_of == number)
        rest = f" and {len(items) - 1} others" if len(items) > 1 else ""
        warnings.warn(
            f"{table.name}: the step of item {quoted(table.ids[items[0]])}{rest} is {step.alias(origins[items[0]])}, "
            f"that of most items {steps[0].alias(origins[(step_of == 0).argmax()])}",
            InputWarning,
            stacklevel=5,
        )


def _check_growth(table: LongTable, sizes: np.ndarray, counts: np.ndarray):
    """Raise InputError if two stray timestamps years apart would fill the memory."""
    if sizes.sum() <= 2 * MAX_GRID_GROWTH * counts.sum() + 100_000:
        return
    item = int((sizes - counts).argmax())
    raise InputError(
        f"{table.where(int(np.searchsorted(table.codes, item)))}: its {counts[item]} dates span {sizes[item]} steps: "
        "the timestamps are irregular, or one is years away from the others"
    )


def _refuse_holes(table: LongTable, index: np.ndarray, starts: np.ndarray, have: np.ndarray):
    item = int(have.argmax())
    rows = slice(starts[item], starts[item + 1])
    row = starts[item] + int((np.diff(index[rows]) > 1).argmax())
    raise InputError(
        f"{table.where(row)}: rows are missing after {table.moments[row]}; to mask them, use missing='mask'"
    )
