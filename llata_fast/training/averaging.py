"""A running average of the weights, which is then validated, saved and tested.

A few large steps leave the weights noisy; their exponential average is less so (arXiv 1806.03280 and many others).
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from ..run_folder import UNAVERAGED
from .resuming import reading


class WeightAverage(TrainerCallback):
    """Swaps the average into the model for evaluation and saving, and the weights back before the next step.

    The average starts as a copy of the weights: its decay at step t is min(decay, (1 + t) / (10 + t)). A checkpoint
    holds the average as the model and the weights in a separate file, so a resumed run repeats every step exactly.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.names = list(named)
        self.weights: list[torch.Tensor] = list(named.values())
        self.average: list[torch.Tensor] | None = None
        self.saved: list[torch.Tensor] | None = None
        self.steps = 0

    @torch.no_grad()
    def on_train_begin(self, args, state, control, **kwargs):
        self.steps = state.global_step
        if args.resume_from_checkpoint and (path := Path(args.resume_from_checkpoint, UNAVERAGED)).is_file():
            # the resumed model holds the average until the first step, or for good if no step is left
            self.average = [weight.clone() for weight in self.weights]
            with reading(path.parent, trust=False):
                stored = load_file(path)
                self.saved = [stored[name] for name in self.names]

    @torch.no_grad()
    def on_step_begin(self, *args, **kwargs):
        if self.saved is not None:
            torch._foreach_copy_(self.weights, self.saved)
            self.saved = None
        if self.average is None:
            # only here are the weights on their device
            self.average = [weight.clone() for weight in self.weights]

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        assert self.average is not None, "on_step_begin creates it"
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, self.weights, 1 - decay)
        self._show(control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._show(control)

    def save(self, path: Path):
        """Write the weights that training continues from; the model itself holds the average."""
        assert self.saved is not None, "the average is swapped in when a checkpoint is written"
        weights = zip(self.names, self.saved, strict=True)
        save_file({name: weight.contiguous() for name, weight in weights}, path)

    @torch.no_grad()
    def _show(self, control):
        if (control.should_evaluate or control.should_save or control.should_training_stop) and self.saved is None:
            assert self.average is not None, "on_step_begin creates it"
            self.saved = [weight.clone() for weight in self.weights]
            torch._foreach_copy_(self.weights, self.average)


class UnaveragedWeights(TrainerCallback):
    """Lets a run resumed without averaging continue from the weights instead of their average."""

    def __init__(self, model: nn.Module):
        self.weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def on_train_begin(self, args, state, control, **kwargs):
        if args.resume_from_checkpoint and (path := Path(args.resume_from_checkpoint, UNAVERAGED)).is_file():
            with reading(path.parent, trust=False):
                for name, value in load_file(path).items():
                    self.weights[name].copy_(value)
