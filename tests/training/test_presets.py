"""One preset for every series; the paper's for the data sets of the paper."""

import pytest

from llata_fast.data.m4 import M4_SPECS
from llata_fast.training.presets import PAPER, TUNED, preset_for


def test_a_series_that_nobody_knows_has_the_preset_of_all():
    assert preset_for("my.csv", set()) == preset_for("Metro", set()) == TUNED
    assert preset_for("etth2", set()) == TUNED | {"context_length": 96}, "published numbers see 96 steps"
    assert preset_for("ETTh2", set(), few_shot=True) == preset_for("ETTh2", set())


@pytest.mark.parametrize("frequency", M4_SPECS)
def test_the_competition_fixes_the_lengths_of_m4(frequency):
    preset, spec = preset_for(f"M4-{frequency}", set()), M4_SPECS[frequency]
    assert (preset["context_length"], preset["prediction_length"]) == (spec.context_length, spec.prediction_length)
    assert preset["linear_skip"] and preset["task_loss"] == "mase"


def test_the_papers_recipe_is_that_of_its_code():
    assert preset_for("ETTh1", set(), recipe="paper") == PAPER["ETTh1"]
    assert not {"linear_skip"} & PAPER["ETTh1"].keys()
    assert preset_for("my.csv", set(), recipe="paper") == {}
    few = preset_for("ETTh1", set(), recipe="paper", few_shot=True)
    assert (few["consistency_weight"], few["alignment_weight"], few["batch_size"]) == (0.0, 0.0, 32)


def test_a_lookback_that_is_asked_for_stands():
    assert "context_length" not in preset_for("ETTh1", {"patch_length"})
