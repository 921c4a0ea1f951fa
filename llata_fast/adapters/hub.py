"""A run on the Hugging Face hub: its files and a model card that says what it is and how well it forecasts."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ..errors import InputError
from ..run_folder import METRICS, PICTURE, RunFolder

README = "README.md"
# what another machine forecasts with, and what people look at; not checkpoints, logs or locks
FILES = ("*.json", "*.safetensors", "run.yaml", PICTURE, README)

_TEMPLATE = """---
{{ card_data }}
---

# {{ model_name }}

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
    """The card of a finished run: data, scores beside the baselines, command, base model, licence, limits.

    Raises:
        InputError: not the folder of a finished run, or one without readable scores.
    """
    folder = RunFolder(run)
    folder.check_finished(weights=False)
    settings, series, metrics = folder.read_settings(), folder.read_preprocessor(), folder.read_metrics()
    # a path of this machine means nothing elsewhere, and a revision has no place in a card's fields
    base = settings["backbone"].partition("@")[0]
    base = base if _is_hub_id(base) else Path(base).name
    dataset = Path(series.dataset).name
    data = ModelCardData(
        library_name="llata_fast",
        pipeline_tag="time-series-forecasting",
        license=licence,
        base_model=base if _is_hub_id(base) else None,
        tags=["llata", "calf", "time-series"],
        eval_results=_eval_results(dataset, metrics["test"]),
        model_name=repo_id.rpartition("/")[2],
    )
    channels = len(series.columns)
    # a wide table's names would drown the card
    names = ", ".join(series.columns[:10]) + (", ..." if channels > 10 else "")
    return ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        repo_id=repo_id,
        summary=(
            f"Forecasts {settings['prediction_length']} steps from the last {settings['context_length']} of "
            f"{dataset} ({channels} channels, frequency {series.frequency}). A LLaTA forecaster "
            "([arXiv 2403.07300](https://arxiv.org/abs/2403.07300)): a pre-trained language model, adapted by "
            "cross-modal distillation."
        ),
        data=f"{dataset}, columns: {names}. Forecasts are in the units of these columns.",
        scores=_score_table(metrics),
        command=_command(settings),
        training=f"Base model: `{base}`, its first {settings['num_layers']} blocks. Settings: `run.yaml`.",
        limits=(
            "Trained on one data set: other series need a training of their own, or a score of their own before "
            "anyone relies on a forecast. Channels are read in the order above, and the order matters."
        ),
        licence=f"{licence} for what was trained; the base model and the data set have licences of their own.",
    )


def push(run: str | Path, repo_id: str, *, private: bool = False, licence: str = "apache-2.0") -> str:
    """Upload a finished run and its card to the hub; returns the address of the repository.

    Raises:
        InputError: not a finished run, damaged files, a name that is none, or the hub cannot be reached or refuses.
    """
    folder = RunFolder(run)
    folder.check_finished()
    card = model_card(run, repo_id, licence)
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder.path, allow_patterns=[name for name in FILES if name != README]
        )
        card.push_to_hub(repo_id)
    # the HTTP library below huggingface_hub differs from release to release
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{repo_id} cannot be pushed: {type(error).__name__}: {reason}") from error
    return str(url)


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not Path(source).expanduser().exists() and ":" not in source


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
    """Scores on the test split beside the baselines', a Markdown table."""
    rows = {"llata": metrics["test"]} | metrics["baselines"]
    names = [name for name, value in metrics["test"].items() if isinstance(value, (int, float))]
    lines = ["| model | " + " | ".join(name.upper() for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for model, scores in rows.items():
        cells = [f"{scores[name]:.4f}" if isinstance(scores.get(name), (int, float)) else "" for name in names]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    where = "the test split, whose windows were not trained on"
    if metrics.get("scored_on") == "validation":
        where = "the validation windows, by which the weights were chosen: nothing was held back for a test"
    return f"On {where} (`{METRICS}`):\n\n" + "\n".join(lines)


def _command(settings: dict[str, Any]) -> str:
    return f"python train.py --config run.yaml   # seed {settings['seed']}"
