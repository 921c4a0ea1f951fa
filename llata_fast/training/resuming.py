"""The run's folder and the checkpoint to resume from, resolved before anything is built."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch.distributed import DistError

from ..backbone.fingerprint import same_weights
from ..backbone.loading import settled_source
from ..config import LlataConfig
from ..data.sources import settled_dataset
from ..durable import delete_partials, find_damage, partial_name
from ..errors import InputError, RankInputError, in_one_line
from ..ranks import from_first_rank
from ..run_folder import CONFIG, SETTINGS, FolderInUse, RunFolder, numbered_folders
from ..settings import DataSettings, ModelSettings, check_agreement
from .arguments import ForecastTrainingArguments
from .best_checkpoint import Best, find_best, read_state
from .deepspeed_state import restricted_unpickling

_LAST = ("last", "true", "True")
# errors from reading files that match their manifest but were not written by a training
_ODD = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    SafetensorError,
)


class Claim(NamedTuple):
    """A run's folder, and what it resumes from."""

    folder: RunFolder
    lines: list[str]
    """Log lines on what it resumes from."""
    best: Path | None
    """The best checkpoint so far, in the folder or beside the checkpoint to resume from."""


@contextlib.contextmanager
def claimed_run(model: ModelSettings, data: DataSettings, training: ForecastTrainingArguments) -> Iterator[Claim]:
    """The run's folder, locked until the end; the same on every rank.

    Sets `training.output_dir` (default: a new folder) and `training.resume_from_checkpoint`.

    Raises:
        InputError: the given folder already holds a run or is in use, there is no complete checkpoint to resume from,
            or the best checkpoint so far is missing.
    """
    _ = training.device  # this joins the ranks
    with contextlib.ExitStack() as held:
        # a rank that comes late would find the folder that the first one made
        claim, resume = from_first_rank(lambda: _choose(model, data, training, held))
        training.output_dir, training.resume_from_checkpoint = str(claim.folder), resume
        yield claim


def _choose(
    model: ModelSettings, data: DataSettings, training: ForecastTrainingArguments, held: contextlib.ExitStack
) -> tuple[Claim, str | None]:
    lines: list[str] = []
    best: Best | None = None
    resume = training.resume_from_checkpoint
    last = resume in _LAST
    if resume is not None and not last:
        if not resume or not Path(resume).is_dir():
            raise InputError(f"no checkpoint at {resume or 'an empty path'}")
        check_whole(Path(resume))
    folder = _folder(model, data, training)
    if folder is None:
        folder = _claim_free(_default(model, data), held)
    else:
        held.enter_context(folder.claimed())
        if folder.holds_run and not (resume or training.overwrite_output_dir):
            raise InputError(
                f"{folder} already holds a run: give another --output_dir, --resume_from_checkpoint last or "
                "--overwrite_output_dir true"
            )
    if last:
        checkpoint, lines = folder.last_checkpoint()
        resume = str(checkpoint)
    if resume is not None:
        read_state(Path(resume))
    if resume is not None and training.load_best_model_at_end:
        best, of_best = find_best(folder, Path(resume), training)
        lines = lines + of_best
    return Claim(folder, lines, best and best.path), resume


def _default(model: ModelSettings, data: DataSettings) -> Path:
    return Path("runs") / f"{Path(data.corpus or data.dataset).stem}-{model.context_length}-{model.prediction_length}"


def _folder(model: ModelSettings, data: DataSettings, training: ForecastTrainingArguments) -> RunFolder | None:
    """The requested folder; None for the next free one."""
    given, resume = training.given["output_dir"], training.resume_from_checkpoint
    if given is not None:
        return RunFolder(given)
    if resume is None:
        return None
    if resume not in _LAST:
        # resume in the run that wrote the checkpoint, not in the most recent one
        return RunFolder(Path(resume).parent)
    runs = [folder for folder in numbered_folders(_default(model, data)) if folder.holds_run]
    return runs[-1] if runs else RunFolder(_default(model, data))


def _claim_free(stem: Path, held: contextlib.ExitStack) -> RunFolder:
    """Claim the first numbered folder that holds no run and that no other process uses."""
    for folder in numbered_folders(stem, existing=False):
        if folder.holds_run:
            continue
        with contextlib.ExitStack() as claim, contextlib.suppress(FolderInUse):
            claim.enter_context(folder.claimed())
            # another process may have finished a run here just before the claim
            if not folder.holds_run:
                held.enter_context(claim.pop_all())
                return folder
    raise InputError(f"no free folder among {stem}, {stem}-2 and so on: give --output_dir")


@contextlib.contextmanager
def reading(checkpoint: str | Path | None, trust: bool) -> Iterator[None]:
    """Read files of a checkpoint in this block, under `restricted_unpickling`.

    Raises:
        RankInputError: a file holds more than tensors and plain values, or values that no training writes.
    """
    try:
        with restricted_unpickling(trust):
            yield
    except InputError as error:
        # under ZeRO, each rank reads its own file
        raise RankInputError(str(error)) from None
    except (DistError, torch.OutOfMemoryError):
        raise
    except _ODD as error:
        if checkpoint is None:
            raise
        what = f"{type(error).__name__}: {in_one_line(error)}"
        raise RankInputError(
            f"cannot resume from {checkpoint}, because its files have unexpected content: {what}"
        ) from error


def check_whole(checkpoint: Path):
    """Raise InputError if a file of the checkpoint is missing or its checksum differs."""
    if damage := find_damage(checkpoint):
        raise InputError(f"{checkpoint} is not a complete checkpoint: {damage}")


def check_resumes(config: LlataConfig, data: DataSettings, checkpoint: str | Path):
    """Raise InputError if `checkpoint` was trained with other values of settings that its weights depend on."""
    path = Path(checkpoint, CONFIG)
    try:
        theirs = LlataConfig.from_dict(json.loads(path.read_text()))
    except Exception as error:
        # values of wrong types make LlataConfig and transformers raise anything
        raise InputError(f"cannot read the checkpoint's settings {path}: {in_one_line(error)[:300]}") from None
    run = RunFolder(Path(checkpoint).parent)
    # a checkpoint may have been copied here without its run
    settings = run.read_settings() if (run / SETTINGS).is_file() else {}
    series = {name: settings[name] for name in vars(data) if name in settings}
    if isinstance(series.get("dataset"), str):
        series["dataset"] = settled_dataset(series["dataset"])
    if _has_same_backbone(theirs, config):
        theirs.backbone = config.backbone
    check_agreement(vars(theirs) | series, vars(config) | vars(data), str(checkpoint))
    known = theirs.num_channels is not None and config.num_channels is not None
    if known and theirs.num_channels != config.num_channels:
        raise InputError(f"{checkpoint} was trained on {theirs.num_channels} channels, not {config.num_channels}")


def _has_same_backbone(theirs: LlataConfig, config: LlataConfig) -> bool:
    """Whether two models use the same frozen base, wherever it is stored."""
    ours, their = config.backbone_fingerprint, theirs.backbone_fingerprint
    if ours is not None and their is not None:
        return same_weights(their, ours)
    try:
        return settled_source(theirs.backbone) == config.backbone
    except InputError:
        return False


def begin(claim: Claim, training: ForecastTrainingArguments, settings: dict):
    """Write a run's settings into its folder; rank 0 calls it once nothing else can refuse the run.

    An overwritten run's files are deleted. A best checkpoint that lies elsewhere is copied here, so that the run
    depends on nothing outside its folder.
    """
    folder, best = claim.folder, claim.best
    if training.overwrite_output_dir and not training.resume_from_checkpoint:
        folder.clear()
    delete_partials(folder.path)
    if best is not None and best.parent != folder.path:
        target = folder / best.name
        shutil.copytree(best, partial_name(target))
        partial_name(target).replace(target)
    folder.write_settings(settings)
