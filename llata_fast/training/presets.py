"""What `--dataset NAME` alone means: settings between the defaults and the user's own.

Two recipes: `paper` is the published one (arXiv 2403.07300) with the hyper-parameters of its code, `tuned` ours, chosen
on validation data alone. A data set that has no tuned recipe takes the paper's.
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
    """What the competition fixes of a frequency."""
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

# steps, not epochs: windows overlap so much that validation turns before a whole epoch of ETTh1 is over
_SHORT = {
    "linear_skip": True,
    "zero_head": True,
    "num_layers": 1,
    "intermediate_size": 512,
    "consistency_weight": 0.01,
    "batch_size": 64,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "save_total_limit": 1,
    "patience": 0,
}
# little beyond the skip is found, and what a larger rate finds validation does not confirm
_LONG_TERM_TUNED = (
    _PAPER
    | _SMOOTH
    | _SHORT
    | {
        # validation would return to the mean all the way, the last third of the training rows 0 to 0.75 of it
        "skip_level": 0.5,
        "learning_rate": 3e-5,
        "projection_learning_rate": 3e-5,
        "average_decay": 0.98,
        "max_steps": 100,
        "eval_steps": 50,
        "save_steps": 50,
    }
)
_FEW_SHOT_TUNED = {
    "skip_level": 0.0,
    "learning_rate": 1e-4,
    "projection_learning_rate": 1e-4,
    "batch_size": 32,
    "average_decay": 0.9,
    "max_steps": 60,
    "eval_steps": 30,
    "save_steps": 30,
}
_M4_TUNED = (
    _M4
    | _SHORT
    | {
        "task_loss": "mase",
        "projection_learning_rate": 1e-3,
        "average_decay": 0.99,
        "max_steps": 300,
        "eval_steps": 100,
        "save_steps": 100,
    }
)

TUNED: dict[str, dict] = {
    "Metro": {
        "context_length": 336,
        "linear_skip": True,
        "skip_per_channel": True,
        "zero_head": True,
        # the clouds are mostly noise: unweighted, they are learnt by heart before the traffic's week is learnt
        "channel_balance": 0.5,
        "consistency_weight": 0.01,
        # at 5e-4 the least-squares start gets worse in validation
        "learning_rate": 1e-4,
        "projection_learning_rate": 1e-4,
        "num_train_epochs": 3.0,
    },
    **{name: _LONG_TERM_TUNED | {"skip_per_channel": True} for name in ("ETTh1", "ETTh2", "ETTm1", "ETTm2")},
    # its validation windows want no return to a mean
    "Exchange": _LONG_TERM_TUNED | {"skip_per_channel": True, "skip_level": 0.0},
    **{f"M4-{frequency}": _M4_TUNED | _lengths(spec) for frequency, spec in M4_SPECS.items()},
}

# they belong together: whoever sets one of them sets them all
_WINDOW = ("context_length", "patch_length", "patch_stride")


def preset_for(dataset: str, changed: set[str], recipe: str = "tuned", few_shot: bool = False) -> dict:
    """The preset of a data set, {} where it has none; without what the options in `changed` stand in the place of."""
    spec = find_dataset(dataset)
    name = spec.name if spec else dataset
    tuned = recipe == "tuned" and name in TUNED
    preset = dict((TUNED if tuned else PAPER).get(name, {}))
    if few_shot and preset:
        # the reference's few-shot scripts train without distillation
        preset |= _FEW_SHOT_TUNED if tuned else {"consistency_weight": 0.0, "alignment_weight": 0.0, "batch_size": 32}
    if "num_train_epochs" in changed:
        # the Trainer would count steps and pass over the epochs
        preset.pop("max_steps", None)
    if changed.intersection(_WINDOW):
        preset = {name: value for name, value in preset.items() if name not in _WINDOW}
    return preset
