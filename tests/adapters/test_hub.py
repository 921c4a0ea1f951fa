"""A run's model card agrees with its files, and a push uploads only what a forecast needs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import perturb, random_backbone, tiny_config, write_series
from transformers import AutoConfig, AutoModelForTimeSeriesPrediction

from llata_fast.adapters import hub
from llata_fast.data import read_wide_csv, split_windows
from llata_fast.errors import InputError
from llata_fast.forecasting.calibration import CALIBRATED_LEVELS, Calibration
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.modeling import LlataForPrediction
from llata_fast.preprocessor import Preprocessor
from llata_fast.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("plain_ops")

SCORES = {"mse": 0.25, "mae": 0.375, "per_channel": {"c0": {"mse": 0.25, "mae": 0.375}}}


@pytest.fixture
def run(tmp_path):
    source = random_backbone(tmp_path)
    series = read_wide_csv(write_series(tmp_path / "series.csv"))
    splits = split_windows(series, 12, 5)
    folder = RunFolder(tmp_path / "run")
    model = LlataForPrediction.from_backbone(tiny_config(source))
    perturb(model)
    model.save_pretrained(folder.path)
    settings = {"backbone": source, "num_layers": 2, "context_length": 12, "prediction_length": 5, "seed": 7}
    folder.write_settings(settings)
    folder.write_preprocessor(Preprocessor.of("series", series, splits.scaler))
    Calibration(torch.randn(5, 3, len(CALIBRATED_LEVELS)).sort(-1).values, 50, 4, 0.5).save(folder.calibration)
    scores = {"test": SCORES, "baselines": {"linear": SCORES | {"mse": 0.5}}, "intervals": {"coverage_80": 0.7931}}
    folder.write_metrics(scores)
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
    assert "80 % intervals covered 79.3 % of the true values" in text and "(3 channels, frequency" in text
    assert "# waves\n" in text and "its first 2 blocks" in text
    assert "license: apache-2.0" in text and "library_name: llata_fast" in text


class Hub:
    """A fake of the hub's API: records uploads, and copies them to the folder `elsewhere` if given."""

    def __init__(self, problem=None, elsewhere=None):
        self.problem, self.elsewhere, self.uploads = problem, elsewhere, []

    def create_repo(self, repo_id, **kwargs):
        if self.problem is not None:
            raise self.problem
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, allow_patterns):
        paths = [path for pattern in allow_patterns for path in folder_path.glob(pattern)]
        self.uploads += [path.name for path in paths]
        if self.elsewhere is not None:
            self.elsewhere.mkdir()
            for path in paths:
                shutil.copy2(path, self.elsewhere)


def test_push_uploads_what_a_forecast_needs(run, monkeypatch):
    api, cards = Hub(), []
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    monkeypatch.setattr(hub.ModelCard, "push_to_hub", lambda card, repo_id: cards.append(str(card)))
    assert hub.push(run.path, "org/waves") == "https://hub.example/org/waves"
    names = {"config.json", "model.safetensors", "run.yaml", "preprocessor_config.json", "metrics.json"}
    assert names <= set(api.uploads) and "optimizer.pt" not in api.uploads
    assert len(cards) == 1


def test_pushed_model_alone_forecasts_the_same(run, monkeypatch, tmp_path):
    table = read_wide_csv(tmp_path / "series.csv")
    expected = Forecaster.from_pretrained(run.path).predict_df(table, quantile_levels=[0.1, 0.5, 0.9])
    monkeypatch.setattr(hub, "HfApi", lambda: Hub(elsewhere=tmp_path / "elsewhere"))
    monkeypatch.setattr(hub.ModelCard, "push_to_hub", lambda card, repo_id: None)
    hub.push(run.path, "org/waves")
    shutil.rmtree(run.path)
    for path in Path(tmp_path).glob("*.json"):
        # the random base's configuration
        path.unlink()
    got = Forecaster.from_pretrained(tmp_path / "elsewhere").predict_df(table, quantile_levels=[0.1, 0.5, 0.9])
    # in the units of the file: around 100, 200 and 300
    assert got.groupby("target_name")["predictions"].mean().round(-2).tolist() == [100, 200, 300]
    pd.testing.assert_frame_equal(got, expected, rtol=1e-5)
    assert (np.diff(got[["0.1", "0.5", "0.9"]]) > 0).all()


def test_base_from_the_hub_is_not_uploaded(run, monkeypatch):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"backbone": "org/base@1234"}))
    with hub._portable(run) as path:
        assert path == run.path


def test_unreachable_hub_gives_one_line(run, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", lambda: Hub(ConnectionError("no route\nto host")))
    with pytest.raises(InputError, match="org/waves cannot be pushed: ConnectionError: no route$"):
        hub.push(run.path, "org/waves")


def test_damaged_run_is_not_pushed(run):
    (run / "config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match="damaged"):
        hub.push(run.path, "org/waves")
