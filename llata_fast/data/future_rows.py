"""Known covariates for the steps to forecast, from a separate table, which must cover all of them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import InputError
from .covariates import read_column
from .dates import parse_dates
from .grids import is_local, plain
from .long_tables import as_frame, quoted
from .periods import DateError

if TYPE_CHECKING:
    from .panel import Panel

NAME = "future_df"


class FutureRows:
    """Values of known covariates, by item and step."""

    def __init__(self, panel: "Panel", table: Any, columns: Sequence[str], horizon: int):
        """Read `columns` of `table` for the `horizon` rows after every item of the panel; other rows are ignored.

        Raises:
            InputError: a column is missing or has the wrong kind, or an item is missing, starts late, ends early, or
                has a gap or a duplicate row.
        """
        self.panel, self.horizon = panel, horizon
        df = as_frame(table, NAME)
        for column in (panel.id_column, panel.timestamp_column, *columns):
            if column not in df.columns:
                what = "known_covariates" if column in columns else "as in the table of the past"
                raise InputError(f"{NAME}: no column {column!r} ({what}) among {', '.join(map(str, df.columns))}")
        rows, items, ahead = self._places(df)
        self._check(rows, items, ahead)
        self.texts: dict[str, tuple[str, ...]] = {}
        """The panel's categories, followed by those that only the future has."""
        self.values = np.full((len(panel), horizon, len(columns)), np.nan)
        """[items, horizon, columns]"""
        for place, column in enumerate(columns):
            where = lambda row: f"{NAME}, item {quoted(df[panel.id_column].iloc[row])}"
            self.values[items, ahead, place] = self._column(df[column], where)[rows]

    def _places(self, df: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the table after an item's end, their items, and their steps from 0."""
        panel = self.panel
        items = panel.ids.get_indexer(pd.Index(df[panel.id_column]))
        known = np.flatnonzero(items >= 0)
        items = items[known]
        try:
            times = df[panel.timestamp_column].iloc[known]
            moments = parse_dates(times, panel.timestamp_column, expected=panel.steps[0])
        except DateError as error:
            row = getattr(error, "row", None)
            place = "" if row is None else f", row {known[row]}"
            raise InputError(f"{NAME}, column {panel.timestamp_column!r}{place}: {error}") from None
        dates = plain(moments, all(map(is_local, panel.steps)))
        if dates.dtype.kind != panel.origins.dtype.kind and len(dates):
            raise InputError(f"{NAME}: its {panel.timestamp_column} is of another kind than the panel's")
        index = np.zeros(len(items), dtype=np.int64)
        on_grid = np.ones(len(items), dtype=bool)
        for number, step in enumerate(panel.steps):
            own = panel.step_of[items] == number
            index[own], on_grid[own] = step.index(dates[own], panel.origins[items[own]])
        ahead = index - panel.lengths[items]
        wanted = (ahead >= 0) & (ahead < self.horizon)
        if (astray := wanted & ~on_grid).any():
            row = int(astray.argmax())
            raise InputError(
                f"{self._where(items[row])}, row {known[row]}: {moments[row]} is not one of the item's dates, which "
                f"continue with {self._date(items[row], 0)}"
            )
        return known[wanted], items[wanted], ahead[wanted]

    def _check(self, rows: np.ndarray, items: np.ndarray, ahead: np.ndarray):
        panel, horizon = self.panel, self.horizon
        counts = np.zeros((len(panel), horizon), dtype=np.int64)
        np.add.at(counts, (items, ahead), 1)
        if (counts > 1).any():
            item, step = np.argwhere(counts > 1)[0]
            twice = rows[(items == item) & (ahead == step)]
            raise InputError(
                f"{self._where(item)}, row {twice[1]}: {self._date(item, step)} appears twice, first in row {twice[0]}"
            )
        lacking = np.flatnonzero((counts == 0).any(1))
        if not lacking.size:
            return
        item = lacking[0]
        there, first, last = np.flatnonzero(counts[item]), self._date(item, 0), self._date(item, horizon - 1)
        span = f"its {horizon} steps ahead are {first} to {last}"
        others = f" (and so do {lacking.size - 1} others)" if lacking.size > 1 else ""
        if not there.size:
            raise InputError(f"{NAME} lacks rows of item {quoted(panel.ids[item])}{others}: {span}")
        if there[0]:
            problem = f"starts late, at {self._date(item, there[0])}"
        elif there[-1] < horizon - 1:
            problem = f"ends early, at {self._date(item, there[-1])}"
        else:
            problem = f"has no row for {self._date(item, int((counts[item] == 0).argmax()))}"
        raise InputError(f"{self._where(item)} {problem}{others}: {span}")

    def _column(self, column: pd.Series, where: Callable[[int], str]) -> np.ndarray:
        """[rows of the table]."""
        assert self.panel.covariates is not None
        texts = self.panel.covariates.categories.get(str(column.name))
        values, found = read_column(column, where, texts)
        if found is not None:
            if texts is None:
                raise InputError(f"{NAME}, column {column.name!r}: it holds categories, but numbers in the past")
            self.texts[str(column.name)] = found
        return values

    def _where(self, item: int) -> str:
        return f"{NAME}, item {quoted(self.panel.ids[item])}"

    def _date(self, item: int, step: int) -> Any:
        place = self.panel.lengths[item] + step
        return self.panel.dates(np.array([item]), np.array([place])).iloc[0]
