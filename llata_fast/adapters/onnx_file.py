"""Export the forecaster to ONNX: masked lookbacks in, points and quantiles out, any number of windows."""

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..forecasting.calibration import Calibration, between_levels
from ..modeling import LlataForPrediction
from ..settings import DECILES

SERIES_INPUTS = ("past_values", "past_observed_mask")
_PACKAGES = ("onnx", "onnxscript")
# the exporter would treat a batch of one as a constant
_EXAMPLE_WINDOWS = 2


class _Points(nn.Module):
    """Only the model's forecast: past_values [B, L, C], its mask and covariates -> prediction_outputs [B, H, C]."""

    def __init__(self, model: LlataForPrediction):
        super().__init__()
        self.model = model

    def forward(self, past_values: Tensor, past_observed_mask: Tensor, *covariates: Tensor) -> Tensor:
        return _output(self.model, past_values, past_observed_mask, covariates).prediction_outputs


def _output(model: LlataForPrediction, past: Tensor, observed: Tensor, covariates: tuple[Tensor, ...]):
    return model(past, past_observed_mask=observed, **dict(zip(model.covariate_shapes, covariates, strict=True)))


class _Quantiles(nn.Module):
    """Points [B, H, C], and quantiles [B, H, C, Q] that increase with their level."""

    offsets: Tensor | None
    """[H, C, Q]"""
    weights: Tensor | None
    """[head's levels, Q]"""

    def __init__(
        self, model: LlataForPrediction, calibration: Calibration | None, levels: Sequence[float], num_channels: int
    ):
        super().__init__()
        self.model, self.calibration, self.num_levels = model, calibration, len(levels)
        head_levels = model.config.quantile_levels
        offsets = None if calibration is None else calibration.at(levels, num_channels).float()
        self.register_buffer("offsets", offsets)
        self.register_buffer("weights", between_levels(head_levels, levels).float() if head_levels else None)

    def forward(self, past_values: Tensor, past_observed_mask: Tensor, *covariates: Tensor) -> tuple[Tensor, Tensor]:
        output = _output(self.model, past_values, past_observed_mask, covariates)
        points = output.prediction_outputs
        if self.weights is not None:
            quantiles = output.quantile_outputs @ self.weights
        else:
            quantiles = points[..., None].expand(*points.shape, self.num_levels)
        if self.offsets is not None:
            unit = _deviation(past_values, past_observed_mask)
            if self.calibration is not None:
                unit = unit * self.calibration.unit(past_values, past_observed_mask)
            quantiles = quantiles + self.offsets * unit[..., None]
        return points, quantiles.sort(-1).values


def _deviation(past: Tensor, observed: Tensor) -> Tensor:
    """Standard deviation [B, 1, C] of the observed values, the unit of a calibration."""
    count = observed.sum(1, keepdim=True).clamp(min=1)
    past = torch.where(observed, past, 0.0)
    moves = torch.where(observed, past - past.sum(1, keepdim=True) / count, 0.0)
    return (moves.square().sum(1, keepdim=True) / count).sqrt()


def export_onnx(
    model: LlataForPrediction,
    path: str | Path,
    num_channels: int,
    calibration: Calibration | None = None,
    quantile_levels: Sequence[float] | None = None,
) -> Path:
    """Write a merged model as ONNX; returns the path.

    Inputs are past_values [B, L, C] fp32 and past_observed_mask [B, L, C] bool (False where a value is missing).
    Outputs are prediction_outputs [B, H, C] fp32 and, with a quantile head or a calibration, quantile_outputs [B, H, C,
    Q] fp32, which increase along Q; the metadata "quantile_levels" lists their levels. B is free; L and C are fixed.
    Covariates are inputs, too, named as in `LlataForPrediction.forward` and encoded by `CovariateEncoding`.

    Args:
        quantile_levels: Q levels; default: the head's, else 0.1 to 0.9.

    Raises:
        InputError: onnx or onnxscript is not installed, the model is not merged, or it has no quantiles.
    """
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise InputError(f"an ONNX file needs {missing[0]}: pip install llata-fast[export]")
    if not model.config.merged:
        raise InputError("only a merged model can be exported to ONNX: call merge() first")
    has_quantiles = calibration is not None or bool(model.config.quantile_levels)
    if quantile_levels and not has_quantiles:
        raise InputError("this model has neither a quantile head nor a calibration, so it has no quantiles to export")
    levels = list(quantile_levels or model.config.quantile_levels or DECILES) if has_quantiles else []
    forecast = _Quantiles(model, calibration, levels, num_channels) if has_quantiles else _Points(model)
    past = torch.randn(_EXAMPLE_WINDOWS, model.config.context_length, num_channels, device=model.device)
    shapes = model.covariate_shapes
    covariates = [torch.zeros(_EXAMPLE_WINDOWS, *shape, device=model.device) for shape in shapes.values()]
    first = {0: torch.export.Dim("batch")}
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            forecast.to(model.device).eval(),
            (past, torch.ones_like(past, dtype=torch.bool), *covariates),
            input_names=[*SERIES_INPUTS, *shapes],
            output_names=["prediction_outputs", "quantile_outputs"][: 1 + has_quantiles],
            dynamic_shapes=dict.fromkeys(SERIES_INPUTS, first)
            | ({"covariates": (first,) * len(shapes)} if shapes else {}),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    if has_quantiles:
        program.model.metadata_props["quantile_levels"] = " ".join(f"{level:g}" for level in levels)
    program.save(str(path))
    return Path(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's progress output, which only describes its own passes."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
