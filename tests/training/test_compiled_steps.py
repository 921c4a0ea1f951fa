"""A compiled step has one size: the last, smaller batch of an epoch is dropped, and the log says so."""

import logging
from types import SimpleNamespace

import pytest
from transformers import Trainer

from llata_fast.training.trainer import ForecastTrainer


@pytest.fixture
def drops(monkeypatch):
    """`drops(windows, compiled)`: whether a training on that many windows drops a last batch below 2 ranks x 8."""
    monkeypatch.setattr(Trainer, "get_train_dataloader", lambda self: self.args.dataloader_drop_last)

    def ask(windows, compiled):
        trainer = ForecastTrainer.__new__(ForecastTrainer)
        sizes = {"micro_batch": 8, "world_size": 2, "torch_compile": compiled}
        trainer.args, trainer.train_dataset = SimpleNamespace(dataloader_drop_last=False, **sizes), range(windows)
        answer = trainer.get_train_dataloader()
        # evaluation reads the same setting, and must score every window
        assert trainer.args.dataloader_drop_last is False
        return answer

    return ask


def test_the_last_smaller_batch_is_dropped(drops, caplog):
    with caplog.at_level(logging.INFO, "llata_fast"):
        assert drops(50, compiled=True) is True
    assert "leaves out 2 windows, less than a batch of 16" in caplog.text


def test_nothing_is_dropped_otherwise(drops, caplog):
    with caplog.at_level(logging.INFO, "llata_fast"):
        # eager steps; full batches only; less than one batch
        assert not any((drops(50, compiled=False), drops(48, compiled=True), drops(15, compiled=True)))
    assert not caplog.text
