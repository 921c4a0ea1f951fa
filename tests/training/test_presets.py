"""One preset for every series, and the paper's settings for the paper's datasets."""

import pytest

from llata_fast.data.m4 import M4_SPECS
from llata_fast.training.presets import PAPER, TUNED, preset_for


def test_an_unknown_series_has_the_common_preset():
    assert preset_for("my.csv", set()) == preset_for("Metro", set()) == TUNED
    assert preset_for("etth2", set()) == TUNED | {"context_length": 96}, "published numbers see 96 steps"
    assert preset_for("ETTh2", set(), few_shot=True) == preset_for("ETTh2", set())


@pytest.mark.parametrize("frequency", M4_SPECS)
def test_m4_has_the_lengths_of_the_competition(frequency):
    preset, spec = preset_for(f"M4-{frequency}", set()), M4_SPECS[frequency]
    assert (preset["context_length"], preset["prediction_length"]) == (spec.context_length, spec.prediction_length)
    assert preset["linear_skip"] and preset["task_loss"] == "mase"


def test_the_paper_recipe_follows_its_published_code():
    assert preset_for("ETTh1", set(), recipe="paper") == PAPER["ETTh1"]
    assert not {"linear_skip"} & PAPER["ETTh1"].keys()
    assert preset_for("my.csv", set(), recipe="paper") == {}
    few = preset_for("ETTh1", set(), recipe="paper", few_shot=True)
    assert (few["consistency_weight"], few["alignment_weight"], few["batch_size"]) == (0.0, 0.0, 32)


def test_a_preset_does_not_override_a_requested_lookback():
    assert "context_length" not in preset_for("ETTh1", {"patch_length"})
