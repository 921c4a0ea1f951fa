"""The running average of weights: its values, when the model holds it, and training that continues without it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llata_fast.training.averaging import WeightAverage


def control(**flags):
    names = ("should_evaluate", "should_save", "should_training_stop")
    return SimpleNamespace(**{name: flags.get(name, False) for name in names})


def walk(average, model, steps, shown_at=()):
    """Add 1 to the weight in each step; returns the model's weight after every step."""
    shown = []
    for step in range(1, steps + 1):
        average.on_step_begin()
        with torch.no_grad():
            model.weight += 1
        average.on_step_end(None, None, control(should_evaluate=step in shown_at))
        shown.append(model.weight.item())
    return shown


@pytest.fixture
def model():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def test_average_by_hand(model):
    walk(WeightAverage(model, 0.9), model, 2, shown_at=(2,))
    # with decays 2/11 and 3/12: first 1 * 9/11, then that * 1/4 + 2 * 3/4
    assert model.weight.item() == pytest.approx(9 / 11 / 4 + 2 * 3 / 4)


def test_decay_is_at_most_the_one_given(model):
    walk(WeightAverage(model, 0.1), model, 2, shown_at=(2,))
    assert model.weight.item() == pytest.approx((0.9 * 0.1) + 2 * 0.9)


def test_training_continues_from_the_weights(model):
    shown = walk(WeightAverage(model, 0.99), model, 4, shown_at=(2,))
    assert shown[0] == 1 and shown[1] < 2 and shown[2:] == [3, 4]


def test_showing_the_average_twice_is_harmless(model):
    average = WeightAverage(model, 0.9)
    walk(average, model, 2, shown_at=(2,))
    once = model.weight.item()
    average.on_epoch_end(None, None, control(should_evaluate=True, should_save=True))
    assert model.weight.item() == once
    assert walk(average, model, 1) == [3]


def test_a_checkpoint_contains_both(model, tmp_path):
    """The model's file contains the average; the trained weights return with the first step after a resume."""
    whole, state = WeightAverage(model, 0.9), SimpleNamespace(global_step=2)
    walk(whole, model, 2, shown_at=(2,))
    shown = model.weight.item()
    (tmp_path / "checkpoint-2").mkdir()
    whole.save(tmp_path / "checkpoint-2" / "unaveraged.safetensors")

    resumed = WeightAverage(model, 0.9)
    resumed.on_train_begin(SimpleNamespace(resume_from_checkpoint=tmp_path / "checkpoint-2"), state, None)
    assert model.weight.item() == shown
    walk(resumed, model, 1, shown_at=(1,))
    again = model.weight.item()
    with torch.no_grad():
        model.weight.fill_(shown)
    walk(whole, model, 1, shown_at=(1,))
    assert again == model.weight.item()


def test_frozen_weights_are_left_alone(model):
    model.weight.requires_grad_(False)
    assert WeightAverage(model, 0.9).weights == []
