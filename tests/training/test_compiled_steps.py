"""A compiled step has one size: what an epoch leaves over is left out, and said."""

import logging
from types import SimpleNamespace

import pytest
from transformers import Trainer

from llata_fast.training.trainer import ForecastTrainer


@pytest.fixture
def drops(monkeypatch):
    """drops(windows, compiled): whether a training on so many leaves out what is less than 2 ranks' batches of 8."""
    monkeypatch.setattr(Trainer, "get_train_dataloader", lambda self: self.args.dataloader_drop_last)

    def ask(windows, compiled):
        trainer = ForecastTrainer.__new__(ForecastTrainer)
        sizes = {"per_device_train_batch_size": 8, "world_size": 2, "torch_compile": compiled}
        trainer.args, trainer.train_dataset = SimpleNamespace(dataloader_drop_last=False, **sizes), range(windows)
        answer = trainer.get_train_dataloader()
        # evaluation reads the same setting, and scores every window
        assert trainer.args.dataloader_drop_last is False
        return answer

    return ask


def test_the_rest_of_an_epoch_is_left_out(drops, caplog):
    with caplog.at_level(logging.INFO, "llata_fast"):
        assert drops(50, compiled=True) is True
    assert "leaves out 2 windows an epoch, less than a batch of 16" in caplog.text


def test_nothing_is_left_out_otherwise(drops, caplog):
    with caplog.at_level(logging.INFO, "llata_fast"):
        # eager steps, whole batches, less than one
        assert not any((drops(50, compiled=False), drops(48, compiled=True), drops(15, compiled=True)))
    assert not caplog.text
