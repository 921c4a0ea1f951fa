"""A running average of the weights, which is what is validated, kept and tested.

Few and large steps leave the weights noisy; their exponential average is less so (arXiv 1806.03280 and many others).
"""

import torch
from torch import nn
from transformers import TrainerCallback


class WeightAverage(TrainerCallback):
    """Puts the average into the model wherever it is evaluated or saved, and the weights back before the next step.

    The average starts as the weights themselves: its decay at step t is min(decay, (1 + t) / (10 + t)). Checkpoints
    hold the average, so that a resumed run goes on from it.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.average: list[torch.Tensor] | None = None
        self.saved: list[torch.Tensor] | None = None
        self.steps = 0

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
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, self.weights, 1 - decay)
        self._show(control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._show(control)

    @torch.no_grad()
    def _show(self, control):
        if (control.should_evaluate or control.should_save or control.should_training_stop) and self.saved is None:
            self.saved = [weight.clone() for weight in self.weights]
            torch._foreach_copy_(self.weights, self.average)
