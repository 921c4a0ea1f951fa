"""What each parallel strategy stores on a rank and communicates between ranks, as DeepSpeed and DDP do it.

Derived from their sources and checked against their behaviour by `tests/planning`. ZeRO-1 and 2 all-reduce complete
gradients bucket by bucket and gather the updated weights. ZeRO-3 gathers every weight in the forward pass, keeps those
used again within its reuse distance, and gathers the others once more in the backward pass. Frozen weights have neither
gradients nor optimizer state, so below ZeRO-3 they are never communicated.

Letters: D width, V prototypes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..backbone.quantised import quantised_bytes
from ..backbone.twin import store_frozen
from ..config import LlataConfig
from .trace import meta_model

# DeepSpeed's stage3_max_reuse_distance: number of parameters used, forward and backward, before a weight's next use
REUSE_DISTANCE = 1e9
_DDP_BUCKET_BYTES = 25 * 2**20
_ADAM_BYTES = 8


class Weights(NamedTuple):
    """A model's parameters, as counts and as bytes in their stored precision."""

    frozen: int
    trained: int
    frozen_bytes: int
    trained_bytes: int
    buffer_bytes: int
    """bytes of the prototypes"""
    gathered: int
    """bytes of all parameters too large for ZeRO-3 to keep on every rank"""
    recomputed: int
    """bytes of frozen parameters that ZeRO-3 gathers again to recompute checkpointed blocks"""
    called_again: int
    """bytes of frozen parameters that a second call of the backbone reads (two_pass)"""
    tensors: int
    """number of parameters in `gathered`"""
    largest: int
    width: int

    @property
    def element_bytes(self) -> float:
        return self.trained_bytes / self.trained


def weigh(config: LlataConfig, precision: str) -> Weights:
    """Count the parameters of `config`'s model; `precision` as in `trace.Workload`."""
    model = meta_model(config)
    if precision == "bf16":
        model.to(torch.bfloat16)
    elif precision == "autocast":
        store_frozen(model.backbone, torch.bfloat16)
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    # transformers completes DeepSpeed's configuration: stage3_param_persistence_threshold is 10 D
    threshold = 10 * config.hidden_size
    gathered = [parameter for parameter in parameters if parameter.numel() >= threshold]
    twice = (
        [parameter for parameter in frozen if parameter.numel() >= threshold]
        if getattr(model.backbone, "textual", None)
        else []
    )
    return Weights(
        frozen=_count(frozen),
        trained=_count(trained),
        frozen_bytes=sum(parameter.nbytes for parameter in frozen) - _saved(model.backbone, config.base_precision),
        trained_bytes=sum(parameter.nbytes for parameter in trained),
        buffer_bytes=sum(buffer.nbytes for buffer in model.buffers()),
        gathered=_count(gathered),
        recomputed=_recomputed(model.backbone, threshold),
        called_again=_count(twice),
        tensors=len(gathered),
        largest=max(parameter.numel() for parameter in parameters),
        width=config.hidden_size,
    )


def _saved(backbone: nn.Module, base_precision: str) -> int:
    """Bytes that the frozen projections save in `base_precision`."""
    if base_precision == "auto":
        return 0
    saved = 0
    for module in backbone.modules():
        if isinstance(module, nn.Linear | Conv1D) and not module.weight.requires_grad:
            rows, columns = module.weight.shape
            out_features, in_features = (rows, columns) if isinstance(module, nn.Linear) else (columns, rows)
            saved += module.weight.nbytes - quantised_bytes(out_features, in_features, base_precision)
    return saved


def _count(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _recomputed(backbone: nn.Module, threshold: int) -> int:
    """A block's frozen matrices except the last, which the backward pass uses first."""
    total = 0
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                sizes = [parameter.numel() for parameter in block.parameters() if not parameter.requires_grad]
                total += sum([size for size in sizes if size >= threshold][:-1])
    return total


@dataclass(frozen=True)
class Messages:
    """Bytes of tensors that one rank passes to collectives in an optimizer step, as DeepSpeed's logger counts them."""

    all_reduce: float = 0.0
    all_gather: float = 0.0
    """the rank's own shard, for each gather"""
    reduce_scatter: float = 0.0
    """the complete input, for each reduction"""
    calls: float = 0.0
    exposed_all_gather: float = 0.0
    """the part of `all_gather` after the optimizer's step, when no computation is left to hide it"""

    def sent_bytes(self, ranks: int) -> float:
        """Bytes that one rank sends in ring collectives.

        A reduce-scatter's input counts in full, as in DeepSpeed's logger: (n - 1) / n of it is sent.
        """
        reduced = 2 * (ranks - 1) / ranks * self.all_reduce
        return reduced + (ranks - 1) * self.all_gather + (self.reduce_scatter if ranks > 1 else 0.0)


def messages(stage: str, weights: Weights, ranks: int, micro_steps: int, checkpointing: bool) -> Messages:
    """The messages of one optimizer step with `micro_steps` forward and backward passes."""
    gradient = weights.trained_bytes
    if ranks == 1:
        return Messages()
    if stage == "ddp":
        # one reduction per step, whatever the number of micro-steps
        return Messages(all_reduce=gradient, calls=max(1, gradient / _DDP_BUCKET_BYTES))
    buckets = max(1, weights.trained / weights.width**2)
    if not stage.startswith("zero3"):
        # ZeRO-2 keeps only its own part of the gradient, so every micro-step's gradient is reduced
        reductions = 1 if stage == "zero1" else micro_steps
        shard = gradient / ranks
        return Messages(
            all_reduce=reductions * gradient,
            all_gather=shard,
            exposed_all_gather=shard,
            calls=reductions * buckets + 1,
        )
    total = weights.frozen + weights.trained
    element = (weights.frozen_bytes + weights.trained_bytes) / total
    again = max(0.0, weights.gathered - REUSE_DISTANCE / 2) + 2 * max(0.0, weights.called_again - REUSE_DISTANCE)
    extra = weights.recomputed if checkpointing else 0
    passes = 1 + (again + extra) / max(weights.gathered, 1)
    kept = total - weights.gathered
    return Messages(
        all_gather=(micro_steps * (weights.gathered + again + extra) + kept) * element / ranks,
        reduce_scatter=micro_steps * gradient,
        calls=micro_steps * (weights.tensors * passes + buckets) + 1,
    )


def memory(stage: str, weights: Weights, ranks: int, activations: float, gradient_growth: float) -> dict[str, float]:
    """Bytes on a rank, by part, at the peak of memory use.

    `activations` is the peak besides weights and gradients; `gradient_growth` is what stored gradients add at that
    point (without ZeRO-2 or 3).
    """
    count, element = weights.trained, weights.element_bytes
    whole = weights.frozen_bytes + weights.trained_bytes
    parts = {"weights": whole + weights.buffer_bytes, "activations": activations, "communication": 0.0}
    if stage == "ddp":
        parts |= {"gradients": gradient_growth, "optimizer": _ADAM_BYTES * count}
        if ranks > 1:
            parts["communication"] = weights.trained_bytes
        return parts
    shard = count / ranks
    bucket = element * min(weights.width**2, count)
    # its part of the weights again in fp32, and Adam's two states
    parts |= {"optimizer": (4 + _ADAM_BYTES) * shard, "communication": 2 * bucket}
    if stage.startswith("zero3"):
        kept = whole * (1 - weights.gathered / (weights.frozen + weights.trained))
        mean = whole / (weights.frozen + weights.trained)
        live = min(weights.gathered, REUSE_DISTANCE / 2 + weights.largest) * mean
        parts["weights"] = kept + (0.0 if "offload" in stage else (whole - kept) / ranks) + weights.buffer_bytes
        parts["communication"] = bucket + live
    parts["gradients"] = gradient_growth if stage == "zero1" else element * shard
    if "offload" in stage:
        # the fp32 weights and gradients are with the optimizer, in host memory
        parts["optimizer"] = 0.0
    else:
        # the optimizer flattens its part of the gradients in fp32, after activations and buffers are freed
        parts["gradients"] += max(0.0, 4 * shard - parts["activations"] - parts["communication"])
    return parts


def host_memory(stage: str, weights: Weights, ranks: int) -> float:
    """Bytes that a rank keeps in host memory: what `memory` leaves out in an offload stage."""
    if "offload" not in stage:
        return 0.0
    # master weights and gradients in fp32, and Adam's two states
    held = (4 + 4 + _ADAM_BYTES) * weights.trained / ranks
    if stage.startswith("zero3"):
        share = weights.gathered / (weights.frozen + weights.trained)
        held += share * (weights.frozen_bytes + weights.trained_bytes) / ranks
    return held
