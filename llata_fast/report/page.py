"""A run's report as one HTML page: offline, self-contained, with every name escaped."""

import importlib.util
import platform
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import __version__
from ..data.panel import Panel
from ..durable import write_text
from ..errors import InputError
from ..forecasting.forecaster import Forecaster
from ..run_folder import RunFolder
from ..settings import DataSettings, ModelSettings
from . import measures
from .measures import Errors

_PACKAGES = ("torch", "transformers", "triton", "deepspeed", "numpy", "pandas")


def write_report(run: str | Path, output: str | Path) -> Path:
    """Write the page for a finished run; returns its path.

    Its test windows are forecast again, so the dataset must be available. If it is not, the page says so and shows only
    what the run's own files contain.

    Raises:
        InputError: not a finished run, damaged files, or matplotlib is not installed.
    """
    _check_matplotlib()
    from . import figures

    folder = RunFolder(run)
    folder.check_finished()
    settings, metrics = folder.read_settings(), folder.read_metrics()
    sections, note = _test_sections(folder, settings, metrics.get("scored_on", "test"))
    with folder.as_written():
        where = "On the test split; training never saw it."
        if metrics.get("scored_on") == "validation":
            where = "On the validation windows, by which the weights were selected; no test split was held out."
        coverage = (metrics.get("intervals") or {}).get("coverage_80")
        if coverage is not None:
            where += f" The 80 % intervals covered {100 * coverage:.1f} % of the true values."
        return _write(
            output,
            title=f"{Path(metrics.get('dataset', 'run')).name}: {settings['prediction_length']} steps ahead",
            folder=folder.path.name,
            scores=_scores(metrics),
            where=where,
            metrics=metrics,
            loss=figures.losses(folder.read_log()),
            sections=sections,
            note=note,
            settings=settings,
        )


def write_backtest_report(
    forecaster: Forecaster,
    panel: Panel,
    scores: pd.DataFrame,
    output: str | Path,
    *,
    n_windows: int = 1,
    step_size: int | None = None,
    batch_size: int | None = None,
    name: str = "",
) -> Path:
    """Write the page of a backtest, given the `scores` of `Forecaster.evaluate`; returns its path.

    `name` is the run's. The windows are forecast again. Raises InputError if matplotlib is not installed.
    """
    _check_matplotlib()
    panel = forecaster.panel_of(panel)
    horizon = forecaster.model.config.prediction_length
    errors = measures.panel_errors(forecaster, panel, n_windows, step_size, batch_size)
    cells = [(str(model), [_number(value) for value in row]) for model, row in scores.iterrows()]
    return _write(
        output,
        title=f"Backtest on {Path(panel.name).name}",
        folder=name,
        scores=(list(scores), cells),
        where=f"On the last {n_windows} windows of {errors.windows // n_windows:,} items, {horizon} steps each.",
        metrics={},
        loss=None,
        sections=_error_sections(errors, list(panel.targets)),
        note=None,
        settings=forecaster.settings,
    )


def _check_matplotlib():
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("a report needs matplotlib: pip install llata-fast[plot]")


def _write(output: str | Path, **what: Any) -> Path:
    environment = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined)
    machine = {"python": platform.python_version(), "machine": platform.machine()} | _versions()
    write_text(output, environment.get_template("report.html").render(version=__version__, environment=machine, **what))
    return Path(output)


def _test_sections(folder: RunFolder, settings: dict[str, Any], scored_on: str) -> tuple[dict[str, Any], str | None]:
    """The sections that need the test windows, and one line that says why they are missing."""
    from ..evaluation.panel_task import PanelTask
    from ..evaluation.tasks import SeriesTask, read_task
    from ..modeling import LlataForPrediction
    from . import figures

    if settings.get("corpus"):
        return {}, "The windows of a pre-training are not shown: its scores are means over many series."
    try:
        task = read_task(_settings(DataSettings, settings), _settings(ModelSettings, settings))
    except InputError as error:
        return {}, f"The test windows are not shown: {error}."
    if not isinstance(task, (SeriesTask, PanelTask)):
        return {}, "The test windows are not shown: M4's test values are not in windows."
    if isinstance(task, PanelTask) and scored_on == "validation":
        task = PanelTask(task.panel, _settings(ModelSettings, settings))
    model = LlataForPrediction.from_pretrained(folder.path)
    sections: dict[str, Any] = {}
    if measures.has_both_branches(model):
        features = measures.branch_features(model, task, settings.get("seed", 0))
        sections["distances"], sections["planes"] = figures.distances(features), figures.planes(features)
        sections["attention"] = measures.prototype_attention_of(model, task)
    # loading merges the model, so both branches are measured before
    forecaster = Forecaster.from_pretrained(folder.path)
    if isinstance(task, PanelTask):
        errors = measures.panel_errors(forecaster, task.panel, measures.held_back_windows(task))
    else:
        errors = measures.series_errors(forecaster, task)
    return sections | _error_sections(errors, task.columns), None


def _error_sections(errors: Errors, columns: list[str]) -> dict[str, Any]:
    """Plots of errors, intervals and single windows."""
    from . import figures

    return {
        "windows": errors.windows,
        "unit": errors.unit,
        "by_step": figures.error_by_step(errors, columns),
        "by_channel": figures.error_by_name(figures.by_channel(errors, columns)) if len(columns) > 1 else None,
        "items": len(errors.by_item),
        "by_item": figures.error_by_name(errors.by_item) if len(errors.by_item) > 1 else None,
        "calibration": None if errors.below is None else figures.calibration(errors.below),
        "examples": [(window, figures.example(window, columns)) for window in errors.examples],
    }


def _settings(kind: type, settings: dict[str, Any]) -> Any:
    return kind(**{item.name: settings[item.name] for item in fields(kind) if item.name in settings})


def _scores(metrics: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Names of the errors, and one row for the model and for each baseline."""
    test = metrics["test"]
    names = [name for name, value in test.items() if isinstance(value, (int, float))]
    rows = {"llata": test} | metrics["baselines"]
    return names, [(model, [_number(scores.get(name)) for name in names]) for model, scores in rows.items()]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) and value == value else ""


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
