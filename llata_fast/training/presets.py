"""Presets: the settings that `--dataset NAME` alone implies, between the defaults and the user's options.

There are two recipes. `paper` is the published one (arXiv 2403.07300), with the hyper-parameters of its code for its
datasets. `tuned` is ours: one set for every series, a CSV included. Whatever depends on the series, the run chooses
itself, on rows that it does not fit.
"""

from ..data import find_dataset
from ..data.m4 import M4_SPECS, M4Spec

_PAPER = {
    "context_length": 96,
    "num_layers": 6,
    "learning_rate": 5e-4,
    "projection_learning_rate": 1e-4,
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    "num_train_epochs": 100.0,
    "patience": 5,
}
_L1 = {"task_loss": "l1", "consistency_loss": "l1", "alignment_loss": "l1"}
_SMOOTH = {"task_loss": "smooth_l1", "consistency_loss": "smooth_l1", "alignment_loss": "smooth_l1"}
_ETT = _PAPER | _L1 | {"batch_size": 256}
_M4 = _PAPER | {
    "task_loss": "smape",
    "consistency_loss": "mase",
    "alignment_loss": "smooth_l1",
    "learning_rate": 1e-3,
    "batch_size": 512,
    "num_train_epochs": 200.0,
    "patience": 20,
    "metric_for_best_model": "loss",
}


def _lengths(spec: M4Spec) -> dict:
    """The lookback and horizon that the competition prescribes for a frequency."""
    return {"context_length": spec.context_length, "prediction_length": spec.prediction_length}


PAPER: dict[str, dict] = {
    "ETTh1": _ETT | {"patience": 10},
    "ETTh2": _ETT,
    "ETTm1": _ETT,
    "ETTm2": _ETT | {"learning_rate": 1e-4},
    "Weather": _PAPER | _SMOOTH | {"batch_size": 64},
    "ECL": _PAPER | _SMOOTH | {"batch_size": 32, "num_train_epochs": 20.0},
    "Traffic": _PAPER | _SMOOTH | {"batch_size": 8, "num_train_epochs": 10.0},
    **{f"M4-{frequency}": _M4 | _lengths(spec) for frequency, spec in M4_SPECS.items()},
}

# beside a linear start that the run chooses (`linear_start`) and a head of zeros, little is left to learn: a few small
# steps, of which validation selects the best, and then the share of their gain that it supports (`learned_share`)
TUNED: dict = {
    **_SMOOTH,
    "linear_skip": True,
    "num_layers": 1,
    "intermediate_size": 512,
    "consistency_weight": 0.01,
    "batch_size": 64,
    "learning_rate": 1e-4,
    "projection_learning_rate": 1e-4,
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    # windows overlap so much that the validation error turns up before the first epoch ends
    "max_steps": 100,
    "eval_strategy": "steps",
    "eval_steps": 0.5,
    "save_strategy": "steps",
    "save_steps": 0.5,
    "patience": 0,
}
# many series of different sizes, scored in their own units
_TUNED_M4 = {
    "task_loss": "mase",
    "consistency_loss": "mase",
    "learning_rate": 1e-3,
    "projection_learning_rate": 1e-3,
    "metric_for_best_model": "loss",
}

# these belong together: a user who sets one replaces all of them
_WINDOW = ("context_length", "patch_length", "patch_stride")


def preset_for(dataset: str, changed: set[str], recipe: str = "tuned", few_shot: bool = False) -> dict:
    """A recipe's settings for a dataset; `paper` has none for datasets that are not in the paper.

    Entries that the user's own options (`changed`) replace are left out.
    """
    spec = find_dataset(dataset)
    name = spec.name if spec else dataset
    published = PAPER.get(name, {})
    if recipe == "tuned":
        preset = TUNED | (_TUNED_M4 if name.startswith("M4-") else {})
        # published results use one lookback
        preset |= {key: published[key] for key in ("context_length", "prediction_length") if key in published}
    else:
        preset = dict(published)
        if few_shot and preset:
            # the reference's few-shot scripts train without distillation
            preset |= {"consistency_weight": 0.0, "alignment_weight": 0.0, "batch_size": 32}
    if "num_train_epochs" in changed:
        # max_steps would override the user's epochs
        preset.pop("max_steps", None)
    if changed.intersection(_WINDOW):
        preset = {name: value for name, value in preset.items() if name not in _WINDOW}
    return preset
