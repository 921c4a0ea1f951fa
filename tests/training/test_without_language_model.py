"""The second training, without the language model, shows whether the language model helped."""

import logging

import numpy as np
import pandas as pd
import pytest
from tiny import TINY_SETTINGS, random_backbone

from llata_fast.experiment import train

pytestmark = pytest.mark.usefixtures("plain_ops")

SETTINGS = TINY_SETTINGS | {
    "context_length": 12,
    "prediction_length": 4,
    "batch_size": 32,
    "learning_rate": 1e-2,
    "projection_learning_rate": 1e-2,
    "max_steps": 10,
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture
def walk(tmp_path):
    values = np.random.default_rng(1).normal(size=600).cumsum()
    table = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=600, freq="h"), "y": values})
    table.to_csv(tmp_path / "walk.csv", index=False)
    return str(tmp_path / "walk.csv")


def test_the_second_training_equals_a_run_without_a_language_model(walk, tmp_path, caplog, monkeypatch):
    # keep half of the learned part, whatever its gain
    monkeypatch.setattr("llata_fast.training.learned_share._best_share", lambda blocks: 0.5)
    settings = SETTINGS | {"dataset": walk, "backbone": random_backbone(tmp_path)}
    with caplog.at_level(logging.INFO):
        learned = train(**settings, output_dir=str(tmp_path / "run")).metrics["learned"]
    assert learned["share"] == 0.5
    without = learned["without_language_model"]
    (told,) = [line for line in caplog.messages if "the same training without it (--ablation no_llm)" in line]
    assert told.startswith(("the language model helped", "the language model did not help"))

    alone = train(**settings, ablation="no_llm", output_dir=str(tmp_path / "alone")).metrics["learned"]
    assert alone["without_language_model"] is None
    for name in ("share", "mse", "mae", "start_mse", "start_mae", "trained_parameters"):
        assert without[name] == pytest.approx(alone[name], rel=1e-5), name
    assert 0 < without["trained_parameters"] < learned["trained_parameters"]


def test_without_a_learned_part_there_is_no_second_training(walk, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("llata_fast.training.learned_share._best_share", lambda blocks: 0.0)
    settings = SETTINGS | {"dataset": walk, "backbone": random_backbone(tmp_path)}
    with caplog.at_level(logging.INFO):
        learned = train(**settings, output_dir=str(tmp_path / "run")).metrics["learned"]
    assert learned["share"] == 0 and learned["without_language_model"] is None
    assert "the language model did not help: the linear start alone" in caplog.text
    assert "repeating the training without the language model" not in caplog.text
