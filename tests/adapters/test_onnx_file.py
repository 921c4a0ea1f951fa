"""ONNX Runtime forecasts what the model does, for any number of windows, with and without missing values."""

import numpy as np
import pytest
import torch
from test_covariate_tokens import SIZES
from test_covariate_tokens import inputs as covariate_inputs
from tiny import random_backbone, tiny_model, window

from llata_fast.adapters.onnx_file import export_onnx
from llata_fast.errors import InputError
from llata_fast.forecasting.calibration import CALIBRATED_LEVELS, Calibration
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.preprocessor import Preprocessor

pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("plain_ops")

PATCHES = {"patch_length": 4, "patch_stride": 2}
SKIP = {"linear_skip": True}
SEASON = SKIP | {"num_channels": 3, "season_length": 5}


@pytest.mark.parametrize(
    "family, fields",
    [("gpt2", {}), ("llama", PATCHES), ("gemma2", SKIP), ("llama", SEASON)],
    ids=["gpt2", "llama-patches", "gemma2-skip", "llama-season"],
)
def test_runtime_agrees_with_the_model(tmp_path, family, fields):
    model = tiny_model(random_backbone(tmp_path, family), **fields).merge()
    if fields is SEASON:
        for part in (model.skip.season, model.skip.season_effect):
            part.normal_()
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


@pytest.mark.parametrize("fields", [SKIP, PATCHES], ids=["skip", "patches"])
def test_covariates_are_inputs(tmp_path, fields):
    model = tiny_model(random_backbone(tmp_path), covariates=SIZES, num_channels=3, **fields)
    if model.skip is not None:
        model.skip.covariates.weight.normal_()
    session = runtime.InferenceSession(export_onnx(model.merge(), tmp_path / "model.onnx", num_channels=3))
    for batch in (1, 3):
        past, beside = window(batch)[0], covariate_inputs(batch=batch)
        beside["future_covariates"][:, 1] = torch.nan
        with torch.no_grad():
            expected = model(past, **beside).prediction_outputs.numpy()
        observed = np.ones(past.shape, dtype=bool)
        feed = {"past_values": past, "past_observed_mask": observed, **beside}
        (got,) = session.run(None, {name: np.asarray(values) for name, values in feed.items()})
        assert np.abs(got - expected).max() < 1e-4 * past.std().item()


INFO = Preprocessor("waves", ["a", "b", "c"], "date", "h", 24, mean=[0.0] * 3, scale=[1.0] * 3)


@pytest.mark.parametrize(
    "head_levels, calibrated, asked",
    [([0.1, 0.5, 0.9], True, None), ([0.1, 0.9], False, None), (None, True, [0.05, 0.25, 0.9])],
    ids=["head-calibrated", "head", "calibration-alone"],
)
def test_quantiles_match_the_forecaster(tmp_path, head_levels, calibrated, asked):
    model = tiny_model(random_backbone(tmp_path), quantile_levels=head_levels)
    calibration = (
        Calibration(torch.randn(5, 3, len(CALIBRATED_LEVELS)).sort(-1).values, 100, 4, 0.5) if calibrated else None
    )
    forecaster = Forecaster(model, INFO, calibration)
    session = runtime.InferenceSession(forecaster.export_onnx(tmp_path / "model.onnx", asked))
    levels = [float(level) for level in session.get_modelmeta().custom_metadata_map["quantile_levels"].split()]
    assert levels == (asked or head_levels)
    for batch in (1, 3):
        past, _ = window(batch)
        observed = torch.rand(past.shape) > 0.2
        points, quantiles = forecaster.predict(list(past.where(observed, torch.nan).numpy()), quantile_levels=levels)
        got = session.run(None, {"past_values": past.numpy(), "past_observed_mask": observed.numpy()})
        for ours, theirs in zip((points, quantiles), got, strict=True):
            assert theirs.shape == np.shape(ours)
            assert np.abs(theirs - np.stack(ours)).max() < 1e-4 * past.std().item()


def test_run_for_any_series_takes_one_channel(tmp_path):
    forecaster = Forecaster(tiny_model(random_backbone(tmp_path), **PATCHES), Preprocessor.of_any_series("mixture"))
    session = runtime.InferenceSession(forecaster.export_onnx(tmp_path / "model.onnx"))
    past, _ = window(4, channels=1)
    (got,) = session.run(None, {"past_values": past.numpy(), "past_observed_mask": np.ones(past.shape, dtype=bool)})
    expected, _ = forecaster.predict(list(past.numpy()))
    assert np.abs(got - np.stack(expected)).max() < 1e-4 * past.std().item()


def test_unavailable_quantiles_are_refused(tmp_path):
    model = tiny_model(random_backbone(tmp_path)).merge()
    with pytest.raises(InputError, match="no quantiles"):
        export_onnx(model, tmp_path / "model.onnx", num_channels=3, quantile_levels=[0.5])


def test_only_a_merged_model_is_exported(tmp_path):
    with pytest.raises(InputError, match="merge"):
        export_onnx(tiny_model(random_backbone(tmp_path)), tmp_path / "model.onnx", num_channels=3)
    assert not (tmp_path / "model.onnx").exists()
