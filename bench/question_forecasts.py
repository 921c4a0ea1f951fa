"""Forecasts of pre-trained models for `question.py`, and fitting their head to a target's few rows."""

import copy
import math
from pathlib import Path

import torch
from question_data import SIZES, Predict, Target, few_rows_corpus

from llata_fast.data.corpus_windows import LastWindows, in_own_units
from llata_fast.data.mixture import Mixture, MixtureEntry
from llata_fast.forecasting.panel_forecasts import PanelForecaster
from llata_fast.modeling import LlataForPrediction
from llata_fast.training.arguments import has_bf16

FEW_WINDOWS = 256
"""Number of windows from a target's few rows."""
PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)
"""On the head's change, relative to its inputs' mean square; held-out windows select one, or no change."""


def reduced_precision(device: str) -> torch.autocast:
    """Autocast as in pre-training: bf16 if the hardware supports it."""
    return torch.autocast(device, torch.bfloat16, enabled=has_bf16(device == "cpu"))


def predictor(model: LlataForPrediction) -> Predict:
    """A function that forecasts with the temporal branch, rolled forward beyond the horizon."""
    forecaster = PanelForecaster(model.eval(), None)

    def predict(past: torch.Tensor, horizon: int) -> torch.Tensor:
        with reduced_precision(model.device.type):
            return torch.cat([forecaster(part, horizon, ())[0].cpu() for part in past.split(64)])

    return predict


def held_back_windows(target: Target, percent: float, work: Path, seed: int) -> tuple[Mixture, LastWindows]:
    """Windows from `percent` percent of a target's rows, and held-out windows from the rows after these."""
    mixture = Mixture([MixtureEntry(str(few_rows_corpus(target, percent, work)))], SIZES, seed=seed)
    return mixture, LastWindows(mixture.corpora[0], SIZES, 64)


@torch.no_grad()
def tuned(
    model: LlataForPrediction, target: Target, percent: float, work: Path, seed: int
) -> tuple[LlataForPrediction, float]:
    """A copy of `model` with its head fitted to `percent` percent of a target's rows, and the selected penalty.

    A ridge regression of the forecasts' residuals on the head's inputs, so the head keeps its pre-trained values where
    the windows say nothing. Windows after those rows select the penalty; if they prefer no change, returns `model` and
    inf.
    """
    mixture, held_back = held_back_windows(target, percent, work, seed)
    features, lacking = known_of(model, in_own_units(mixture.batch(0, FEW_WINDOWS)))
    others, left = known_of(model, held_back.__getitems__(range(len(held_back))))
    # residuals beyond the end of a series are unknown: count them as 0
    lacking = lacking.nan_to_num()
    gram = features @ features.T
    changes = {math.inf: torch.zeros(features.shape[1], lacking.shape[1], dtype=features.dtype)}
    for penalty in PENALTIES:
        ridge = penalty * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        changes[penalty] = features.T @ torch.linalg.solve(gram + ridge, lacking)
    chosen = min(changes, key=lambda penalty: float((left - others @ changes[penalty]).abs().nanmean()))
    if chosen == math.inf:
        return model, chosen
    fitted = copy.deepcopy(model)
    fitted.head.weight += changes[chosen][:-1].T.to(fitted.head.weight)
    fitted.head.bias += changes[chosen][-1].to(fitted.head.bias)
    return fitted, chosen


def known_of(model: LlataForPrediction, windows: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows in their own units -> the head's inputs and 1 [n, K + 1], and the residuals of its forecast [n, H]."""
    read: list[torch.Tensor] = []
    hook = model.eval().head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    past, observed = (windows[name].to(model.device) for name in ("past_values", "past_observed_mask"))
    with hook, reduced_precision(model.device.type):
        parts = zip(past.split(64), observed.split(64), strict=True)
        forecasts = torch.cat([model(values, past_observed_mask=seen).prediction_outputs for values, seen in parts])
    features = torch.cat([part.flatten(0, -2) for part in read]).double().cpu()
    lacking = windows["future_values"][..., 0].double() - forecasts[..., 0].double().cpu()
    return torch.cat((features, features.new_ones(len(features), 1)), 1), lacking
