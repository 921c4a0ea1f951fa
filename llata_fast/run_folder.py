"""The folder of a run: what lies in it, by name, and how that is written and read.

    run.yaml                  every setting, a valid --config
    config.json               the model's own settings
    model.safetensors         what was trained
    preprocessor_config.json  the series' columns, dates and units
    calibration.npz           what quantiles are calibrated by
    mixture.json              of a pre-training, what its corpora are known by
    manifest.json             sizes and checksums of what a forecast needs, written last: the run can forecast
    metrics.json              scores, costs and speed (docs in `write_metrics`)
    forecast.png              a forecast from the middle of the test split
    log.jsonl                 what the Trainer logged: losses, speed and validation by step, a JSON object a line
    checkpoint-<step>/        what training resumes from, with a manifest of its own
    nonfinite/                the step at which a training left the finite numbers, for `llata-fast replay`
    .lock                     held while a process trains here

Imports neither torch nor transformers.
"""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from .durable import (
    MANIFEST,
    delete_folder,
    delete_partials,
    find_damage,
    read_manifest,
    write_manifest,
    write_text,
)
from .errors import InputError, in_one_line

if TYPE_CHECKING:
    from .data import StandardScaler, TimeSeries
    from .data.covariate_encoding import CovariateEncoding

SETTINGS, CONFIG, WEIGHTS = "run.yaml", "config.json", "model.safetensors"
PREPROCESSOR, METRICS, PICTURE = "preprocessor_config.json", "metrics.json", "forecast.png"
CALIBRATION = "calibration.npz"
LOG = "log.jsonl"
MIXTURE = "mixture.json"
METRICS_VERSION = 2
NONFINITE = "nonfinite"
TRAINER_STATE = "trainer_state.json"
BEST_CHECKPOINT = "best_checkpoint"
"""Under what name a trainer's state holds the name of the best checkpoint so far."""
UNAVERAGED = "unaveraged.safetensors"
_LOCK = ".lock"
# of the version before, which had no manifest
_SERIES_BEFORE = "series.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# a table's columns may be many
_MOST_VALUES = 1_000_000
# locks that this file system, or this system, does not have
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@dataclass
class Preprocessor:
    """What a run knows of the series it was trained on: `preprocessor_config.json` in its folder.

    One of a pre-training names no column and no frequency: it forecasts series of any.

    Raises:
        InputError: columns that are none, or means and scales that are not one finite number a column, scales above 0.
    """

    dataset: str
    columns: list[str]
    date_column: str
    frequency: str
    seasonality: int
    mean: list[float]
    scale: list[float]
    id_column: str | None = None
    """Of a panel; a wide series has none."""
    other_frequencies: list[str] = field(default_factory=list)
    """Of a panel's items whose step is not that of most."""
    covariates: dict[str, Any] | None = None
    """How they are written for the model (`CovariateEncoding.to_dict`)."""

    def __post_init__(self):
        texts = [("dataset", self.dataset), ("date_column", self.date_column), ("frequency", self.frequency)]
        if wrong := next((name for name, value in texts if not isinstance(value, str)), None):
            raise InputError(f"{wrong} must be a text")
        if self.id_column is not None and not isinstance(self.id_column, str):
            raise InputError("id_column must be a text or null")
        if not isinstance(self.columns, list) or not all(isinstance(name, str) for name in self.columns):
            raise InputError("columns must be a list of names")
        if len(set(self.columns)) < len(self.columns):
            raise InputError("columns must be names that differ")
        others = self.other_frequencies
        if not isinstance(others, list) or not all(isinstance(name, str) for name in others):
            raise InputError("other_frequencies must be a list of texts")
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
        """Of a model that no series is the own one of."""
        return cls(dataset, columns=[], date_column="", frequency="", seasonality=1, mean=[], scale=[])

    @property
    def any_series(self) -> bool:
        """Whether it forecasts series of any columns, steps and lengths."""
        return not self.columns

    @property
    def encoding(self) -> "CovariateEncoding | None":
        """Raises InputError where the covariates are not written as they should be."""
        # it imports torch
        from .data.covariate_encoding import CovariateEncoding

        return None if self.covariates is None else CovariateEncoding.from_dict(self.covariates)

    @property
    def covariate_roles(self) -> dict[str, list[str]]:
        """Its covariates as keywords of `Panel.from_df`."""
        from .data.calendar import calendar_names

        encoding = self.encoding
        if encoding is None:
            return {}
        columns = {"known": encoding.given, "past": encoding.past, "static": encoding.static}
        roles = {f"{role}_covariates": list(names) for role, names in columns.items()}
        return roles | ({"calendar": calendar_names(encoding.calendar)} if encoding.calendar else {})

    @property
    def scaler(self) -> "StandardScaler":
        # it imports torch
        from .data import StandardScaler

        return StandardScaler.from_dict({"mean": self.mean, "scale": self.scale})


# fields that the version before did not write
_OF_PANELS = {"id_column", "other_frequencies", "covariates"}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


class Checkpoint(NamedTuple):
    """A checkpoint that `RunFolder.last_checkpoint` found."""

    path: Path
    passed_over: list[str]
    """A line for each later one that is damaged."""


class FolderInUse(InputError):
    """Another process holds the folder."""


class RunFolder:
    """A run's folder, there or to be; nothing is read or written before a method says so."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __str__(self) -> str:
        return str(self.path)

    @property
    def holds_run(self) -> bool:
        """Whether a training left anything that a new one would take away."""
        return any((self / name).exists() for name in (METRICS, WEIGHTS)) or bool(self.checkpoints())

    def check_can_be_made(self):
        """Raise InputError unless the folder exists or can be created."""
        nearest = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not nearest.is_dir():
            raise InputError(f"cannot write {self}: {nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(f"cannot write {self}: no permission for {nearest}")

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold this folder, made where it is not there; no other process can until the end, or until this one dies.

        A folder that nothing was written into goes again.

        Raises:
            FolderInUse: another process holds it.
            InputError: it cannot be made.
        """
        self.check_can_be_made()
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        lock = self._lock()
        try:
            yield
        finally:
            # before the lock is let go: whoever waits for it finds another file, or none
            with contextlib.suppress(OSError):
                (self / _LOCK).unlink()
            os.close(lock)
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()

    def _lock(self) -> int:
        import fcntl

        while True:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = os.open(self / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            except FileNotFoundError:
                # who held it has just taken the folder away
                continue
            except OSError as error:
                raise InputError(f"cannot write {self}: {error.strerror}") from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return lock
                os.close(lock)
                raise FolderInUse(f"{self}: another training is at work in this folder") from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.stat(self / _LOCK)):
                    return lock
            os.close(lock)

    def clear(self):
        """Delete what a run has left: its checkpoints would be taken for later ones of the next run here."""
        delete_partials(self.path)
        for folder in (*self.checkpoints(), *self.path.glob(NONFINITE)):
            delete_folder(folder)
        files = (MANIFEST, METRICS, CALIBRATION, PREPROCESSOR, WEIGHTS, CONFIG, PICTURE, LOG, MIXTURE, _SERIES_BEFORE)
        for name in files:
            (self / name).unlink(missing_ok=True)

    def checkpoints(self) -> list[Path]:
        """Every checkpoint's folder, the one written last at the end; behind it those without a manifest."""
        found = []
        for path in self.path.glob("checkpoint-*"):
            if (match := _CHECKPOINT.fullmatch(path.name)) and path.is_dir():
                manifest = read_manifest(path)
                found.append((manifest["written"] if manifest else math.inf, int(match[1]), path))
        return [path for *_, path in sorted(found)]

    def last_checkpoint(self) -> Checkpoint:
        """The whole checkpoint that was written last; raises InputError where there is none."""
        passed_over: list[str] = []
        for path in reversed(self.checkpoints()):
            damage = find_damage(path)
            if damage is None:
                return Checkpoint(path, passed_over)
            passed_over.append(f"{path} is passed over: {damage}")
        reason = f" ({passed_over[0].replace(' is passed over', '')})" if passed_over else ""
        raise InputError(f"{self} holds no whole checkpoint to resume from{reason}")

    def rotate(self, limit: int | None, best: str | None):
        """Delete the checkpoints written first until `limit` are left; the best and the last one stay."""
        # what has no manifest nothing can resume from
        checkpoints = sorted(self.checkpoints(), key=lambda path: read_manifest(path) is not None)
        if not limit or limit < 1 or not checkpoints:
            return
        kept = {checkpoints[-1]} | {path for path in checkpoints if path.name == best}
        spare = [path for path in checkpoints if path not in kept]
        for path in spare[: max(0, len(checkpoints) - max(limit, len(kept)))]:
            delete_folder(path)

    def keep_only(self, name: str):
        """Delete every checkpoint but one."""
        for path in self.checkpoints():
            if path.name != name:
                delete_folder(path)

    def write_settings(self, settings: dict[str, Any]):
        write_text(self / SETTINGS, yaml.safe_dump(settings, sort_keys=False))

    def read_settings(self) -> dict[str, Any]:
        """What the run was made with; raises InputError where `run.yaml` is missing, damaged or no mapping."""
        path = self / SETTINGS
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise InputError(f"cannot read the run's settings {path}: {error}") from None
        if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
            raise InputError(f"cannot read the run's settings {path}: it holds no mapping of option names to values")
        if not _has_at_most(_MOST_VALUES, settings):
            raise InputError(f"cannot read the run's settings {path}: it holds more than {_MOST_VALUES:,} values")
        return settings

    def write_mixture(self, description: list[dict[str, Any]]):
        write_text(self / MIXTURE, json.dumps(description, indent=2) + "\n")

    def check_mixture(self, description: list[dict[str, Any]]):
        """Raise InputError where the run was begun on other corpora, or on other shares of them."""
        if not (self / MIXTURE).is_file():
            return
        try:
            theirs = json.loads((self / MIXTURE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read {self / MIXTURE}: {error}") from None
        if theirs == description:
            return
        differs = [ours for ours in description if not isinstance(theirs, list) or ours not in theirs]
        what = f"not on {differs[0]['corpus']} as it is" if differs else "on other corpora, or in another order"
        raise InputError(f"{self} was begun {what}: a resumed training goes on with the mixture that it began with")

    def write_preprocessor(self, preprocessor: Preprocessor):
        write_text(self / PREPROCESSOR, json.dumps(asdict(preprocessor), indent=2) + "\n")

    def read_preprocessor(self) -> Preprocessor:
        """Raises InputError where this is no finished run, or the file is damaged; reads the version before, too."""
        path = next((self / name for name in (PREPROCESSOR, _SERIES_BEFORE) if (self / name).is_file()), None)
        if path is None:
            raise InputError(f"{self} is not the folder of a finished run: it holds no {PREPROCESSOR}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            names = {item.name for item in fields(Preprocessor)}
            if not isinstance(values, dict) or values.keys() | _OF_PANELS != names:
                raise InputError(f"it must hold {', '.join(sorted(names))} and nothing else")
            return Preprocessor(**values)
        except (OSError, ValueError, RecursionError, InputError) as error:
            raise InputError(f"{path} is damaged: {error}") from None

    def take_model(self, partial: Path):
        """Move a model's files here from the folder they were written into; the run is finished by `finish` alone.

        Scores that an earlier training has left go: they are another model's.
        """
        for name in (MANIFEST, METRICS, CALIBRATION, *self._model_files()):
            (self / name).unlink(missing_ok=True)
        for path in partial.iterdir():
            path.replace(self / path.name)
        partial.rmdir()

    def finish(self):
        """Vouch for what a forecast needs, once all of it is there."""
        calibration = [CALIBRATION] if self.calibration.is_file() else []
        write_manifest(self.path, (SETTINGS, PREPROCESSOR, *calibration, *self._model_files()))

    @property
    def calibration(self) -> Path:
        """Where the calibration lies, or would."""
        return self / CALIBRATION

    def _model_files(self) -> list[str]:
        return [path.name for pattern in (CONFIG, "model*.safetensors*") for path in sorted(self.path.glob(pattern))]

    def check_finished(self, weights: bool = True):
        """Raise InputError unless this is a finished run whose files, or but its `weights`, are those that it wrote."""
        if not (self / PREPROCESSOR).is_file() and (self / _SERIES_BEFORE).is_file():
            # nothing vouches for a run of the version before
            return
        if not (self / PREPROCESSOR).is_file():
            raise InputError(f"{self} is not the folder of a finished run: it holds no {PREPROCESSOR}")
        damage = find_damage(self.path, None if weights else (SETTINGS, PREPROCESSOR, CONFIG))
        manifest = read_manifest(self.path)
        if damage is None and manifest is not None:
            lacking = {SETTINGS, PREPROCESSOR, *self._model_files()} - manifest["files"].keys()
            damage = f"its {MANIFEST} lacks {min(lacking)}" if lacking else None
        if damage:
            raise InputError(f"{self} is damaged: {damage}; restore it, or resume or repeat the training")

    def write_metrics(self, metrics: dict[str, Any]):
        """Write `metrics.json`, null for what is not a finite number.

        {"version": 2,
         "dataset": its name,
         "scored_on": "test", or "validation" where a panel holds nothing back for one,
         "test": {"mse", "mae", "per_channel": {column: {"mse", "mae"}}}, of M4 {"smape", "mase", "owa"},
         "intervals": {"coverage_80", "interval_score_80", "wql", "mase"} of the test, of a panel the first and "wql",
         of M4 null,
         "validation": {"step", "mse", "mae", "loss"} of the weights that were kept, null where nothing validated them,
         "baselines": {name: like "test"},
         "training": {"seconds", "steps", "epochs", "loss"} (loss: the mean over all steps),
         "speed": {"windows_per_s", "tokens_per_s", "step_ms", "data_wait_ms", "peak_memory_mib", "mfu"},
         "parameters": {"trained", "frozen", "<part> trained", "<part> frozen"},
         "linear_start": {"mixture": {form: share}, "origins": {name: relative error}}, null without a linear skip,
         "learned": {"share" of it in the forecast, "mse", "mae", "start_mse", "start_mae", "seconds",
         "trained_parameters", "without_language_model": the same of a training without it, or null}, on validation
         windows; null likewise}
        """
        text = json.dumps({"version": METRICS_VERSION} | finite_or_null(metrics), indent=2, allow_nan=False)
        write_text(self / METRICS, text + "\n")

    def read_metrics(self) -> dict[str, Any]:
        """What `write_metrics` wrote; raises InputError where it is missing, damaged or of another version."""
        path = self / METRICS
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read the run's scores {path}: {error}") from None
        version = metrics.get("version") if isinstance(metrics, dict) else None
        if version != METRICS_VERSION:
            raise InputError(
                f"{path} is of version {version or 1}, this llata_fast writes version {METRICS_VERSION}: train again"
            )
        return metrics

    @contextlib.contextmanager
    def as_written(self) -> Iterator[None]:
        """Turn what settings and scores raise inside that no training has written into an InputError."""
        try:
            yield
        except (InputError, OSError):
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {in_one_line(error)}"
            raise InputError(
                f"{self}: {SETTINGS}, {PREPROCESSOR} or {METRICS} is not as a training writes it: {what}"
            ) from error

    def append_log(self, record: dict[str, Any]):
        """Append a record of training, with its "step", to the log."""
        try:
            with (self / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite_or_null(record), allow_nan=False) + "\n")
        except OSError as error:
            error.filename = error.filename or str(self / LOG)
            raise

    def read_log(self) -> list[dict[str, Any]]:
        """The log's records in order, [] where there is none; a line that a kill has cut short is left out."""
        if not (self / LOG).is_file():
            return []
        records = []
        for line in (self / LOG).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
        return records

    def cut_log(self, after_step: int):
        """Drop the records of later steps, which a resumed training makes anew."""
        if (self / LOG).is_file():
            kept = [record for record in self.read_log() if record["step"] <= after_step]
            write_text(self / LOG, "".join(json.dumps(record) + "\n" for record in kept))

    def copy_description(self, target: "RunFolder"):
        """Write settings, preprocessor and calibration into another folder, whose model is there, and finish that."""
        shutil.copy2(self / SETTINGS, target.path)
        if self.calibration.is_file():
            shutil.copy2(self.calibration, target.path)
        target.write_preprocessor(self.read_preprocessor())
        target.finish()


def _has_at_most(number: int, value: Any) -> bool:
    """Whether so many values are in `value`, those that are there many times, by YAML's aliases, counted as often."""
    left = [value]
    while left and number >= 0:
        item, number = left.pop(), number - 1
        if isinstance(item, (dict, list, tuple, set)):
            left += item.values() if isinstance(item, dict) else item
    return number >= 0


def finite_or_null(value: Any) -> Any:
    """The same JSON with null for every number that is not finite."""
    if isinstance(value, dict):
        return {str(name): finite_or_null(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numbered_folders(stem: Path, existing: bool = True) -> Iterator[RunFolder]:
    """`stem`, `stem`-2, -3 and so on: up to the first that is not there, or many."""
    for number in range(1, 10_000):
        path = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        if existing and not path.exists():
            return
        yield RunFolder(path)
