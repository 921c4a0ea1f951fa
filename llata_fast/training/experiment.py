"""One run from series to scores, as the benchmark needs it: what `train.py` does, without its picture and its words."""

import time
from dataclasses import asdict

import torch
from transformers import set_seed

from ..config import LlataConfig, ModelArguments
from ..data import Splits, TimeSeries
from ..evaluation.baselines import Forecast, score
from ..modeling import LlataForPrediction
from ..serving.forecaster import SeriesInfo
from .arguments import DataArguments, ForecastTrainingArguments, resolved_settings
from .run import learn_from_linear, parameter_counts, settle_output_dir, write_metrics, write_settings
from .trainer import ForecastTrainer


def train_on(
    series: TimeSeries,
    splits: Splits,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: ForecastTrainingArguments,
) -> tuple[LlataForPrediction, dict]:
    """Train on the windows of a series and score every test window once; the run's folder is written.

    Returns the model as kept, and what `metrics.json` holds: {"test", "train", "parameters"}.
    """
    settle_output_dir(args, data_args, model_args)
    set_seed(args.seed)
    model = LlataForPrediction.from_backbone(LlataConfig(**asdict(model_args)), frozen_dtype=args.compute_dtype)
    few = data_args.few_shot_percent or model_args.skip_channels
    learn_from_linear(model, splits.train, splits.val if few else None)
    model.check_shapes(splits.train[0]["past_values"][None])
    trainer = ForecastTrainer(model, args, splits, series.columns)
    write_settings(args.output_dir, resolved_settings(model, data_args, args))
    began = time.perf_counter()
    trained = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics
    trained["seconds"] = time.perf_counter() - began
    trained["best_mse"] = trainer.state.best_metric
    trained["best_step"] = trainer.state.best_global_step
    trainer.save_model()
    SeriesInfo.of(data_args.dataset, series, splits.scaler).save(args.output_dir)
    test = score(forecast_of(model.eval()), splits.test, series.columns, args.per_device_eval_batch_size)
    metrics = {"test": test, "train": trained, "parameters": parameter_counts(model)}
    write_metrics(args.output_dir, metrics)
    return model, metrics


def forecast_of(model: LlataForPrediction) -> Forecast:
    """A trained model as a function of standardised windows."""

    @torch.inference_mode()
    def forecast(past, observed):
        output = model(past.to(model.device), past_observed_mask=None if observed.all() else observed.to(model.device))
        return output.prediction_outputs.to(past.device)

    return forecast
