"""What `--dataset NAME` alone means: settings between the defaults and the user's own, chosen on validation data."""

from ..data import find_dataset

# the published recipe (arXiv 2403.07300), but for batch and epochs
_ETT = {
    "context_length": 96,
    "task_loss": "l1",
    "consistency_loss": "l1",
    "alignment_loss": "l1",
    "learning_rate": 5e-4,
    "projection_learning_rate": 1e-4,
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    "num_train_epochs": 8.0,
}

PRESETS: dict[str, dict] = {
    # the clouds are mostly noise: unweighted, they are learnt by heart before the traffic's week is learnt
    "Metro": {"context_length": 336, "linear_skip": True, "channel_balance": 0.5, "num_train_epochs": 3.0},
    "ETTh1": _ETT,
    "ETTh2": _ETT,
    "ETTm1": _ETT,
    "ETTm2": _ETT | {"learning_rate": 1e-4},
}

# they belong together: whoever sets one of them sets them all
_WINDOW = ("context_length", "patch_length", "patch_stride")


def preset_for(dataset: str, changed: set[str]) -> dict:
    """The preset of a data set, {} where it has none; without its window where `changed` names a part of one."""
    spec = find_dataset(dataset)
    preset = dict(PRESETS.get(spec.name, {})) if spec else {}
    if changed.intersection(_WINDOW):
        preset = {name: value for name, value in preset.items() if name not in _WINDOW}
    return preset
