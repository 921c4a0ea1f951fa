"""The report of a run as one HTML page: offline, self-contained, every name escaped."""

import importlib.util
import platform
from dataclasses import fields
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import __version__
from ..durable import write_text
from ..errors import InputError
from ..run_folder import RunFolder
from ..settings import DataSettings, ModelSettings

_PACKAGES = ("torch", "transformers", "triton", "deepspeed", "numpy", "pandas")


def write_report(run: str | Path, output: str | Path) -> Path:
    """Write the page for a finished run; returns its path.

    Its test windows are forecast again, so the data set must be at hand; where it is not, the page says so and shows
    what the run's own files tell.

    Raises:
        InputError: not a finished run, damaged files, or matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("a report needs matplotlib: pip install llata-fast[plot]")
    from . import figures

    folder = RunFolder(run)
    folder.check_finished()
    settings, metrics = folder.read_settings(), folder.read_metrics()
    environment = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined)
    sections, note = _test_sections(folder, settings)
    loss = figures.losses(folder.read_log())
    page = environment.get_template("report.html").render(
        title=f"{metrics.get('dataset', 'run')}: {settings['prediction_length']} steps ahead",
        folder=folder.path.name,
        version=__version__,
        scores=_scores(metrics),
        metrics=metrics,
        loss=loss,
        sections=sections,
        note=note,
        settings=settings,
        environment={"python": platform.python_version(), "machine": platform.machine()} | _versions(),
    )
    write_text(output, page)
    return Path(output)


def _test_sections(folder: RunFolder, settings: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """What takes the test windows, and one line why it is missing."""
    from ..evaluation.tasks import SeriesTask, read_task
    from ..forecasting.forecaster import Forecaster
    from ..modeling import LlataForPrediction
    from . import figures, measures

    try:
        task = read_task(_settings(DataSettings, settings), _settings(ModelSettings, settings))
    except InputError as error:
        return {}, f"The test windows are not shown: {error}."
    if not isinstance(task, SeriesTask):
        return {}, "The test windows are not shown: the competition's series have none."
    model = LlataForPrediction.from_pretrained(folder.path)
    features = attention = None
    if measures.has_both_branches(model):
        features, attention = measures.branch_features(model, task), measures.prototype_attention_of(model, task)
    # merges the model: both branches are looked at before
    errors = measures.test_errors(Forecaster(model, folder.read_preprocessor()), task)
    return {
        "windows": errors.windows,
        "by_step": figures.error_by_step(errors, task.columns),
        "by_channel": figures.error_by_channel(errors, task.columns) if len(task.columns) > 1 else None,
        "examples": [(window, figures.example(window, task.columns)) for window in errors.examples],
        "branches": None if features is None else figures.branches(features),
        "attention": attention,
    }, None


def _settings(kind: type, settings: dict[str, Any]) -> Any:
    return kind(**{item.name: settings[item.name] for item in fields(kind) if item.name in settings})


def _scores(metrics: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Names of the errors, and a row for the model and every baseline."""
    test = metrics["test"]
    names = [name for name, value in test.items() if isinstance(value, (int, float))]
    rows = {"llata": test} | metrics["baselines"]
    return names, [
        (model, [f"{scores[name]:.4f}" if isinstance(scores.get(name), (int, float)) else "" for name in names])
        for model, scores in rows.items()
    ]


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
