"""The GIFT-Eval benchmark: its windows, its metrics, its result files (arXiv 2410.10393, Salesforce, Apache-2.0).

    RESULTS/all_results.csv   11 metrics for each dataset, frequency and term
    RESULTS/config.json       the leaderboard's description of the model

Windows and metrics match gluonts' `evaluate_model` as the benchmark calls it: multivariate series are split into
channels; missing labels and divisions by 0 are not counted.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..durable import write_text
from ..errors import InputError
from ..settings import DECILES
from .gluonts import Entry, QuantileForecast

LEADERBOARD_FILE, SUBMISSION_FILE = "all_results.csv", "config.json"
TERMS = {"short": 1, "medium": 10, "long": 15}
"""Multiplier of the frequency's own horizon for each term."""

_MEANS = ("MSE[mean]", "MSE[0.5]", "MAE[0.5]", "MASE[0.5]", "MAPE[0.5]", "sMAPE[0.5]", "MSIS")
_RATIOS = ("RMSE[mean]", "NRMSE[mean]", "ND[0.5]", "mean_weighted_sum_quantile_loss")
GIFT_EVAL_METRICS = (*_MEANS, *_RATIOS)
LEADERBOARD_COLUMNS = (
    "dataset",
    "model",
    *(f"eval_metrics/{name}" for name in GIFT_EVAL_METRICS),
    "domain",
    "num_variates",
)

_HORIZONS = {"M": 12, "W": 8, "D": 30, "H": 48, "T": 48, "S": 60}
_M4_HORIZONS = {"A": 6, "Q": 8, "M": 18, "W": 13, "D": 14, "H": 48}
_SEASONS = {"S": 3600, "T": 1440, "H": 24, "D": 1, "W": 1, "M": 12, "B": 5, "Q": 4}
_OLDER_NAMES = {"Y": "A", "YE": "A", "YS": "A", "AS": "A", "QE": "Q", "QS": "Q", "ME": "M", "MS": "M"}
_OLDER_NAMES |= {"h": "H", "min": "T", "s": "S"}
_TEST_SHARE, _MAX_WINDOWS = 0.1, 20
_SHORT_NAMES = {
    "saugeenday": "saugeen",
    "temperature_rain_with_missing": "temperature_rain",
    "kdd_cup_2018_with_missing": "kdd_cup_2018",
    "car_parts_with_missing": "car_parts",
}
_DOMAINS = {
    "Econ/Fin": ("m4_yearly", "m4_quarterly", "m4_monthly", "m4_weekly", "m4_daily", "m4_hourly"),
    "Energy": ("electricity", "ett1", "ett2", "solar"),
    "Healthcare": ("hospital", "covid_deaths", "us_births"),
    "Nature": ("saugeen", "temperature_rain", "kdd_cup_2018", "jena_weather"),
    "Sales": ("car_parts", "restaurant", "hierarchical_sales"),
    "Transport": ("loop_seattle", "sz_taxi", "m_dense"),
    "Web/CloudOps": (
        *("bitbrains_fast_storage", "bitbrains_rnd"),
        *("bizitobs_application", "bizitobs_service", "bizitobs_l2c"),
    ),
}
_DOMAIN_OF = {name: domain for domain, names in _DOMAINS.items() for name in names}


class QuantilePredictor(Protocol):
    """A model to score: `LlataPredictor`, or any gluonts predictor with quantiles."""

    def predict(self, dataset: Any) -> Iterator[QuantileForecast]: ...


@dataclass(frozen=True)
class GiftEvalTask:
    """A dataset at one term: the windows at the end of its series."""

    name: str
    """As in the result file: name/frequency/term."""
    domain: str
    num_variates: int
    horizon: int
    seasonality: int
    windows: int
    """Windows per series."""
    series: Sequence[Entry] = field(repr=False)
    """One channel each."""

    def inputs(self) -> Iterator[Entry]:
        """The known values before each window, series by series."""
        for entry, cut in self._cuts():
            yield {**entry, "target": entry["target"][:cut]}

    def labels(self) -> Iterator[np.ndarray]:
        """The true values [horizon] of each window, in the same order."""
        for entry, cut in self._cuts():
            yield entry["target"][cut : cut + self.horizon]

    def training(self) -> list[Entry]:
        """The series up to the first window, for training."""
        ends = self.horizon * self.windows
        return [{**entry, "target": entry["target"][:-ends]} for entry in self.series]

    def _cuts(self) -> Iterator[tuple[Entry, int]]:
        for entry in self.series:
            first = len(entry["target"]) - self.horizon * self.windows
            yield from ((entry, first + window * self.horizon) for window in range(self.windows))

    def __len__(self) -> int:
        return len(self.series) * self.windows


def read_gift_eval_task(folder: str | Path, name: str, term: str = "short") -> GiftEvalTask:
    """Read the task of a dataset, such as m4_weekly or ett1/H, from the benchmark's folder in the hub's layout.

    Raises:
        InputError: an unknown dataset, term or frequency, or a series that is too short.
    """
    if term not in TERMS:
        raise InputError(f"unknown term {term!r}: choose from {', '.join(TERMS)}")
    rows = _read_rows(Path(folder, name))
    count, unit = split_frequency(rows[0]["freq"])
    key, _, frequency = name.partition("/")
    key = _SHORT_NAMES.get(key.lower(), key.lower())
    horizons = _M4_HORIZONS if "m4" in name else _HORIZONS
    if unit not in horizons:
        raise InputError(f"{name}: the benchmark has no horizon for the frequency {rows[0]['freq']!r}")
    horizon = TERMS[term] * horizons[unit]
    season, rest = divmod(_SEASONS.get(unit, 1), count)
    lengths = [row["target"].shape[-1] for row in rows]
    windows = 1 if "m4" in name else min(max(1, math.ceil(_TEST_SHARE * min(lengths) / horizon)), _MAX_WINDOWS)
    if min(lengths) <= windows * horizon:
        raise InputError(f"{name}, {term}: a series of {min(lengths)} rows is too short for a horizon of {horizon}")
    num_variates = 1 if rows[0]["target"].ndim == 1 else len(rows[0]["target"])
    return GiftEvalTask(
        name=f"{key}/{frequency or rows[0]['freq'].partition('-')[0]}/{term}",
        domain=_DOMAIN_OF.get(key, ""),
        num_variates=num_variates,
        horizon=horizon,
        seasonality=1 if rest else season,
        windows=windows,
        series=[entry for row in rows for entry in _channels(row)],
    )


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        from datasets import load_from_disk
    except ImportError:
        raise InputError("GIFT-Eval's files need the package datasets: pip install llata-fast[gift-eval]") from None
    if not path.is_dir():
        raise InputError(f"{path}: no such dataset")
    try:
        rows = list(load_from_disk(str(path)).with_format("numpy"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not rows or not {"item_id", "start", "freq", "target"} <= rows[0].keys():
        raise InputError(f"{path} holds no series with item_id, start, freq and target")
    for row in rows:
        # a multivariate series comes as an array of arrays
        row["target"] = np.stack(list(row["target"])).astype(np.float64)
        row["freq"] = str(row["freq"])
    return rows


def _channels(row: dict[str, Any]) -> Iterator[Entry]:
    """One entry per channel of a row."""
    first = np.asarray(row["start"]).astype("datetime64[us]").item()
    start, item = pd.Period(first, freq=_period_alias(row["freq"])), str(row["item_id"])
    if row["target"].ndim == 1:
        yield {"item_id": item, "start": start, "target": row["target"]}
    else:
        for place, channel in enumerate(row["target"]):
            yield {"item_id": f"{item}_dim{place}", "start": start, "target": channel}


def split_frequency(frequency: str) -> tuple[int, str]:
    """Split a pandas frequency into its count and the benchmark's name of its unit: "15min" -> (15, "T")."""
    match = re.fullmatch(r"(\d*)([A-Za-z]+)(-.*)?", frequency)
    if match is None:
        raise InputError(f"{frequency!r} is not a pandas frequency")
    return int(match[1] or 1), _OLDER_NAMES.get(match[2], match[2])


def _period_alias(frequency: str) -> str:
    """The frequency's alias for periods, in pandas 2 and 3."""
    count, unit = split_frequency(frequency)
    names = {"A": "Y", "H": "h", "T": "min", "S": "s"}
    _, dash, anchor = frequency.partition("-")
    return f"{count if count > 1 else ''}{names.get(unit, unit)}{dash}{anchor}"


def score_gift_eval(predictor: QuantilePredictor, task: GiftEvalTask) -> dict[str, float]:
    """Compute every metric in GIFT_EVAL_METRICS over all windows of a task.

    Raises:
        InputError: a forecast has a gap, or its length is not the horizon.
    """
    total: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    forecasts = tqdm(predictor.predict(list(task.inputs())), task.name, len(task), unit=" windows")
    for entry, label, forecast in zip(task.inputs(), task.labels(), forecasts, strict=True):
        for name, values in _terms(entry, label, forecast, task.seasonality).items():
            total[name] += np.nansum(values)
            count[name] += int((~np.isnan(values)).sum())
    mean = {name: total[name] / count[name] if count[name] else math.nan for name in total}
    size = total["label"] or math.nan
    scores = {
        **{name: mean[name] for name in _MEANS},
        "RMSE[mean]": mean["MSE[mean]"] ** 0.5,
        "NRMSE[mean]": mean["MSE[mean]"] ** 0.5 / (mean["label"] or math.nan),
        "ND[0.5]": total["MAE[0.5]"] / size,
        "mean_weighted_sum_quantile_loss": np.mean([total[f"loss {level}"] for level in DECILES]) / size,
    }
    return {name: float(value) for name, value in scores.items()}


def _terms(entry: Entry, label: np.ndarray, forecast: QuantileForecast, seasonality: int) -> dict[str, np.ndarray]:
    """One window's contribution to every metric [horizon], NaN where nothing is counted."""
    points, median, low, high = (np.asarray(forecast[key]) for key in ("mean", "0.5", "0.025", "0.975"))
    quantiles = {level: np.asarray(forecast[str(level)]) for level in DECILES}
    if any(
        values.shape != label.shape or np.isnan(values).any() for values in (points, low, high, *quantiles.values())
    ):
        raise InputError(f"the forecast of {entry['item_id']} has a gap, or not the {len(label)} steps of the horizon")
    error = np.abs(label - median)
    scale = _seasonal_error(entry["target"], seasonality)
    # 0.05 of the distribution lies outside the interval on either side
    outside = np.maximum(low - label, 0) + np.maximum(label - high, 0)
    return {
        "label": np.abs(label),
        "MSE[mean]": np.square(label - points),
        "MSE[0.5]": np.square(error),
        "MAE[0.5]": error,
        "MASE[0.5]": _ratio(error, scale),
        "MAPE[0.5]": _ratio(error, np.abs(label)),
        "sMAPE[0.5]": _ratio(2 * error, np.abs(label) + np.abs(median)),
        "MSIS": _ratio(high - low + 2 / 0.05 * outside, scale),
    } | {
        f"loss {level}": 2 * np.abs((label - values) * ((values >= label) - level))
        for level, values in quantiles.items()
    }


def _ratio(values: np.ndarray, divisor: np.ndarray | float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(divisor) > 0, values / divisor, math.nan)


def _seasonal_error(values: np.ndarray, seasonality: int) -> float:
    """Mean absolute seasonal difference; in a series shorter than a season, the difference between rows."""
    period = seasonality if seasonality <= len(values) else 1
    changes = np.abs(values[period:] - values[:-period])
    return float(np.nanmean(changes)) if (~np.isnan(changes)).any() else math.nan


@dataclass(frozen=True)
class Submission:
    """The leaderboard's description of a model, `config.json`, field by field."""

    model: str
    model_type: str
    """One of MODEL_TYPES."""
    testdata_leakage: str
    """Yes if any test data was used in training, else No."""
    model_dtype: str = "float32"
    model_link: str = ""
    code_link: str = ""
    org: str = ""
    replication_code_available: str = "Yes"


MODEL_TYPES = ("statistical", "deep-learning", "agentic", "pretrained", "fine-tuned", "zero-shot")


class ResultFiles:
    """A model's result files in their own folder; existing rows are kept."""

    def __init__(self, folder: str | Path, submission: Submission):
        """Raises InputError if the folder holds another model's results."""
        self.folder, self.submission = Path(folder), submission
        self.rows: list[dict[str, Any]] = []
        if (self.folder / LEADERBOARD_FILE).is_file():
            table = pd.read_csv(self.folder / LEADERBOARD_FILE)
            if list(table) != list(LEADERBOARD_COLUMNS) or set(table["model"]) - {submission.model}:
                raise InputError(f"{self.folder / LEADERBOARD_FILE} holds the results of another model")
            self.rows = table.to_dict("records")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / SUBMISSION_FILE, json.dumps(asdict(submission), indent=4) + "\n")

    def row(self, task: GiftEvalTask) -> dict[str, Any] | None:
        """A task's row, by LEADERBOARD_COLUMNS; None if it is not there yet."""
        return next((row for row in self.rows if row["dataset"] == task.name), None)

    def add(self, task: GiftEvalTask, scores: dict[str, float]) -> dict[str, Any]:
        """Append a task's row and return it; the file is complete at any time."""
        row: dict[str, Any] = {"dataset": task.name, "model": self.submission.model}
        row |= {f"eval_metrics/{name}": scores[name] for name in GIFT_EVAL_METRICS}
        row |= {"domain": task.domain, "num_variates": task.num_variates}
        self.rows.append(row)
        write_text(
            self.folder / LEADERBOARD_FILE,
            pd.DataFrame(self.rows, columns=list(LEADERBOARD_COLUMNS)).to_csv(index=False),
        )
        return row
