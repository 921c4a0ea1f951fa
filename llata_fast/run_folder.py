"""The folder of a run: its files by name, and how they are written and read.

    run.yaml                  every setting, a valid --config
    config.json               the model's own settings
    model.safetensors         what was trained
    preprocessor_config.json  the series' columns, dates and units
    calibration.npz           the calibration of quantiles
    mixture.json              the corpora of a pre-training, with what identifies each
    manifest.json             sizes and checksums of the files that a forecast needs, written last: the run can forecast
    metrics.json              scores, costs and speed (documented in `write_metrics`)
    forecast.png              a forecast from the middle of the test split
    log.jsonl                 the Trainer's log: losses, speed and validation scores by step, one JSON object per line
    checkpoint-<step>/        what training resumes from, with its own manifest
    nonfinite/                a step whose loss or gradient was not finite, for `llata-fast replay`
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
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

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
from .preprocessor import Preprocessor

SETTINGS, CONFIG, WEIGHTS = "run.yaml", "config.json", "model.safetensors"
PREPROCESSOR, METRICS, PICTURE = "preprocessor_config.json", "metrics.json", "forecast.png"
CALIBRATION = "calibration.npz"
LOG = "log.jsonl"
MIXTURE = "mixture.json"
METRICS_VERSION = 2
NONFINITE = "nonfinite"
TRAINER_STATE = "trainer_state.json"
BEST_CHECKPOINT = "best_checkpoint"
"""The key of a trainer's state that names the best checkpoint so far."""
UNAVERAGED = "unaveraged.safetensors"
_LOCK = ".lock"
# the preprocessor's file in an older version, which had no manifest
_SERIES_BEFORE = "series.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# a table's columns may be many
_MOST_VALUES = 1_000_000
# locks that this file system, or this system, does not have
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


# fields that an older version did not write
_OF_PANELS = {"id_column", "other_frequencies", "covariates"}


class Checkpoint(NamedTuple):
    """The checkpoint that `RunFolder.last_checkpoint` found."""

    path: Path
    passed_over: list[str]
    """One line for each later checkpoint that is damaged."""


class FolderInUse(InputError):
    """Another process holds the folder."""


class RunFolder:
    """A run's folder, existing or not; creating an instance reads and writes nothing."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __str__(self) -> str:
        return str(self.path)

    @property
    def holds_run(self) -> bool:
        """Whether the folder holds anything of a training that a new one would overwrite."""
        return any((self / name).exists() for name in (METRICS, WEIGHTS)) or bool(self.checkpoints())

    def check_can_be_made(self):
        """Raise InputError unless the folder exists or can be created."""
        nearest = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not nearest.is_dir():
            raise InputError(f"cannot write {self}: {nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(f"cannot write {self}: no permission to write into {nearest}")

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Create the folder if needed and lock it until the end of the block, or until this process dies.

        A folder that stays empty is removed.

        Raises:
            FolderInUse: another process holds it.
            InputError: it cannot be created.
        """
        self.check_can_be_made()
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        lock = self._lock()
        try:
            yield
        finally:
            # before the lock is released: a process waiting for it then finds another file, or none
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
                # the previous holder has just removed the folder
                continue
            except OSError as error:
                raise InputError(f"cannot write {self}: {error.strerror}") from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return lock
                os.close(lock)
                raise FolderInUse(f"{self} is in use by another training: wait, or choose another folder") from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.stat(self / _LOCK)):
                    return lock
            os.close(lock)

    def clear(self):
        """Delete everything that a run left here: the next run would resume from its checkpoints."""
        delete_partials(self.path)
        for folder in (*self.checkpoints(), *self.path.glob(NONFINITE)):
            delete_folder(folder)
        files = (MANIFEST, METRICS, CALIBRATION, PREPROCESSOR, WEIGHTS, CONFIG, PICTURE, LOG, MIXTURE, _SERIES_BEFORE)
        for name in files:
            (self / name).unlink(missing_ok=True)

    def checkpoints(self) -> list[Path]:
        """Folders of all checkpoints in the order of writing; those without a manifest come first."""
        found = []
        for path in self.path.glob("checkpoint-*"):
            if (match := _CHECKPOINT.fullmatch(path.name)) and path.is_dir():
                manifest = read_manifest(path)
                found.append((manifest["written"] if manifest else math.inf, int(match[1]), path))
        return [path for *_, path in sorted(found)]

    def last_checkpoint(self) -> Checkpoint:
        """The last complete checkpoint; raises InputError if there is none."""
        passed_over: list[str] = []
        for path in reversed(self.checkpoints()):
            damage = find_damage(path)
            if damage is None:
                return Checkpoint(path, passed_over)
            passed_over.append(f"{path} is skipped: {damage}")
        reason = f" ({passed_over[0].replace(' is skipped', '')})" if passed_over else ""
        raise InputError(f"{self} holds no complete checkpoint to resume from{reason}")

    def rotate(self, limit: int | None, best: str | None):
        """Delete the oldest checkpoints until `limit` are left; the best and the last one always stay."""
        # checkpoints without a manifest go first, as none can be resumed from
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
        """The run's settings; raises InputError if `run.yaml` is missing, damaged or not a mapping."""
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
        """Raise InputError if the run was started on other corpora, or on other shares of them."""
        if not (self / MIXTURE).is_file():
            return
        try:
            theirs = json.loads((self / MIXTURE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read {self / MIXTURE}: {error}") from None
        if theirs == description:
            return
        differs = [ours for ours in description if not isinstance(theirs, list) or ours not in theirs]
        what = f"on another state of {differs[0]['corpus']}" if differs else "on other corpora, or in another order"
        raise InputError(f"{self} was started {what}: a resumed training must use the mixture that it started with")

    def write_preprocessor(self, preprocessor: Preprocessor):
        write_text(self / PREPROCESSOR, json.dumps(asdict(preprocessor), indent=2) + "\n")

    def read_preprocessor(self) -> Preprocessor:
        """Raises InputError if this is not a finished run or the file is damaged; also reads an older version's."""
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
        """Move a model's files here from the folder they were written to; only `finish` completes the run.

        Scores of an earlier training are deleted, as they belong to another model.
        """
        for name in (MANIFEST, METRICS, CALIBRATION, *self._model_files()):
            (self / name).unlink(missing_ok=True)
        for path in partial.iterdir():
            path.replace(self / path.name)
        partial.rmdir()

    def finish(self):
        """Write the manifest, once every file that a forecast needs is there."""
        calibration = [CALIBRATION] if self.calibration.is_file() else []
        write_manifest(self.path, (SETTINGS, PREPROCESSOR, *calibration, *self._model_files()))

    @property
    def calibration(self) -> Path:
        """Path of the calibration file, whether it exists or not."""
        return self / CALIBRATION

    def _model_files(self) -> list[str]:
        return [path.name for pattern in (CONFIG, "model*.safetensors*") for path in sorted(self.path.glob(pattern))]

    def check_finished(self, weights: bool = True):
        """Raise InputError unless this is a finished run with undamaged files; `weights=False` skips the weights."""
        if not (self / PREPROCESSOR).is_file() and (self / _SERIES_BEFORE).is_file():
            # an older version's runs have no manifest
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
        """Write `metrics.json`, with null for numbers that are not finite.

        {"version": 2,
         "dataset": its name,
         "scored_on": "test", or "validation" for a panel without a test split,
         "test": {"mse", "mae", "per_channel": {column: {"mse", "mae"}}}; for M4 {"smape", "mase", "owa"}; for corpora
         {"relative_mase", "relative_wql", "per_set": {dataset: {"windows", "mase", "wql", "naive_mase", "naive_wql"}}},
         "intervals": {"coverage_80", "interval_score_80", "wql", "mase"} on the test split; for a panel the first and
         "wql"; for M4 and corpora null,
         "validation": {"step", "mse", "mae", "loss"} of the kept weights, null if nothing validated them,
         "baselines": {name: like "test", without "per_set"},
         "training": {"seconds", "steps", "epochs", "loss"} (loss: the mean over all steps),
         "speed": {"windows_per_s", "tokens_per_s", "step_ms", "data_wait_ms", "peak_memory_mib", "mfu"},
         "parameters": {"trained", "frozen", "<part> trained", "<part> frozen"},
         "linear_start": {"mixture": {form: share}, "origins": {name: relative error}}, null without a linear skip,
         "learned": {"share" of the learned part in the forecast, "mse", "mae", "start_mse", "start_mae", "seconds",
         "trained_parameters", "without_language_model": the same for a training without it, or null}, on validation
         windows; null without a linear skip}
        """
        text = json.dumps({"version": METRICS_VERSION} | finite_or_null(metrics), indent=2, allow_nan=False)
        write_text(self / METRICS, text + "\n")

    def read_metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`; raises InputError if it is missing, damaged or of another version."""
        path = self / METRICS
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read the run's scores {path}: {error}") from None
        version = metrics.get("version") if isinstance(metrics, dict) else None
        if version != METRICS_VERSION:
            raise InputError(
                f"{path} has version {version or 1}, but this llata_fast reads version {METRICS_VERSION}: train again"
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
        """Append a training record, which includes its "step", to the log."""
        try:
            with (self / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite_or_null(record), allow_nan=False) + "\n")
        except OSError as error:
            error.filename = error.filename or str(self / LOG)
            raise

    def read_log(self) -> list[dict[str, Any]]:
        """The log's records in order, [] if there is no log; a line that a kill cut short is left out."""
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
        """Drop the records after this step; a resumed training logs those steps again."""
        if (self / LOG).is_file():
            kept = [record for record in self.read_log() if record["step"] <= after_step]
            write_text(self / LOG, "".join(json.dumps(record) + "\n" for record in kept))

    def copy_description(self, target: "RunFolder"):
        """Copy settings, preprocessor and calibration to another folder that holds the model, and finish that run."""
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
    """The same JSON value with null for every number that is not finite."""
    if isinstance(value, dict):
        return {str(name): finite_or_null(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numbered_folders(stem: Path, existing: bool = True) -> Iterator[RunFolder]:
    """`stem`, `stem`-2, -3 and so on, up to the first that does not exist, or without end if not `existing`."""
    for number in range(1, 10_000):
        path = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        if existing and not path.exists():
            return
        yield RunFolder(path)
