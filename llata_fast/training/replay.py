"""Repeat a step whose loss or gradient was not finite, from what the training kept."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..modeling import LlataForPrediction
from .finite import BATCHES, MODEL, REPORT

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def replay(folder: Path) -> Iterator[dict[str, Any]]:
    """Recompute every micro-batch in `folder`, forward and backward.

    Yields {"step", "rank", "micro_step", "terms": {name: value now}, "recorded": {name: value then, as text},
    "windows": those whose loss alone is not finite, "module": the first with an output that is not finite,
    "parameters": names of those with such a gradient}.
    """
    report = json.loads((folder / REPORT).read_text())
    tensors = load_file(folder / BATCHES)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LlataForPrediction.from_pretrained(folder / MODEL).to(device).train()
    dtype = _DTYPES.get(report["precision"])
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        for record in report["batches"]:
            prefix = f"{record['rank']}.{record['micro_step']}."
            held = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            inputs = {name: value.to(device) for name, value in held.items() if not name.startswith("random.")}
            _restore({name: value for name, value in held.items() if name.startswith("random.")}, device)
            watch = _FirstNonFinite(model)
            outputs = model(**inputs)
            watch.remove()
            model.zero_grad()
            outputs.loss.backward()
            yield {
                "step": report["step"],
                "rank": record["rank"],
                "micro_step": record["micro_step"],
                "terms": {name: outputs[name].item() for name in record["terms"]},
                "recorded": record["terms"],
                "windows": _alone(model, inputs, record["windows"]),
                "module": watch.name,
                "parameters": [
                    name
                    for name, parameter in model.named_parameters()
                    if parameter.grad is not None and not parameter.grad.isfinite().all()
                ],
            }


def _restore(random: dict[str, Tensor], device: torch.device):
    torch.set_rng_state(random["random.cpu"])
    if "random.cuda" in random and device.type == "cuda":
        torch.cuda.set_rng_state(random["random.cuda"], device)


@torch.no_grad()
def _alone(model: nn.Module, inputs: dict[str, Tensor], windows: list[int]) -> list[int]:
    losses = [model(**{name: value[i : i + 1] for name, value in inputs.items()}).loss for i in range(len(windows))]
    return [window for window, loss in zip(windows, losses, strict=True) if not math.isfinite(loss.item())]


class _FirstNonFinite:
    """Records the first module in a forward pass whose output is not finite."""

    def __init__(self, model: nn.Module):
        self.name: str | None = None
        self._handles = [
            module.register_forward_hook(lambda _, __, output, name=name: self._look(name, output))
            for name, module in model.named_modules()
            if name
        ]

    def _look(self, name: str, output: Any):
        values = output if isinstance(output, (tuple, list)) else [output]
        if self.name is None and any(isinstance(v, Tensor) and not v.isfinite().all() for v in values):
            self.name = name

    def remove(self):
        for handle in self._handles:
            handle.remove()
