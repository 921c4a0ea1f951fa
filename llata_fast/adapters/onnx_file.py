"""The forecaster as an ONNX file: lookbacks in, forecasts out, any number of windows, missing values masked."""

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..modeling import LlataForPrediction

INPUTS = ("past_values", "past_observed_mask")
_PACKAGES = ("onnx", "onnxscript")
# a batch of one would be taken for a constant
_EXAMPLE_WINDOWS = 2


class _Forecast(nn.Module):
    """The model's forecast alone: past_values [B, L, C] and its mask -> prediction_outputs [B, H, C]."""

    def __init__(self, model: LlataForPrediction):
        super().__init__()
        self.model = model

    def forward(self, past_values: Tensor, past_observed_mask: Tensor) -> Tensor:
        return self.model(past_values, past_observed_mask=past_observed_mask).prediction_outputs


def export_onnx(model: LlataForPrediction, path: str | Path, num_channels: int) -> Path:
    """Write a merged model as ONNX; returns the path.

    The file takes past_values [B, L, C] fp32 and past_observed_mask [B, L, C] bool (False where a value is missing) and
    gives prediction_outputs [B, H, C] fp32. B is free, L and C are fixed.

    Raises:
        InputError: onnx or onnxscript is not installed, or the model is not merged.
    """
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise InputError(f"an ONNX file needs {missing[0]}: pip install llata-fast[export]")
    if not model.config.merged:
        raise InputError("only a merged model is exported to ONNX: call merge() first")
    past = torch.randn(_EXAMPLE_WINDOWS, model.config.context_length, num_channels, device=model.device)
    batch = torch.export.Dim("batch")
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            _Forecast(model).eval(),
            (past, torch.ones_like(past, dtype=torch.bool)),
            input_names=list(INPUTS),
            output_names=["prediction_outputs"],
            dynamic_shapes={name: {0: batch} for name in INPUTS},
            dynamo=True,
            verbose=False,
        )
    program.save(str(path))
    return Path(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own progress, which is about its passes and not about the model."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
