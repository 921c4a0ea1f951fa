"""The preset of `--corpus`: its length is in steps, since a mixture has no epochs."""

from ..settings import DECILES

PRETRAINING = {
    "context_length": 512,
    "prediction_length": 96,
    "patch_length": 32,
    "patch_stride": 32,
    "quantile_levels": list(DECILES),
    "num_layers": 6,
    "intermediate_size": 1024,
    # the linear part of a window is fitted before the first step
    "linear_skip": True,
    # errors are in units of a lookback's deviation: with squares, a few windows would dominate a step
    "task_loss": "l1",
    "consistency_loss": "l1",
    "alignment_loss": "l1",
    "consistency_weight": 0.1,
    # each window is seen only once
    "dropout": 0.0,
    "lora_dropout": 0.0,
    "weight_decay": 0.01,
    "learning_rate": 1e-3,
    "projection_learning_rate": 1e-3,
    "batch_size": 64,
    "max_steps": 1000,
    "eval_strategy": "steps",
    "eval_steps": 250,
    "save_strategy": "steps",
    "save_steps": 250,
    "metric_for_best_model": "mae",
    "patience": 0,
}
