"""Tables and arrays as the panel that a run forecasts."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from ..data import TimeSeries
from ..data.long_tables import quoted
from ..data.panel import Panel
from ..data.steps import parse_step
from ..errors import InputError
from ..preprocessor import Preprocessor


def panel_for_run(df: Any, info: Preprocessor, columns: dict[str, Any]) -> Panel:
    """The panel in `df` (a long table, a series or a panel), by default with the run's columns.

    Raises:
        InputError: its targets, covariates or step differ from the run's.
    """
    if isinstance(df, TimeSeries):
        df = Panel.of_series(df)
    if info.any_series:
        return df if isinstance(df, Panel) else Panel.from_df(df, **columns)
    if not isinstance(df, Panel):
        df = Panel.from_df(df, **_columns_of(df, info) | info.covariate_roles | columns)
    panel = _with_targets(df, info.columns)
    if (encoding := info.encoding) is not None:
        encoding.check(panel)
    _check_steps(panel, info)
    return panel


def _columns_of(df: Any, info: Preprocessor) -> dict[str, Any]:
    """The run's id, timestamp and target columns that `df` has."""
    if info.id_column is None or not hasattr(df, "columns"):
        return {}
    target = info.columns if len(info.columns) > 1 else info.columns[0]
    own: dict[str, str | list[str]] = {
        "id_column": info.id_column,
        "timestamp_column": info.date_column,
        "target": target,
    }
    # a `datasets.Dataset` calls them column_names
    there = set(df.columns if isinstance(df, pd.DataFrame) else getattr(df, "column_names", df.columns))
    return {name: value for name, value in own.items() if set([value] if isinstance(value, str) else value) <= there}


def _with_targets(panel: Panel, expected: Sequence[str]) -> Panel:
    if set(expected) <= set(panel.targets) and list(panel.targets) != list(expected):
        return panel.with_targets(expected)
    if len(panel.targets) != len(expected):
        raise InputError(
            f"{panel.name} has {len(panel.targets)} targets ({', '.join(panel.targets)}), but the run has "
            f"{len(expected)} ({', '.join(expected)})"
        )
    return panel


def _check_steps(panel: Panel, info: Preprocessor):
    known = [parse_step(text) for text in (info.frequency, *info.other_frequencies)]
    for number, step in enumerate(panel.steps):
        if (panel.step_of == number).any() and not any(step.same_length(other) for other in known):
            item = int((panel.step_of == number).argmax())
            raise InputError(
                f"{panel.name}, item {quoted(panel.ids[item])}, column {panel.timestamp_column!r}: the step is "
                f"{step.alias(panel.origins[item])}, but the run was trained on {info.frequency}"
            )


def panel_of_arrays(arrays: Sequence[Any], info: Preprocessor) -> Panel:
    """Arrays as items with timestamps 0, 1, ..."""
    values: list[np.ndarray] = []
    targets = tuple(info.columns)
    if not isinstance(arrays, Iterable):
        raise InputError(f"predict takes a list of arrays, got {type(arrays).__name__}")
    for place, array in enumerate(arrays):
        item = _numbers(array, place)
        item = item[:, None] if item.ndim == 1 else item
        if not targets and item.ndim == 2:
            # a pre-trained model takes any number of channels
            targets = tuple(str(channel) for channel in range(item.shape[1]))
        if item.ndim != 2 or not len(item) or not targets or item.shape[1] != len(targets):
            raise InputError(
                f"array {place} must be [steps] or [steps, {len(targets) or 'C'}] with at least one step, got "
                f"{list(np.shape(array))}"
            )
        if np.isinf(item).any():
            raise InputError(f"array {place}, row {np.argwhere(np.isinf(item))[0][0]}: the value is infinite")
        values.append(item)
    if not values:
        raise InputError("no array to forecast")
    lengths = [len(item) for item in values]
    return Panel(
        name="arrays",
        ids=pd.RangeIndex(len(values)),
        offsets=np.concatenate(([0], np.cumsum(lengths))),
        values=np.concatenate(values),
        origins=np.zeros(len(values), dtype=np.int64),
        steps=(parse_step("1"),),
        step_of=np.zeros(len(values), dtype=np.int64),
        targets=targets,
        id_column="item_id",
        timestamp_column="timestamp",
        times=pd.Series([], dtype=np.int64),
    )


def _numbers(array: Any, place: int) -> np.ndarray:
    """An array of any kind as float64, NaN where masked."""
    try:
        if isinstance(array, Tensor):
            # numpy has no bf16
            array = array.detach().cpu().double().numpy()
        if np.iscomplexobj(array):
            raise TypeError("complex")
        return np.ma.filled(np.ma.asarray(array, dtype=np.float64), np.nan)
    except (TypeError, ValueError, NotImplementedError):  # the last by tensors on the meta device
        raise InputError(f"array {place} does not hold numbers") from None
