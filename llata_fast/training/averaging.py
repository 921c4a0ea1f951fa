"""A running average of the weights, which is what is validated, kept and tested.

Few and large steps leave the weights noisy; their exponential average is less so (arXiv 1806.03280 and many others).
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from ..run_folder import UNAVERAGED
from .resuming import reading


class WeightAverage(TrainerCallback):
    """Puts the average into the model wherever it is evaluated or saved, and the weights back before the next step.

    The average starts as the weights themselves: its decay at step t is min(decay, (1 + t) / (10 + t)). Checkpoints
    hold the average as the model, and the weights in a file of their own: a resumed run repeats every step.
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
            # the model holds the average until the first step, and for good if none is left
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
            # here the weights are on their device
            self.average = [weight.clone() for weight in self.weights]

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        assert self.average is not None, "on_step_begin makes it"
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, self.weights, 1 - decay)
        self._show(control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._show(control)

    def save(self, path: Path):
        """Write the weights that training goes on from; the model holds the average."""
        assert self.saved is not None, "the average is shown where a checkpoint is written"
        weights = zip(self.names, self.saved, strict=True)
        save_file({name: weight.contiguous() for name, weight in weights}, path)

    @torch.no_grad()
    def _show(self, control):
        if (control.should_evaluate or control.should_save or control.should_training_stop) and self.saved is None:
            assert self.average is not None, "on_step_begin makes it"
            self.saved = [weight.clone() for weight in self.weights]
            torch._foreach_copy_(self.weights, self.average)


class UnaveragedWeights(TrainerCallback):
    """A run that is resumed without averaging goes on from the weights, not from the average that was shown of them."""

    def __init__(self, model: nn.Module):
        self.weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def on_train_begin(self, args, state, control, **kwargs):
        if args.resume_from_checkpoint and (path := Path(args.resume_from_checkpoint, UNAVERAGED)).is_file():
            with reading(path.parent, trust=False):
                for name, value in load_file(path).items():
                    self.weights[name].copy_(value)
