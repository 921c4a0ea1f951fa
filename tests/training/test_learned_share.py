"""How much of the learned part a run keeps: all that validation supports, and nothing else."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import random_backbone, tiny_model

from llata_fast.data import WindowDataset
from llata_fast.linear_start import start_linear_part
from llata_fast.training.learned_share import BLOCKS, weigh_learned_part

pytestmark = pytest.mark.usefixtures("plain_ops")

L, H, C = 12, 5, 3


@pytest.fixture
def trainer(tmp_path):
    """A trainer whose learned forecast is `trainer.learned`, a function of past and future values."""
    values = torch.randn(600, C, dtype=torch.float64).cumsum(0) / 10
    train, validation = (WindowDataset(part, L, H) for part in values.split((400, 200)))
    model = tiny_model(random_backbone(tmp_path), linear_skip=True, num_channels=C)
    start_linear_part(model, train, validation)
    args = SimpleNamespace(per_device_eval_batch_size=64, device="cpu")
    trainer = SimpleNamespace(model=model, args=args, splits=SimpleNamespace(val=validation), seen=0)
    futures = torch.cat([future for *_, future in validation.batches(64)])

    def forecast(past, observed, covariates):
        assert not covariates
        future = futures[trainer.seen : trainer.seen + len(past)]
        trainer.seen += len(past)
        return trainer.learned(model.skip.alone(past, observed), future, trainer.seen)

    trainer.forecast = forecast
    return trainer


def test_what_helps_everywhere_is_kept_fully(trainer):
    trainer.learned = lambda start, future, _: start.lerp(future.to(start), 0.5)
    learned = weigh_learned_part(trainer, seconds=3.0)
    assert learned.share == trainer.model.skip.learned_share.item() == 1
    assert learned.mse == pytest.approx(learned.start_mse / 4, rel=1e-4)
    told = learned.lines(language_model=True)
    assert "language model helped" in told[1] and "+300.0 % and +100.0 %" in told[1] and "3 s of training" in told[1]


def test_the_language_model_is_compared_with_the_same_training_without_it(trainer):
    trainer.learned = lambda start, future, _: start.lerp(future.to(start), 0.5)
    learned = weigh_learned_part(trainer, seconds=30.0)
    better = replace(learned, mse=0.98 * learned.mse, mae=0.99 * learned.mae, seconds=10.0, trained_parameters=7)
    told = learned.lines(True, better)[1]
    assert "did not help: the same training without it (--ablation no_llm)" in told and "-2.0 % and -1.0 %" in told
    assert f"{learned.trained_parameters - 7:,} trained parameters and 20 s of training" in told
    worse = replace(better, mse=1.05 * learned.mse, mae=learned.mae)
    assert "language model helped" in learned.lines(True, worse)[1]
    # a gain below half a percent does not count
    assert "did not help" in learned.lines(True, replace(learned, mse=1.008 * learned.mse))[1]


def test_too_large_a_correction_is_scaled_down(trainer):
    trainer.learned = lambda start, future, _: start + 2 * (future.to(start) - start)
    assert weigh_learned_part(trainer, seconds=0.0).share == pytest.approx(0.5)


def test_what_helps_only_in_part_of_validation_is_dropped(trainer):
    """Much better in most of validation, worse at its end."""
    border = len(trainer.splits.val) * (BLOCKS - 1) // BLOCKS

    def learned(start, future, seen):
        better = torch.arange(seen - len(start), seen)[:, None, None] < border
        return torch.where(better, future.to(start), start - 0.5 * (future.to(start) - start))

    trainer.learned = learned
    learned = weigh_learned_part(trainer, seconds=0.0)
    assert learned.share == 0 and learned.mse == learned.start_mse
    assert "did not help" in learned.lines(language_model=True)[1]


def test_what_diverged_is_dropped(trainer):
    trainer.learned = lambda start, future, _: start + torch.nan
    assert weigh_learned_part(trainer, seconds=0.0).share == 0


def test_a_model_without_a_skip_is_unchanged(trainer, tmp_path):
    trainer.model = tiny_model(random_backbone(tmp_path))
    assert weigh_learned_part(trainer, seconds=0.0) is None
