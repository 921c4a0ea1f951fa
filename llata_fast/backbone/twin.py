"""The twin pass: both branches of LLaTA in one call of one frozen backbone.

The batch is [time; text]: in training, the first half of the rows belongs to the temporal branch and the second half to
the textual branch; in evaluation, all rows are temporal. The temporal branch's trained parts (LoRA, norms, positions)
wrap the frozen modules and act on its rows only. A row's position decides its branch: nothing is switched on or off
around a call, so a checkpointed block recomputes exactly what it computed before. The frozen weights exist once, are
read once, and under ZeRO-3 are gathered once per direction.

`two_pass` runs the same branches in two calls that share the frozen weights: the baseline of the twin pass.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from ..errors import InputError
from .blocks import run_blocks, runs_blocks
from .branched import LoraLinear, TwinNorm, TwinPositions, is_norm

# the attention projections of transformers' families, fused or separate
LORA_TARGETS = ("c_attn", "q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "W_pack")


class NoPositions(nn.Module):
    """Replaces a backbone's position embedding, as positions are already added to its input: zero everywhere."""

    def forward(self, position_ids: Tensor) -> Tensor:
        return torch.zeros((), device=position_ids.device)


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every (parent, attribute, child), listed before any child is replaced."""
    yield from [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]


def wrap_branches(model: PreTrainedModel, *, rank: int, alpha: float, dropout: float, twin: bool):
    """Freeze `model`, and wrap its attention projections (if rank > 0) and norms, in place.

    Raises:
        InputError: no attention projection has a known name (`LORA_TARGETS`).
    """
    model.requires_grad_(False)
    found = False
    for parent, name, child in _children(model):
        if is_norm(child):
            setattr(parent, name, TwinNorm(child, twin, last=parent is model))
        elif rank and name in LORA_TARGETS:
            setattr(parent, name, LoraLinear(child, rank, alpha, dropout, twin))
            found = True
    if rank and not found:
        raise InputError(
            f"no attention projection of {type(model).__name__} is called {', '.join(LORA_TARGETS)}: use --lora_r 0"
        )


class TwinBackbone(nn.Module):
    """The frozen backbone with its two branches.

    Args:
        model: decoder without word embedding (`build_backbone`); its modules are wrapped in place.
        mode: twin, two_pass, or temporal for a backbone without textual rows.
    """

    def __init__(self, model: PreTrainedModel, *, rank: int, alpha: float, dropout: float, mode: str = "twin"):
        super().__init__()
        twin = mode == "twin"
        self.positions = None
        if (learned := getattr(model, "wpe", None)) is not None:
            self.positions = TwinPositions(learned, twin=mode != "temporal")
            model.wpe = NoPositions()
        self.textual = _sharing_copy(model) if mode == "two_pass" else None
        wrap_branches(model, rank=rank, alpha=alpha, dropout=dropout, twin=twin)
        self.model = model
        for decoder in (None if runs_blocks(model) else model, self.textual):
            if decoder is not None:
                # left to the first call, it would take a lock, which breaks the graph of a compiled call
                maybe_install_capturing_hooks(decoder)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """tokens [rows, T, D] -> num_layers + 1 features [rows, T, D].

        In training the rows are [time; text], in evaluation time only. The features are the inputs of every block, then
        the final norm's output plus `tokens` (the residual in step 4 of the method).
        """
        placed = tokens if self.positions is None else self.positions(tokens)
        if self.textual is not None and self.training:
            time, text = placed.chunk(2)
            pairs = zip(self._features(self.model, time), self._features(self.textual, text), strict=True)
            features = tuple(torch.cat(pair) for pair in pairs)
        else:
            features = run_blocks(self.model, placed) if runs_blocks(self.model) else self._features(self.model, placed)
        return *features[:-1], features[-1] + tokens

    @staticmethod
    def _features(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, ...]:
        return model(inputs_embeds=tokens, use_cache=False, output_hidden_states=True).hidden_states

    def frozen_keys(self, prefix: str = "") -> set[str]:
        """State-dict keys of the weights from the pre-trained source."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {prefix + key for key in self.state_dict() if key not in trained}

    def shared_keys(self, prefix: str = "") -> set[str]:
        """State-dict keys that name a weight a second time (in two_pass)."""
        return {prefix + key for key in self.state_dict() if key.startswith("textual.")}

    def merge(self) -> PreTrainedModel:
        """Fold LoRA, tuned norms and temporal positions into the backbone, in place: a plain transformers model."""
        for parent, name, child in _children(self.model):
            if isinstance(child, LoraLinear | TwinNorm):
                setattr(parent, name, child.merged())
        if self.positions is not None:
            self.model.wpe = self.positions.time.requires_grad_(False)
        return self.model


class PlainBackbone(nn.Module):
    """A transformers decoder in place of a `TwinBackbone`: a merged temporal branch, or a decoder trained as a whole.

    tokens [rows, T, D] -> (features [rows, T, D],): the last features, with the residual.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def frozen_keys(self, prefix: str = "") -> set[str]:
        return set()

    def shared_keys(self, prefix: str = "") -> set[str]:
        return set()

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.model(inputs_embeds=tokens, use_cache=False).last_hidden_state + tokens,)


def store_frozen(module: nn.Module, dtype: torch.dtype):
    """Store the frozen projections of `module` in `dtype`, so that autocast to it need not cast them in each step.

    Norms stay unchanged, as autocast computes them in fp32.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear | Conv1D) and not child.weight.requires_grad:
            child.to(dtype)


def _sharing_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A second module tree over the same (frozen) parameters and buffers."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in shared}).requires_grad_(False)
