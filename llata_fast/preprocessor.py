"""What a run knows about the series it was trained on. Imports neither torch nor transformers."""

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from .data import StandardScaler, TimeSeries
    from .data.covariate_encoding import CovariateEncoding


@dataclass
class Preprocessor:
    """What a run knows about the series it was trained on: `preprocessor_config.json` in its folder.

    After pre-training it names no column and no frequency, as the model forecasts any series.

    Raises:
        InputError: columns are not names, or means and scales are not one finite number per column, scales above 0.
    """

    dataset: str
    columns: list[str]
    date_column: str
    frequency: str
    seasonality: int
    mean: list[float]
    scale: list[float]
    id_column: str | None = None
    """Set for a panel; None for a wide series."""
    other_frequencies: list[str] = field(default_factory=list)
    """Frequencies of a panel's items whose step differs from the majority's."""
    covariates: dict[str, Any] | None = None
    """How covariates are encoded for the model (`CovariateEncoding.to_dict`)."""

    def __post_init__(self):
        texts = [("dataset", self.dataset), ("date_column", self.date_column), ("frequency", self.frequency)]
        if wrong := next((name for name, value in texts if not isinstance(value, str)), None):
            raise InputError(f"{wrong} must be a string")
        if self.id_column is not None and not isinstance(self.id_column, str):
            raise InputError("id_column must be a string or null")
        if not isinstance(self.columns, list) or not all(isinstance(name, str) for name in self.columns):
            raise InputError("columns must be a list of names")
        if len(set(self.columns)) < len(self.columns):
            raise InputError("columns must have distinct names")
        others = self.other_frequencies
        if not isinstance(others, list) or not all(isinstance(name, str) for name in others):
            raise InputError("other_frequencies must be a list of strings")
        if not _is_number(self.seasonality) or self.seasonality != int(self.seasonality) or self.seasonality < 1:
            raise InputError("seasonality must be a whole number of at least 1")
        for name in ("mean", "scale"):
            values = getattr(self, name)
            if not isinstance(values, list) or len(values) != len(self.columns) or not all(map(_is_number, values)):
                raise InputError(f"{name} must hold a finite number for each of the {len(self.columns)} columns")
        if min(self.scale, default=1) <= 0:
            raise InputError("scale must be above 0")

    @classmethod
    def of(cls, dataset: str, series: "TimeSeries", scaler: "StandardScaler") -> "Preprocessor":
        return cls(
            dataset,
            list(series.columns),
            series.date_column,
            series.frequency,
            series.seasonality,
            mean=scaler.mean.tolist(),
            scale=scaler.scale.tolist(),
        )

    @classmethod
    def of_any_series(cls, dataset: str) -> "Preprocessor":
        """For a model that is not tied to one series."""
        return cls(dataset, columns=[], date_column="", frequency="", seasonality=1, mean=[], scale=[])

    @property
    def any_series(self) -> bool:
        """Whether it forecasts series with any columns, step and length."""
        return not self.columns

    @property
    def encoding(self) -> "CovariateEncoding | None":
        """Raises InputError if the file describes the covariates wrongly."""
        # importing it loads torch
        from .data.covariate_encoding import CovariateEncoding

        return None if self.covariates is None else CovariateEncoding.from_dict(self.covariates)

    @property
    def covariate_roles(self) -> dict[str, list[str]]:
        """The covariates as keywords of `Panel.from_df`."""
        from .data.calendar import calendar_names

        encoding = self.encoding
        if encoding is None:
            return {}
        columns = {"known": encoding.given, "past": encoding.past, "static": encoding.static}
        roles = {f"{role}_covariates": list(names) for role, names in columns.items()}
        return roles | ({"calendar": calendar_names(encoding.calendar)} if encoding.calendar else {})

    @property
    def scaler(self) -> "StandardScaler":
        # importing it loads torch
        from .data import StandardScaler

        return StandardScaler.from_dict({"mean": self.mean, "scale": self.scale})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
