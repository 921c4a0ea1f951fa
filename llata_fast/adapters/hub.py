"""A run on the Hugging Face hub: its files, and a model card that describes it and shows how well it forecasts."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ..errors import InputError
from ..hub_access import is_hub_id
from ..preprocessor import Preprocessor
from ..run_folder import CALIBRATION, CONFIG, METRICS, PICTURE, SETTINGS, RunFolder
from ..settings import DEFAULT_BACKBONE

README = "README.md"
# what another machine needs to forecast, and what people look at; no checkpoints, logs or locks
FILES = ("*.json", "*.safetensors", CALIBRATION, SETTINGS, PICTURE, README)
# the bundled backbone -> its id on the hub
_BASES = {DEFAULT_BACKBONE: "HuggingFaceTB/SmolLM2-135M-Instruct"}

_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ summary }}

```python
from llata_fast import Forecaster

forecaster = Forecaster.from_pretrained("{{ repo_id }}")
```

## Data

{{ data }}

## Scores

{{ scores }}

## How it was trained

    {{ command }}

{{ training }}

## Limits

{{ limits }}

## Licence

{{ licence }}
"""


def model_card(run: str | Path, repo_id: str, licence: str = "apache-2.0") -> ModelCard:
    """The model card of a finished run: data, scores beside baselines, command, base model, licence, limits.

    Raises:
        InputError: not the folder of a finished run, or its scores cannot be read.
    """
    folder = RunFolder(run)
    folder.check_finished(weights=False)
    series = folder.read_preprocessor()
    with folder.as_written():
        return _card(folder.read_settings(), series, folder.read_metrics(), repo_id, licence)


def _card(
    settings: dict[str, Any], series: Preprocessor, metrics: dict[str, Any], repo_id: str, licence: str
) -> ModelCard:
    # a path of this machine means nothing elsewhere, and a revision has no place in a card's fields
    base = settings["backbone"].partition("@")[0]
    base = _BASES.get(base, base if is_hub_id(base) else Path(base).name)
    dataset = Path(series.dataset).name
    data = ModelCardData(
        library_name="llata_fast",
        pipeline_tag="time-series-forecasting",
        license=licence,
        base_model=base if is_hub_id(base) else None,
        tags=["llata", "calf", "time-series"],
        eval_results=_eval_results(dataset, metrics["test"]),
        model_name=repo_id.rpartition("/")[2],
    )
    horizon, context = settings["prediction_length"], settings["context_length"]
    return ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        repo_id=repo_id,
        title=repo_id.rpartition("/")[2],
        summary=(
            f"Forecasts {horizon} steps from the last {context} of {_of_what(dataset, series)}. A LLaTA forecaster "
            "([arXiv 2403.07300](https://arxiv.org/abs/2403.07300)): a pre-trained language model, adapted by "
            "cross-modal distillation."
        ),
        data=_data(dataset, series),
        scores=_score_table(metrics),
        command=_command(settings),
        training=_training(base, settings["num_layers"], metrics.get("learned")),
        limits=_limits(series),
        licence=f"{licence} for the trained weights; the base model and the dataset have their own licences.",
    )


def push(run: str | Path, repo_id: str, *, private: bool = False, licence: str = "apache-2.0") -> str:
    """Upload a finished run and its model card to the hub; returns the repository's address.

    Raises:
        InputError: not a finished run, damaged files, an invalid name, or the hub is unreachable or refuses.
    """
    folder = RunFolder(run)
    folder.check_finished()
    card = model_card(run, repo_id, licence)
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        with _portable(folder) as path:
            api.upload_folder(
                repo_id=repo_id, folder_path=path, allow_patterns=[name for name in FILES if name != README]
            )
        card.push_to_hub(repo_id)
    # releases of huggingface_hub use different HTTP libraries
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{repo_id} cannot be pushed: {type(error).__name__}: {reason}") from error
    return str(url)


@contextlib.contextmanager
def _portable(folder: RunFolder) -> Iterator[Path]:
    """The run's folder; if its base exists only on this machine, a temporary copy with the base merged in."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    place = str(config["backbone"]).removeprefix("random:")
    if config.get("merged") or config.get("includes_backbone") or not Path(place).expanduser().exists():
        yield folder.path
        return
    # importing it loads the model's code, which a card does not need
    from ..modeling import LlataForPrediction

    with tempfile.TemporaryDirectory(prefix="llata_fast_") as path:
        copy = RunFolder(path)
        LlataForPrediction.from_pretrained(folder.path, base_precision="auto").merge().save_pretrained(path)
        folder.copy_description(copy)
        for name in filter(lambda name: (folder / name).is_file(), (METRICS, PICTURE)):
            shutil.copy2(folder / name, path)
        yield copy.path


def _training(base: str, num_layers: int, learned: dict[str, Any] | None) -> str:
    blocks = "its first block" if num_layers == 1 else f"its first {num_layers} blocks"
    text = f"Base model: `{base}`, {blocks}. Settings: `run.yaml`."
    if learned and learned["share"] == 0:
        text += " The language model did not help on the validation windows: forecasts use the linear start alone."
    return text


def _of_what(dataset: str, series: Preprocessor) -> str:
    if series.any_series:
        return "series with any columns, step and length"
    kind = "items with " if series.id_column else ""
    channels = len(series.columns)
    return f"{dataset} ({kind}{channels} channel{'s' * (channels != 1)}, frequency {series.frequency})"


def _data(dataset: str, series: Preprocessor) -> str:
    if series.any_series:
        return f"Pre-trained on the corpora of {dataset}. Forecasts are in the units of the series."
    # all names of a wide table would swamp the card
    names = ", ".join(series.columns[:10]) + (", ..." if len(series.columns) > 10 else "")
    return f"{dataset}, columns: {names}. Forecasts are in the units of these columns."


def _limits(series: Preprocessor) -> str:
    order = " Channels are read in the order above, and the order matters." if len(series.columns) > 1 else ""
    if series.any_series:
        return "Score the model on your own series before you rely on a forecast."
    return (
        "Trained on one dataset: for another series, train again, or score the model on it before you rely on a "
        f"forecast.{order}"
    )


def _eval_results(dataset: str, test: dict[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="time-series-forecasting",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=name,
            metric_value=round(value, 6),
        )
        for name, value in test.items()
        if isinstance(value, (int, float))
    ]


def _score_table(metrics: dict[str, Any]) -> str:
    """The test scores beside the baselines', as a Markdown table."""
    rows = {"llata": metrics["test"]} | metrics["baselines"]
    names = [name for name, value in metrics["test"].items() if isinstance(value, (int, float))]
    lines = ["| model | " + " | ".join(name.upper() for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for model, scores in rows.items():
        cells = [f"{scores[name]:.4f}" if isinstance(scores.get(name), (int, float)) else "" for name in names]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    where = "the test split, which was not used in training"
    if metrics.get("scored_on") == "validation":
        where = "the validation windows, by which the weights were selected; no test split was held out"
    coverage = (metrics.get("intervals") or {}).get("coverage_80")
    held = "" if coverage is None else f"\n\nIts 80 % intervals covered {100 * coverage:.1f} % of the true values."
    return f"On {where} (`{METRICS}`):\n\n" + "\n".join(lines) + held


def _command(settings: dict[str, Any]) -> str:
    return f"python train.py --config run.yaml   # seed {settings['seed']}"
