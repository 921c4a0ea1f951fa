"""Stop a training before a loss or gradient that is not finite spoils its weights, and keep what repeats that step.

`nonfinite/` in the run's folder holds the weights before the step, the batch, the random state of its dropout, and
`nonfinite.json`: the step, the terms of the loss, and each window's first row in the training split (for M4, the number
of its series).
"""

import json
import logging
import math
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerCallback

from ..data.windows import Windows
from ..durable import delete_tree, partial_name, settle_folder, write_text
from ..errors import InputError
from ..ranks import on_first_rank
from ..run_folder import NONFINITE

WINDOW_INDEX = "window_index"
REPORT, BATCHES, MODEL = "nonfinite.json", "batches.safetensors", "model"
_SKIPPED = "skipped_nonfinite"

_log = logging.getLogger(__name__)


class NumberedWindows(Dataset):
    """The same windows, with their indices under `WINDOW_INDEX` in each batch."""

    def __init__(self, windows: Windows):
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.windows[index] | {WINDOW_INDEX: torch.tensor(index)}

    def __getitems__(self, indices) -> dict[str, Tensor]:
        return self.windows.__getitems__(indices) | {WINDOW_INDEX: torch.as_tensor(indices)}

    def __getattr__(self, name: str) -> Any:
        if name == "windows":
            raise AttributeError(name)
        return getattr(self.windows, name)


class _Batch(NamedTuple):
    inputs: dict[str, Tensor]
    windows: Tensor
    random: dict[str, Tensor]
    terms: dict[str, Tensor]


class FiniteGuard(TrainerCallback):
    """Checks the losses and gradients of every step before the optimizer runs; raises InputError on every rank.

    Under DeepSpeed, whose backward pass also takes the step, it checks only the losses, before that.
    """

    def __init__(self, trainer: Any, tolerated: int):
        """`tolerated`: total number of such steps to skip instead of stopping."""
        self.trainer, self.tolerated, self.skipped = trainer, tolerated, 0
        self._batches: list[_Batch] = []

    def random_state(self) -> dict[str, Tensor]:
        """State of the random generators used by dropout."""
        device = self.trainer.args.device
        states = {"random.cpu": torch.get_rng_state()}
        return states | ({"random.cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})

    def watch(self, inputs: dict[str, Tensor], windows: Tensor, random: dict[str, Tensor], terms: dict[str, Tensor]):
        """Keep a micro-batch and its losses until the step has been checked."""
        # a CUDA graph overwrites these buffers in its next step
        copies = {name: value.detach().clone() for name, value in terms.items()}
        self._batches.append(_Batch(inputs, windows, random, copies))
        if self.trainer.is_deepspeed_enabled:
            self._check(self.trainer.state, ())

    def on_train_begin(self, args, state, control, **kwargs):
        self.skipped = state.stateful_callbacks.get(_SKIPPED, 0)

    def on_step_begin(self, args, state, control, **kwargs):
        self._batches.clear()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.trainer.is_deepspeed_enabled:
            return
        # gradients scaled for fp16 overflow now and then, and the scaler then skips the step
        scaled = getattr(self.trainer.accelerator, "scaler", None) is not None
        gradients = () if scaled else tuple(p.grad for p in model.parameters() if p.grad is not None)
        if not self._check(state, gradients):
            model.zero_grad(set_to_none=True)

    def _check(self, state, gradients: tuple[Tensor, ...]) -> bool:
        """Whether to take the step; False skips it."""
        terms = torch.stack([value.float() for batch in self._batches for value in batch.terms.values()])
        finite = terms.isfinite().all()
        if gradients:
            finite = finite & torch.stack(torch._foreach_norm(gradients, math.inf)).isfinite().all()
        accelerator = self.trainer.accelerator
        # all ranks stop if one has to
        if accelerator.num_processes > 1:
            finite = accelerator.reduce(finite.float()[None], "sum")[0] == accelerator.num_processes
        if finite:
            return True
        records = gather_object(self._records()) if accelerator.num_processes > 1 else self._records()
        problem = _problem(records, state.global_step + 1)
        if self.skipped >= self.tolerated:
            self._stop(records, problem, state.global_step + 1)
        self.skipped += 1
        state.stateful_callbacks[_SKIPPED] = self.skipped
        if self.trainer.is_world_process_zero():
            _log.warning("%s: skipping the step, %d of %d", problem, self.skipped, self.tolerated)
        return False

    def _records(self) -> list[dict[str, Any]]:
        """This rank's micro-batches of the step, moved to the CPU."""
        rank = self.trainer.accelerator.process_index
        return [
            {
                "rank": rank,
                "micro_step": number,
                "windows": batch.windows.tolist(),
                "terms": {name: value.item() for name, value in batch.terms.items()},
                "tensors": {
                    name: value.detach().to("cpu", copy=True).contiguous()
                    for name, value in {**batch.inputs, **batch.random}.items()
                    if value is not None
                },
            }
            for number, batch in enumerate(self._batches)
        ]

    def _stop(self, records: list[dict[str, Any]], problem: str, step: int):
        folder = self.trainer.run / NONFINITE
        partial = partial_name(folder)
        on_first_rank(lambda: delete_tree(partial))
        self.trainer.write_model(str(partial / MODEL))

        def keep():
            bad = [record for record in records if not _is_finite(record)] or records
            tensors = {
                f"{record['rank']}.{record['micro_step']}.{name}": value
                for record in bad
                for name, value in record.pop("tensors").items()
            }
            save_file(tensors, partial / BATCHES)
            for record in bad:
                record["terms"] = {name: str(value) for name, value in record["terms"].items()}
            report = {"version": 1, "step": step, "precision": self.trainer.args.precision, "batches": bad}
            write_text(partial / REPORT, json.dumps(report) + "\n")
            settle_folder(partial, folder)

        on_first_rank(keep)
        hint = "lower the learning rates, or give --skip_nonfinite"
        raise InputError(f"{problem}; to reproduce: llata-fast replay {self.trainer.run}; to go on: {hint}")


def _is_finite(record: dict[str, Any]) -> bool:
    return all(math.isfinite(value) for value in record["terms"].values())


def _problem(records: list[dict[str, Any]], step: int) -> str:
    for record in records:
        for name, value in record["terms"].items():
            if not math.isfinite(value):
                windows = ", ".join(map(str, record["windows"][:3]))
                return f"step {step}: {name} is {value} on windows {windows}, ..."
    return f"step {step}: the losses are finite, but a gradient is not"


@torch.no_grad()
def check_finite(weights: dict[str, Tensor], when: str):
    """Raise InputError with the name of the first weight that is not finite."""
    finite = torch.stack([norm.isfinite() for norm in torch._foreach_norm(list(weights.values()), math.inf)])
    if not finite.all():
        name = list(weights)[int(finite.logical_not().nonzero()[0])]
        raise InputError(f"{when}: {name} is not finite, so nothing is saved: lower the learning rates")
