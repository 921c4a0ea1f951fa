"""A run's model card says what its files say, and a push uploads what a forecast needs, nothing else."""

import json

import pytest
from tiny import perturb, random_backbone, tiny_config, write_series
from transformers import AutoConfig, AutoModelForTimeSeriesPrediction

from llata_fast.adapters import hub
from llata_fast.data import read_csv, split_windows
from llata_fast.errors import InputError
from llata_fast.modeling import LlataForPrediction
from llata_fast.run_folder import Preprocessor, RunFolder

pytestmark = pytest.mark.usefixtures("plain_ops")

SCORES = {"mse": 0.25, "mae": 0.375, "per_channel": {"c0": {"mse": 0.25, "mae": 0.375}}}


@pytest.fixture
def run(tmp_path):
    source = random_backbone(tmp_path)
    series = read_csv(write_series(tmp_path / "series.csv"))
    splits = split_windows(series, 12, 5)
    folder = RunFolder(tmp_path / "run")
    model = LlataForPrediction.from_backbone(tiny_config(source))
    perturb(model)
    model.save_pretrained(folder.path)
    settings = {"backbone": source, "num_layers": 2, "context_length": 12, "prediction_length": 5, "seed": 7}
    folder.write_settings(settings)
    folder.write_preprocessor(Preprocessor.of("series", series, splits.scaler))
    folder.write_metrics({"test": SCORES, "baselines": {"linear": SCORES | {"mse": 0.5}}})
    folder.finish()
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "optimizer.pt").write_text("state")
    return folder


def test_auto_classes_know_the_model(run):
    assert type(AutoConfig.from_pretrained(run.path)).__name__ == "LlataConfig"
    model = AutoModelForTimeSeriesPrediction.from_pretrained(run.path)
    assert isinstance(model, LlataForPrediction) and not model.training


def test_card_shows_scores_beside_the_baselines(run):
    text = str(hub.model_card(run.path, "org/waves"))
    assert "| llata | 0.2500 | 0.3750 |" in text and "| linear | 0.5000 | 0.3750 |" in text
    assert 'Forecaster.from_pretrained("org/waves")' in text and "c0, c1, c2" in text and "seed 7" in text
    assert "license: apache-2.0" in text and "library_name: llata_fast" in text


class Hub:
    """Stands for the hub's API: keeps what is uploaded."""

    def __init__(self, problem=None):
        self.problem, self.uploads = problem, []

    def create_repo(self, repo_id, **kwargs):
        if self.problem is not None:
            raise self.problem
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, allow_patterns):
        self.uploads += [path.name for pattern in allow_patterns for path in folder_path.glob(pattern)]


def test_push_uploads_what_a_forecast_needs(run, monkeypatch):
    api, cards = Hub(), []
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    monkeypatch.setattr(hub.ModelCard, "push_to_hub", lambda card, repo_id: cards.append(str(card)))
    assert hub.push(run.path, "org/waves") == "https://hub.example/org/waves"
    names = {"config.json", "model.safetensors", "run.yaml", "preprocessor_config.json", "metrics.json"}
    assert names <= set(api.uploads) and "optimizer.pt" not in api.uploads
    assert len(cards) == 1


def test_hub_out_of_reach_is_one_line(run, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", lambda: Hub(ConnectionError("no route\nto host")))
    with pytest.raises(InputError, match="org/waves cannot be pushed: ConnectionError: no route$"):
        hub.push(run.path, "org/waves")


def test_damaged_run_is_not_pushed(run):
    (run / "config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match="damaged"):
        hub.push(run.path, "org/waves")
