"""Trained weights as initial weights: what belongs to the channels of another series stays behind."""

import pytest
import torch
from tiny import tiny_model

from llata_fast.linear import LinearSkip
from llata_fast.training.initial import load_initial

pytestmark = pytest.mark.usefixtures("plain_ops")

SOURCE = {"num_channels": 3, "season_length": 5}


@pytest.mark.parametrize(
    "sizes",
    [SOURCE, SOURCE | {"season_length": 4}, SOURCE | {"season_length": None}, SOURCE | {"num_channels": 2}, {}],
    ids=["the same", "another season", "none", "other channels", "any channels"],
)
def test_only_a_series_like_the_source_takes_its_own_maps(sizes, backbone, tmp_path):
    source = tiny_model(backbone, linear_skip=True, **SOURCE)
    parts = ("shared", *LinearSkip.OF_CHANNELS)
    for name in parts:
        torch.nn.init.normal_(getattr(source.skip, name))
    source.save_pretrained(tmp_path)
    model = tiny_model(backbone, linear_skip=True, **sizes)
    load_initial(model, str(tmp_path))
    assert torch.equal(model.skip.shared, source.skip.shared)
    for name in LinearSkip.OF_CHANNELS:
        part = getattr(model.skip, name)
        assert part is None or torch.equal(part, getattr(source.skip, name)) == (sizes is SOURCE)
        assert part is None or sizes is SOURCE or not part.any()
    state = model.skip.state_dict() | {name: torch.ones(1) for name in LinearSkip.OF_CHANNELS}
    with pytest.raises(RuntimeError, match="skip|size mismatch|Unexpected"):
        model.skip.load_state_dict(state)
