"""The fields that shape the weights: what is refused, and what the backbone's width decides."""

import pytest
from tiny import random_backbone, tiny_config

from llata_fast.backbone.loading import read_backbone_config
from llata_fast.config import LlataConfig
from llata_fast.errors import InputError
from llata_fast.modeling import LlataForPrediction


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"prediction_length": -1}, "prediction_length must be at least 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"task_loss": "huber"}, "task_loss must be one of l1, smooth_l1, mse, smape, mase, got 'huber'"),
        ({"lora_r": -1}, "lora_r must be at least 0"),
        ({"alignment_weight": -0.1}, "alignment_weight must be at least 0, got -0.1"),
        ({"channel_balance": -1.0}, "channel_balance must be at least 0"),
        ({"patch_length": 13}, "patch_length 13 is longer than context_length 12"),
        ({"patch_stride": 2}, "patch_stride without patch_length"),
        ({"num_heads": 5}, "num_heads 5 does not divide the backbone's width 48"),
        ({"num_prototypes": 48}, "num_prototypes 48: a backbone of width 48 has at most 47"),
        ({"alignment_rank": 0}, "alignment_rank must be at least 1"),
        ({"alignment_rank": 49}, "alignment_rank 49 is larger than the backbone's width 48"),
        ({"num_layers": 4}, "has 3 layers, num_layers 4"),
        ({"backbone": "random:no_such_family"}, "neither a family"),
    ],
)
def test_wrong_configuration(backbone, fields, message):
    with pytest.raises(InputError, match=message):
        LlataForPrediction.from_backbone(tiny_config(**{"backbone": backbone} | fields))


def test_a_config_of_the_version_before(backbone):
    """It held the number of channels where there is a yes or no."""
    config = LlataConfig(**tiny_config(backbone, linear_skip=True).to_dict() | {"skip_channels": 3})
    assert (config.skip_per_channel, config.num_channels) == (True, 3)
    config = LlataConfig(**tiny_config(backbone).to_dict() | {"skip_channels": 0})
    assert (config.skip_per_channel, config.num_channels) == (False, None)


def test_a_skip_for_each_channel_takes_their_number(backbone):
    with pytest.raises(InputError, match="skip_per_channel needs num_channels"):
        LlataForPrediction.from_backbone(tiny_config(backbone, linear_skip=True, skip_per_channel=True))


@pytest.mark.parametrize("part", [{"skip_per_channel": True}, {"skip_level": 0.5}], ids=["channels", "level"])
def test_parts_of_a_skip_need_one(backbone, part):
    with pytest.raises(InputError, match="parts of a linear skip"):
        tiny_config(backbone, **part)


def test_number_of_heads(tmp_path):
    def heads(**sizes):
        config = read_backbone_config(random_backbone(tmp_path, "llama", **sizes))
        return LlataConfig(backbone_config=config).num_heads

    assert heads(hidden_size=48) == 12
    assert heads(hidden_size=32) == 4
    assert LlataForPrediction.from_backbone(tiny_config(random_backbone(tmp_path), num_heads=6)).encoder.num_heads == 6


def test_number_of_prototypes(tmp_path):
    def prototypes(width):
        config = read_backbone_config(random_backbone(tmp_path, "llama", hidden_size=width))
        return LlataConfig(backbone_config=config).num_prototypes

    assert prototypes(48) == 47
    assert prototypes(1024) == 500


def test_alignment_rank(tmp_path):
    def rank(width, **fields):
        config = read_backbone_config(random_backbone(tmp_path, "llama", hidden_size=width))
        return LlataConfig(backbone_config=config, **fields).alignment_rank

    assert (rank(48), rank(1024), rank(1056), rank(4096)) == (48, 1024, 256, 256)
    assert rank(1056, alignment_rank=1056) == 1056
