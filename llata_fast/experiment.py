"""One experiment: typed settings in, a run's folder out. `train.py`, the benchmark and M4 all go through it."""

import functools
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from .config import LlataConfig
from .data.panel import Panel
from .data.sources import settled_dataset
from .data.units import forecast_windows, run_windows
from .durable import partial_name, writing
from .errors import InputError
from .evaluation.baselines import ForecastFunction
from .evaluation.corpus_task import CorpusTask, read_corpus_task
from .evaluation.panel_task import PanelTask
from .evaluation.tasks import Task, calibrates, check_losses, read_task
from .forecasting import pictures
from .forecasting.calibration import Calibration, calibrated_quantiles, interval_scores
from .linear_start import Behind, LinearStart
from .modeling import LlataForPrediction
from .ranks import on_first_rank
from .run_folder import PICTURE, RunFolder
from .settings import DEFAULT_DATASET, DataSettings, ModelSettings
from .training.arguments import ForecastTrainingArguments, choose_settings, resolved_settings
from .training.initial import load_initial
from .training.learned_share import LearnedShare, weigh_learned_part
from .training.parameters import parameter_counts, parameter_table
from .training.resuming import Claim, begin, check_resumes, claimed_run
from .training.trainer import ForecastTrainer
from .training.without_language_model import learned_without_language_model

_log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """The result of an experiment."""

    folder: RunFolder
    metrics: dict[str, Any]
    """What `metrics.json` holds (`RunFolder.write_metrics`); {} on every rank but the first."""
    model: LlataForPrediction
    picture: Path | None
    """None without matplotlib."""


def train(dataset: str = DEFAULT_DATASET, **settings: Any) -> Outcome:
    """Train a forecaster on a named dataset or a CSV file, as `python train.py --dataset ...` does.

    >>> outcome = train("my.csv", prediction_length=24, max_steps=200)
    >>> Forecaster.from_pretrained(outcome.folder.path).predict_df(read_csv("my.csv"))

    Args:
        dataset: as `--dataset`.
        **settings: options of `train.py` by name; the dataset's preset and the defaults supply the rest.

    Raises:
        InputError: an unknown setting, a value out of range, unreadable data, or a folder that already holds a run.
    """
    return run_experiment(*choose_settings({"dataset": dataset} | settings))


def train_on_panel(panel: Panel, **settings: Any) -> Outcome:
    """As `train`, with the same settings, on a panel: the last rows of each item are held out for validation."""
    model, data, training = choose_settings({"dataset": panel.name} | settings)
    data.id_column, data.date_column, data.target = panel.id_column, panel.timestamp_column, list(panel.targets)
    if data.held_out_ids:
        panel = panel.without(data.held_out_ids)
    for name, value in panel.roles.items():
        setattr(data, name, value)
    return run_experiment(model, data, training, PanelTask(panel, model))


def run_experiment(
    model: ModelSettings,
    data: DataSettings,
    training: ForecastTrainingArguments,
    task: Task | None = None,
) -> Outcome:
    """Read the data, train on its windows, score every test window once, and write the run's folder.

    Every rank calls it; the first logs the model's description and the folder. `task` defaults to the one that the data
    settings describe.

    Raises:
        InputError: the settings cannot be met; nothing has been written then.
    """
    # absolute paths let the run find its data again from any working directory
    data = replace(
        data,
        dataset=settled_dataset(data.dataset),
        data_dir=data.data_dir and str(Path(data.data_dir).expanduser().resolve()),
    )
    if training.deterministic:
        torch.use_deterministic_algorithms(True)
    task = task or _task(model, data, training)
    with claimed_run(model, data, training) as claim:
        folder = claim.folder
        trainer, linear_start = _prepare(task, claim, model, data, training)
        first = trainer.is_world_process_zero()
        counts = parameter_counts(trainer.model)
        if first:
            chosen = linear_start.lines() if linear_start else []
            for line in (*claim.lines, *_description(trainer, counts), *chosen, f"the run goes to {folder}"):
                _log.info(line)
        start = time.perf_counter()
        trained = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        seconds, speed = time.perf_counter() - start, trainer.throughput.summary()
        learned = weigh_learned_part(trainer, seconds)
        # save before any step that may still fail: from here on the run can forecast
        _save(trainer, folder, task, data)
        calibration = _calibrate(trainer, folder, task, linear_start, learned)
        test = task.test(trainer)
        intervals = None
        if calibration is not None and calibrates(task):
            intervals = task.intervals(functools.partial(_score_intervals, trainer, calibration))
        forecast = trainer.forecast(*task.example())
        fan = {} if calibration is None else _fan(trainer, calibration, *task.example())
        if not first:
            return Outcome(folder, {}, trainer.model, None)
        baselines, forecasts = task.baselines()
        without = None
        # a corpus is trained on for as long as the budget lasts, so the comparison would double the cost
        if learned is not None and learned.share and not isinstance(task, CorpusTask):
            _log.info("repeating the training without the language model, to tell whether it is what helped")
            without = learned_without_language_model(trainer)
        metrics = {
            "dataset": data.corpus or data.dataset,
            "scored_on": "validation" if isinstance(task, PanelTask) and not task.with_test else "test",
            "test": test,
            "intervals": intervals,
            "validation": trainer.kept_validation(),
            "baselines": baselines,
            "training": {
                "seconds": seconds,
                "steps": trainer.state.global_step,
                "epochs": trainer.state.epoch,
                "loss": trained.training_loss,
            },
            "speed": speed,
            "parameters": counts,
            "linear_start": linear_start and linear_start.to_dict(),
            "learned": learned and learned.to_dict(without),
        }
        folder.write_metrics(metrics)
        for line in learned.lines(trainer.model.config.has_language_model, without) if learned else []:
            _log.info(line)
        picture = folder / PICTURE if pictures.HAS_MATPLOTLIB else None
        drawn = task.picture({"forecast": forecast} | fan | forecasts)
        ends = [drawn["forecasts"].pop(name) for name in fan]
        if picture is not None and not pictures.plot_forecast(
            picture, **drawn, fan=list(zip(ends[::2], ends[1::2], strict=True))
        ):
            picture = None
        return Outcome(folder, folder.read_metrics(), trainer.model, picture)


def _task(model: ModelSettings, data: DataSettings, training: ForecastTrainingArguments) -> Task:
    if data.corpus is None:
        return read_task(data, model)
    batch_size, num_steps = training.windows_per_step, training.max_steps
    return read_corpus_task(data, model, batch_size=batch_size, num_steps=num_steps, seed=training.seed)


def _prepare(
    task: Task, claim: Claim, model: ModelSettings, data: DataSettings, training: ForecastTrainingArguments
) -> tuple[ForecastTrainer, LinearStart | None]:
    """Build a new model and its Trainer, and write the run's settings into its folder."""
    check_losses(task, model)
    set_seed(training.seed)
    mixture = task.mixture.description() if isinstance(task, CorpusTask) else None
    encoding = task.encoding if isinstance(task, PanelTask) else None
    sizes = None if encoding is None else encoding.sizes
    config = LlataConfig(
        **asdict(model), num_channels=len(task.columns), season_length=task.season_length, covariates=sizes
    )
    if training.checkpointing and not config.has_language_model:
        raise InputError(f"gradient_checkpointing: ablation {config.ablation} has no backbone blocks to checkpoint")
    forecaster = LlataForPrediction.from_backbone(config, frozen_dtype=training.compute_dtype)
    if training.resume_from_checkpoint:
        check_resumes(forecaster.config, data, training.resume_from_checkpoint)
        if mixture is not None:
            claim.folder.check_mixture(mixture)
    linear_start = None
    if training.init is None:
        linear_start = task.start(forecaster)
    else:
        load_initial(forecaster, training.init)
    # reject more channels than the backbone has positions before anything is written
    forecaster.check_shapes(task.splits.train[0]["past_values"][None])
    trainer = ForecastTrainer(forecaster, training, task.splits, task.columns)

    def start():
        begin(claim, training, resolved_settings(forecaster, data, training))
        if mixture is not None:
            claim.folder.write_mixture(mixture)

    on_first_rank(start)
    return trainer, linear_start


def _description(trainer: ForecastTrainer, counts: dict[str, int]) -> list[str]:
    model, training = trainer.model, trainer.args
    num_tokens = model.config.num_tokens(len(trainer.metrics.columns))
    attention = model.attention_choice.explain(num_tokens, training.compute_dtype, training.device)
    return [parameter_table(counts), f"attention: {attention}"]


def _save(trainer: ForecastTrainer, folder: RunFolder, task: Task, data: DataSettings):
    """Write the files that a forecast needs into the run's folder, the manifest last; every rank calls it."""
    partial = partial_name(folder / "model")
    with writing(partial):
        trainer.save_model(str(partial))

    def settle():
        folder.take_model(partial)
        folder.write_preprocessor(task.preprocessor(data.corpus or data.dataset))
        folder.finish()
        if trainer.checkpoint_limit == 1 and trainer.best_checkpoint:
            folder.keep_only(trainer.best_checkpoint)

    on_first_rank(settle)


def _calibrate(
    trainer: ForecastTrainer,
    folder: RunFolder,
    task: Task,
    start: LinearStart | None,
    learned: LearnedShare | None,
) -> Calibration | None:
    """Calibrate quantiles on the validation windows and save the result in the run; every rank calls it.

    Errors of the learned part are unknown at the linear start's earlier origins; they are assumed to change as they do
    in validation.
    """
    if not calibrates(task):
        return None
    model = trainer.model
    windows = task.splits.val.to(trainer.args.device)
    levels = model.config.quantile_levels
    behind: list[Behind] = []
    if start is not None and learned is not None and not levels and learned.start_mae > 0:
        change = learned.mae / learned.start_mae
        behind = [part._replace(errors=change * part.errors) for part in start.behind_origins(task.splits.train)]
    calibration = Calibration.of(
        trainer.outputs,
        windows,
        levels,
        reads_level=model.reads_level,
        behind=behind,
        season=start.seasonality if start is not None else 1,
    )

    def keep():
        calibration.save(folder.calibration)
        folder.finish()

    on_first_rank(keep)
    return calibration


def _score_intervals(trainer: ForecastTrainer, calibration: Calibration, windows: Any, **units: Any):
    config = trainer.model.config
    return interval_scores(
        trainer.outputs,
        windows.to(trainer.args.device),
        calibration,
        config.quantile_levels,
        reads_level=trainer.model.reads_level,
        **units,
    )


def _fan(
    trainer: ForecastTrainer,
    calibration: Calibration,
    past: torch.Tensor,
    observed: torch.Tensor,
    covariates: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Bounds of the 80 and 50 percent intervals for lookbacks [B, L, C]: each [B, H, C], lower before upper."""
    config, device = trainer.model.config, trainer.args.device
    past, observed = past.to(device), observed.to(device)
    units, outputs = run_windows(
        trainer.outputs, past, observed, reads_level=trainer.model.reads_level, covariates=covariates
    )
    past = past.double().masked_fill(~observed, torch.nan)
    levels = (0.1, 0.9, 0.25, 0.75)
    quantiles = calibrated_quantiles(units, past, outputs, config.quantile_levels, calibration, levels)
    return {f"{level:g}": quantiles[..., place] for place, level in enumerate(levels)}


def forecast_of(model: LlataForPrediction) -> ForecastFunction:
    """Wrap a trained model as a function of standardised windows."""

    @torch.inference_mode()
    def forecast(past, observed):
        return forecast_windows(
            lambda inputs: model(**inputs).prediction_outputs,
            past.to(model.device),
            observed.to(model.device),
            reads_level=model.reads_level,
        ).to(past.device)

    return forecast
