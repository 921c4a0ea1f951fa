"""The fields that shape the weights: which values are refused, and which defaults the backbone's width decides."""

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
        ({"patch_length": 13}, "patch_length 13 is longer than context_length 12"),
        ({"patch_stride": 2}, "patch_stride needs patch_length"),
        ({"num_heads": 5}, "num_heads 5 does not divide the backbone's width 48"),
        ({"num_prototypes": 48}, "num_prototypes 48: a backbone of width 48 has at most 47"),
        ({"alignment_rank": 0}, "alignment_rank must be at least 1"),
        ({"alignment_rank": 49}, "alignment_rank 49 is larger than the backbone's width 48"),
        ({"num_layers": 4}, "has 3 layers: num_layers must be in 1..3, got 4"),
        ({"backbone": "random:no_such_family"}, "neither a family"),
    ],
)
def test_wrong_configuration(backbone, fields, message):
    with pytest.raises(InputError, match=message):
        LlataForPrediction.from_backbone(tiny_config(**{"backbone": backbone} | fields))


def test_linear_skip_of_an_older_version_is_refused(backbone):
    """Its weights had other names and shapes."""
    config = tiny_config(backbone, linear_skip=True).to_dict() | {"zero_head": True, "skip_level": 0.5}
    with pytest.raises(InputError, match="linear skip was written by an older version"):
        LlataConfig(**config)


def test_few_channels_have_one_map_each(backbone):
    maps = {channels: tiny_config(backbone, num_channels=channels).num_own_maps for channels in (None, 1, 2, 64, 65)}
    assert maps == {None: 0, 1: 0, 2: 2, 64: 64, 65: 0}
    assert tiny_config(backbone, num_channels=1, season_length=4).num_own_maps == 1, "for the season that it leaves"


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
