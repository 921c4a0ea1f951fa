"""The folder of a run: where it is, and what is written into it."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import yaml
from torch import Tensor, nn
from transformers.trainer import TRAINER_STATE_NAME

from ..backbone.quantised import quantised_modules
from ..config import LlataConfig
from ..data import Splits, TimeSeries, WindowDataset
from ..errors import InputError
from ..evaluation.baselines import Forecast, seasonal_naive
from ..forecasting.pictures import plot_forecast
from ..linear import LeastSquares
from ..ranks import from_first_rank
from ..run_folder import SETTINGS, RunFolder
from ..settings import DataSettings, ModelSettings, check_agreement
from .arguments import ForecastTrainingArguments

_FINISHED, _TRAINED, _CHECKPOINTS = "metrics.json", "model.safetensors", "checkpoint-[0-9]*"


def settle_output_dir(training: ForecastTrainingArguments, data: DataSettings, model: ModelSettings):
    """Choose the run's folder, by default a new one, and the checkpoint to resume from; the same on every rank.

    Raises:
        InputError: the folder given holds a run already, or there is no checkpoint to resume from.
    """
    resume = training.resume_from_checkpoint
    last = resume in ("last", "true", "True")
    if resume is not None and not last and not _is_whole(Path(resume)):
        raise InputError(f"no checkpoint at {resume or 'an empty path'}, or one whose writing was cut short")
    if training.given["output_dir"] is None and resume is not None and not last:
        # the run that wrote it goes on, not the one that was begun last
        training.output_dir = str(Path(resume).parent)
    elif training.given["output_dir"] is None:
        stem = Path("runs") / f"{Path(data.dataset).stem}-{model.context_length}-{model.prediction_length}"
        folders = [stem, *(stem.with_name(f"{stem.name}-{number}") for number in range(2, 10_000))]
        free = next(index for index, folder in enumerate(folders) if not _holds_run(folder))
        training.output_dir = str(folders[max(free - 1, 0) if resume else free])
    elif _holds_run(Path(training.output_dir)) and not (resume or training.overwrite_output_dir):
        raise InputError(
            f"{training.output_dir} holds a run already: give another --output_dir, "
            "--resume_from_checkpoint last or --overwrite_output_dir true"
        )
    check_can_be_made(Path(training.output_dir))
    if last:
        whole = filter(_is_whole, Path(training.output_dir).glob(_CHECKPOINTS))
        resume = max(map(str, whole), key=lambda path: int(path.rpartition("-")[2]), default=None)
        if resume is None:
            raise InputError(f"{training.output_dir} holds no whole checkpoint to resume from")
    _ = training.device  # joins the ranks
    # a rank that comes late would find the folder that the first one made
    training.output_dir, training.resume_from_checkpoint = from_first_rank(lambda: (training.output_dir, resume))


def _is_whole(checkpoint: Path) -> bool:
    # the Trainer writes its own state last
    return (checkpoint / TRAINER_STATE_NAME).is_file()


def check_resumes(config: LlataConfig, data: DataSettings, checkpoint: str | Path):
    """Raise InputError where `checkpoint` was trained with other settings of those that its weights rest on."""
    path = Path(checkpoint, "config.json")
    try:
        theirs = LlataConfig.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the checkpoint's settings {path}: {error}") from None
    run = RunFolder(Path(checkpoint).parent)
    # a checkpoint may have been brought here without its run
    settings = run.read_settings() if (run / SETTINGS).is_file() else {}
    series = {name: settings[name] for name in vars(data) if name in settings}
    check_agreement(vars(theirs) | series, vars(config) | vars(data), str(checkpoint))
    if None not in (theirs.num_channels, config.num_channels) and theirs.num_channels != config.num_channels:
        raise InputError(f"{checkpoint} was trained on {theirs.num_channels} channels, not {config.num_channels}")


def check_can_be_made(folder: Path):
    """Raise InputError where `folder` is none and cannot become one, before hours are spent on what it shall hold."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"cannot write {folder}: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {folder}: no permission for {nearest}")


def _holds_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (_FINISHED, _TRAINED)) or any(folder.glob(_CHECKPOINTS))


def start_run(training: ForecastTrainingArguments, settings: dict):
    """Write the settings of a run into its folder; rank 0 calls it once nothing else can refuse the run.

    What a run that is overwritten has left goes: its checkpoints would be taken for later ones of this run.
    """
    folder = Path(training.output_dir)
    if training.overwrite_output_dir and not training.resume_from_checkpoint:
        for checkpoint in filter(Path.is_dir, folder.glob(_CHECKPOINTS)):
            shutil.rmtree(checkpoint)
        for name in (_FINISHED, _TRAINED):
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def write_metrics(folder: str | Path, metrics: dict):
    Path(folder, _FINISHED).write_text(json.dumps(metrics, indent=2) + "\n")


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Trained and frozen parameters by part of the model, and in all."""
    counts: dict[str, int] = {}
    # four bits are stored two by two
    packed = {module.projection.weight: module.num_weights for module in quantised_modules(model)}
    for name, parameter in model.named_parameters():
        kind = "trained" if parameter.requires_grad else "frozen"
        # ZeRO-3 keeps the size of what it has taken apart
        size = packed.get(parameter) or getattr(parameter, "ds_numel", parameter.numel())
        for part in (f"{name.split('.')[0]} {kind}", kind):
            counts[part] = counts.get(part, 0) + size
    return counts


def parameter_table(counts: dict[str, int]) -> str:
    """`parameter_counts` as lines of text, a part of the model each."""
    parts = dict.fromkeys(name.rpartition(" ")[0] for name in counts if " " in name)
    rows = [("parameters", "trained", "frozen")]
    for part, prefix in [*((part, f"{part} ") for part in parts), ("in all", "")]:
        rows.append((part, *(f"{counts.get(f'{prefix}{kind}', 0):,}" for kind in ("trained", "frozen"))))
    width = max(len(cell) for row in rows for cell in row)
    return "\n".join(f"{part:<{width}}  {trained:>{width}}  {frozen:>{width}}" for part, trained, frozen in rows)


def fit_baselines(series: TimeSeries, train) -> dict[str, Forecast]:
    """What the run is compared with: the seasonal-naive forecast and linear ones, fitted on the same windows."""
    return {
        "seasonal_naive": seasonal_naive(series.seasonality, train.prediction_length),
        "linear": LeastSquares().fit(train),
        "linear_per_channel": LeastSquares(per_channel=True).fit(train),
    }


def middle_window(windows: WindowDataset) -> tuple[Tensor, Tensor, Tensor]:
    """The window in the middle of a split: lookback [1, L, C], what of it is observed, and targets [1, H, C]."""
    return next(windows.batches(1, first=len(windows) // 2))


def draw_test_forecast(folder: str | Path, series: TimeSeries, splits: Splits, forecasts: dict[str, Tensor]) -> Path:
    """Draw standardised forecasts [1, H, C] of the test split's `middle_window` beside the truth."""
    windows = splits.test
    start, context, horizon = len(windows) // 2, windows.context_length, windows.prediction_length
    # the split's values end where the last of the series' splits ends
    dates = series.dates[: sum(series.split_rows or (len(series),))][-len(windows.values) :]

    def table(values: Tensor, first: int) -> pd.DataFrame:
        values = splits.scaler.inverse_transform(values.double().cpu().numpy())
        return pd.DataFrame(values, index=dates[first : first + len(values)], columns=list(series.columns))

    path = Path(folder, "forecast.png")
    plot_forecast(
        path,
        history=table(windows.values[start : start + context], start).iloc[-2 * horizon :],
        truth=table(middle_window(windows)[2][0], start + context),
        forecasts={name: table(forecast[0], start + context) for name, forecast in forecasts.items()},
        title=f"{series.name}: {horizon} steps from the middle of the test split",
    )
    return path
