"""ONNX Runtime forecasts what the model does, for any number of windows, with values missing and without."""

import numpy as np
import pytest
import torch
from tiny import random_backbone, tiny_model, window

from llata_fast.adapters.onnx_file import export_onnx
from llata_fast.errors import InputError

pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("plain_ops")

PATCHES = {"patch_length": 4, "patch_stride": 2}
SKIP = {"linear_skip": True}


@pytest.mark.parametrize(
    "family, fields",
    [("gpt2", {}), ("llama", PATCHES), ("gemma2", SKIP)],
    ids=["gpt2", "llama-patches", "gemma2-skip"],
)
def test_runtime_agrees_with_the_model(tmp_path, family, fields):
    model = tiny_model(random_backbone(tmp_path, family), **fields).merge()
    session = runtime.InferenceSession(export_onnx(model, tmp_path / "model.onnx", num_channels=3))
    for batch in (1, 2, 7):
        past, _ = window(batch)
        observed = torch.rand(past.shape) > 0.2
        for mask in (torch.ones_like(observed), observed):
            with torch.no_grad():
                expected = model(past, past_observed_mask=mask).prediction_outputs.numpy()
            inputs = {"past_values": past.numpy(), "past_observed_mask": mask.numpy()}
            (got,) = session.run(None, inputs)
            assert got.shape == expected.shape
            assert np.abs(got - expected).max() < 1e-4 * past.std().item()


def test_only_a_merged_model_is_exported(tmp_path):
    with pytest.raises(InputError, match="merge"):
        export_onnx(tiny_model(random_backbone(tmp_path)), tmp_path / "model.onnx", num_channels=3)
    assert not (tmp_path / "model.onnx").exists()
