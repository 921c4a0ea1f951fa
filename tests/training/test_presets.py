"""What a data set's name alone means."""

from llata_fast.training.presets import preset_for


def test_chosen_columns_have_skips_of_their_own():
    assert preset_for("ETTh1", {"columns"})["skip_per_channel"]
