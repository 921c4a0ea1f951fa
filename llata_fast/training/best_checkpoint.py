"""Find the best checkpoint so far, in the run's current folder and by this training's metric."""

import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerState

from ..durable import find_damage
from ..errors import InputError
from ..ranks import from_first_rank
from ..run_folder import BEST_CHECKPOINT, TRAINER_STATE, RunFolder
from .arguments import ForecastTrainingArguments

BEST_BY = "best_by"
"""Key of a trainer's state that names the metric by which its best checkpoint was chosen."""


class Best(NamedTuple):
    """The best checkpoint up to a given step."""

    path: Path
    value: float
    """The metric's value."""
    step: int


# the name of a folder beside this checkpoint, never a path
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_COUNTS = ("global_step", "max_steps", "best_global_step", "train_batch_size", "num_train_epochs")
_NUMBERS = ("epoch", "best_metric", "total_flos", "logging_steps", "eval_steps", "save_steps")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read the Trainer's state from a checkpoint; raises InputError if it is missing or invalid."""
    path = checkpoint / TRAINER_STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if problem := _problem(state):
            raise ValueError(problem)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    return state


def _problem(state: Any) -> str | None:
    """Why this is not a Trainer's state, or None."""
    if not isinstance(state, dict):
        return "it is not a mapping"
    if unknown := state.keys() - {item.name for item in fields(TrainerState)}:
        return f"it has the unknown field {min(unknown)!r}"
    for names, kinds in ((_COUNTS, int), (_NUMBERS, (int, float))):
        for name in names:
            value = state.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not abs(value) < 1e20):
                return f"{name} must be {'an integer' if kinds is int else 'a number'}, got {str(value)[:40]!r}"
    log, stored = state.get("log_history", []), state.get("stateful_callbacks")
    if not isinstance(log, list) or not all(isinstance(entry, dict) and _is_step(entry.get("step")) for entry in log):
        return "log_history must be a list of records with a step"
    if not isinstance(stored, dict):
        return "stateful_callbacks must be a mapping"
    best = stored.get(BEST_CHECKPOINT)
    if best is not None and not (isinstance(best, str) and _CHECKPOINT.fullmatch(best)):
        return f"the best checkpoint must be named checkpoint-<step>, got {str(best)[:40]!r}"
    return None


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def measure(training: ForecastTrainingArguments) -> str:
    """The criterion for the best checkpoint, such as "lowest mse"."""
    metric = training.metric_for_best_model.removeprefix("eval_")
    return f"{'highest' if training.greater_is_better else 'lowest'} {metric}"


def find_best(folder: RunFolder, resume: Path, training: ForecastTrainingArguments) -> tuple[Best | None, list[str]]:
    """The best checkpoint up to and including `resume`, in the run's folder or beside `resume`, and log lines about it.

    If the criterion has changed, the best is chosen anew among the remaining checkpoints.

    Raises:
        InputError: the best checkpoint is missing or damaged, or `resume` does not name it.
    """
    state = read_state(resume)
    stored, ours = state["stateful_callbacks"], measure(training)
    name, theirs = stored.get(BEST_CHECKPOINT), stored.get(BEST_BY, ours)
    if ours != theirs:
        best = _best_of_those_left(folder, resume, state["log_history"], training)
        found = best.path.name if best else "none of those that remain"
        return best, [f"the best checkpoint by {ours} is {found}; by {theirs} it was {name or 'none'}"]
    if not name:
        return None, []
    if state.get("best_metric") is None or state.get("best_global_step") is None:
        raise InputError(f"cannot read {resume / TRAINER_STATE}: its best checkpoint has no score, or no step")
    for path in (folder / name, resume.parent / name):
        if path.is_dir() and find_damage(path) is None:
            return Best(path, state["best_metric"], state["best_global_step"]), []
    raise InputError(
        f"{folder} lacks {name}, the best checkpoint up to {resume.name}, or it is damaged: restore it, or keep the "
        "last weights with --load_best_model_at_end false"
    )


def _best_of_those_left(
    folder: RunFolder, resume: Path, log_history: list[dict], training: ForecastTrainingArguments
) -> Best | None:
    metric = f"eval_{training.metric_for_best_model.removeprefix('eval_')}"
    sign = -1 if training.greater_is_better else 1
    scored = [entry for entry in log_history if _is_finite(entry.get(metric))]
    for entry in sorted(scored, key=lambda entry: sign * entry[metric]):
        for parent in (folder.path, resume.parent):
            path = parent / f"checkpoint-{entry['step']}"
            if path.is_dir() and find_damage(path) is None:
                return Best(path, entry[metric], entry["step"])
    return None


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


class OwnBest(TrainerCallback):
    """Finds the best checkpoint in the run's folder, even if the folder was moved after it was written."""

    def __init__(self, run: RunFolder):
        self.run = run

    def on_train_begin(self, args, state, control, **kwargs):
        name = state.stateful_callbacks.get(BEST_CHECKPOINT)
        state.best_model_checkpoint = name and str(self.run / name)
        if state.stateful_callbacks.get(BEST_BY, measure(args)) == measure(args):
            return
        best, _ = from_first_rank(lambda: find_best(self.run, Path(args.resume_from_checkpoint), args))
        state.best_model_checkpoint = best and str(self.run / best.path.name)
        state.best_metric, state.best_global_step = (best.value, best.step) if best else (None, None)
        if stopping := state.stateful_callbacks.get("EarlyStopping"):
            later = [
                entry
                for entry in state.log_history
                if "eval_loss" in entry and entry["step"] > (best.step if best else 0)
            ]
            stopping["attributes"]["early_stopping_patience_counter"] = len(later)
