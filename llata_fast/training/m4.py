"""Training and scoring on one frequency of M4: the short-term protocol."""

import time
from dataclasses import asdict

import torch
from transformers import set_seed

from ..config import LlataConfig
from ..data import Splits
from ..data.m4 import M4Set, M4Windows, last_lookbacks
from ..evaluation.m4_scores import m4_scores
from ..linear import start_at_least_squares
from ..modeling import LlataForPrediction
from ..settings import DataSettings, ModelSettings
from .arguments import ForecastTrainingArguments, resolved_settings
from .run import parameter_counts, settle_output_dir, start_run, write_metrics
from .trainer import ForecastTrainer

WINDOWS_PER_SERIES = 4
"""Training windows of each series in an epoch."""


def m4_windows(m4: M4Set, windows_per_series: int) -> M4Windows:
    """Training windows: all of them before every series' last H known steps."""
    before = [values[: -m4.spec.prediction_length] for values in m4.insample]
    return M4Windows(before, m4.spec, last_cuts=m4.spec.last_cuts, windows_per_series=windows_per_series)


def m4_splits(m4: M4Set) -> Splits:
    """Training windows, and every series' last H known steps for validation. Nothing is standardised."""
    train = m4_windows(m4, WINDOWS_PER_SERIES)
    held_out = M4Windows(m4.insample, m4.spec)
    # what is tested lies in no window: `m4_scores` holds it against forecasts
    return Splits(train, held_out, held_out, None)


def train_on_m4(m4: M4Set, model_args: ModelSettings, data_args: DataSettings, args: ForecastTrainingArguments) -> dict:
    """Train on a frequency and score the forecast of every series once; the run's folder is written."""
    settle_output_dir(args, data_args, model_args)
    set_seed(args.seed)
    config = LlataConfig(**asdict(model_args), num_channels=1)
    model = LlataForPrediction.from_backbone(config, frozen_dtype=args.compute_dtype)
    # as many draws as there are cuts
    start_at_least_squares(model, m4_windows(m4, m4.spec.last_cuts), unit="deviation")
    trainer = ForecastTrainer(model, args, m4_splits(m4), [m4.spec.frequency])
    start_run(args, resolved_settings(model, data_args, args))
    began = time.perf_counter()
    trained = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics
    trained |= {"seconds": time.perf_counter() - began, "best": trainer.state.best_metric}
    trainer.save_model()
    metrics = {
        "test": m4_scores(forecast_m4(model.eval(), m4), m4),
        "train": trained,
        "parameters": parameter_counts(model),
    }
    write_metrics(args.output_dir, metrics)
    return metrics


@torch.inference_mode()
def forecast_m4(model: LlataForPrediction, m4: M4Set, batch_size: int = 1024):
    """What follows every series: [N, H], float64."""
    inputs = last_lookbacks(m4.insample, model.config.context_length)
    parts = zip(*(values.to(model.device).split(batch_size) for values in inputs.values()), strict=True)
    outputs = [model(**dict(zip(inputs, part, strict=True))).prediction_outputs[..., 0] for part in parts]
    return torch.cat(outputs).double().cpu().numpy()
