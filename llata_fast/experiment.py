"""From a series and settings to a trainer, as `train.py` begins; and on to scores, as the benchmark needs it."""

import time
from dataclasses import asdict

import torch
from transformers import set_seed

from .config import LlataConfig
from .data import Splits, TimeSeries
from .data.units import forecast_windows
from .errors import InputError
from .evaluation.baselines import Forecast, score
from .linear import start_at_least_squares
from .modeling import LlataForPrediction
from .run_folder import Preprocessor, RunFolder
from .settings import DataSettings, ModelSettings
from .training.arguments import ForecastTrainingArguments, resolved_settings
from .training.run import (
    check_resumes,
    parameter_counts,
    settle_output_dir,
    start_run,
    write_metrics,
)
from .training.trainer import ForecastTrainer


def prepare(
    series: TimeSeries,
    splits: Splits,
    model_args: ModelSettings,
    data_args: DataSettings,
    args: ForecastTrainingArguments,
) -> ForecastTrainer:
    """A new model around its backbone and what trains it, ready to; the run's settings are written into its folder.

    Raises:
        InputError: the folder holds a run, the checkpoint to resume from is another model's, the backbone cannot be had
            or is too short for the series' channels.
    """
    settle_output_dir(args, data_args, model_args)
    set_seed(args.seed)
    config = LlataConfig(**asdict(model_args), num_channels=len(series.columns))
    if args.checkpointing and not config.has_language_model:
        raise InputError(f"gradient_checkpointing: ablation {config.ablation} has no blocks whose activations it drops")
    model = LlataForPrediction.from_backbone(config, frozen_dtype=args.compute_dtype)
    if args.resume_from_checkpoint:
        check_resumes(model.config, data_args, args.resume_from_checkpoint)
    # validation chooses the penalty where the training windows alone are too few for it
    few = data_args.few_shot_percent or model_args.skip_per_channel
    start_at_least_squares(model, splits.train, splits.val if few else None)
    # more channels than the backbone has positions: found before anything is written
    model.check_shapes(splits.train[0]["past_values"][None])
    trainer = ForecastTrainer(model, args, splits, series.columns)
    if trainer.is_world_process_zero():
        start_run(args, resolved_settings(model, data_args, args))
    return trainer


def train_on(
    series: TimeSeries,
    splits: Splits,
    model_args: ModelSettings,
    data_args: DataSettings,
    args: ForecastTrainingArguments,
) -> tuple[LlataForPrediction, dict]:
    """Train on the windows of a series and score every test window once; the run's folder is written.

    Returns the model as kept, and what `metrics.json` holds: {"test", "train", "parameters"}.
    """
    trainer = prepare(series, splits, model_args, data_args, args)
    began = time.perf_counter()
    trained = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics
    trained["seconds"] = time.perf_counter() - began
    trained["best_mse"] = trainer.state.best_metric
    trained["best_step"] = trainer.state.best_global_step
    save_run(trainer, Preprocessor.of(data_args.dataset, series, splits.scaler))
    test = score(forecast_of(trainer.model.eval()), splits.test, series.columns, args.per_device_eval_batch_size)
    metrics = {"test": test, "train": trained, "parameters": parameter_counts(trainer.model)}
    write_metrics(args.output_dir, metrics)
    return trainer.model, metrics


def save_run(trainer: ForecastTrainer, preprocessor: Preprocessor):
    """Write what a forecast needs into the run's folder; every rank calls it."""
    folder = RunFolder(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        folder.unfinish()
    trainer.save_model()
    if trainer.is_world_process_zero():
        folder.write_preprocessor(preprocessor)
        folder.finish()


def forecast_of(model: LlataForPrediction) -> Forecast:
    """A trained model as a function of standardised windows."""

    @torch.inference_mode()
    def forecast(past, observed):
        return forecast_windows(
            lambda inputs: model(**inputs).prediction_outputs,
            past.to(model.device),
            observed.to(model.device),
            reads_level=model.config.skip_level > 0,
        ).to(past.device)

    return forecast
