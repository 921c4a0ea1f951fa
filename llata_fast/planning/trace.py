"""One training step of a model without its weights: FLOPs, operations and memory of activations.

The model's own forward and backward pass run on fake tensors (shapes without values), for any size within seconds. All
blocks of a deep backbone cost the same, so two shallow cuts are traced and extrapolated along a straight line.

Letters: B windows, L lookback, H horizon, C channels.
"""

import contextlib
import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..backbone.loading import cut_config
from ..backbone.twin import store_frozen
from ..config import LlataConfig
from ..kernels._launch import triton_for_fake_tensors
from ..modeling import LlataForPrediction
from .flops import count_flops

# two depths (by checkpointing) whose memory peaks at the same point as in a deep model
_CUTS = {False: (2, 3), True: (4, 5)}


@dataclass(frozen=True)
class Workload:
    """What one rank computes in one micro-step."""

    batch_size: int
    """B, windows"""
    channels: int
    """C"""
    precision: str = "fp32"
    """fp32, autocast (bf16 with trained weights in fp32) or bf16 (all weights in bf16, as with DeepSpeed)"""
    checkpointing: bool = False
    """whether blocks are recomputed in the backward pass"""
    on_gpu: bool = True
    """whether Triton kernels and flash attention run, instead of the CPU's operations"""


class Trace(NamedTuple):
    """One micro-step on one rank."""

    flops: float
    operations: float
    """number of operator calls, about the number of kernel launches"""
    activation_bytes: float
    """peak bytes besides weights and their gradients"""
    gradient_bytes: float
    """bytes of the gradients that exist at that moment"""
    peak_bytes: float
    """peak bytes besides weights, gradients included"""

    @property
    def step_bytes(self) -> float:
        """Peak bytes if gradients are kept until the optimizer's step.

        In a shallow model the peak may come when most gradients exist, in a deep or wide one when most activations do.
        Each grows linearly, but the maximum of two lines is not a line.
        """
        return max(self.peak_bytes, self.activation_bytes + self.gradient_bytes)


def meta_model(config: LlataConfig) -> LlataForPrediction:
    """The model of `config` on the meta device: shapes, names, and which parameters are trained."""
    with torch.device("meta"):
        return LlataForPrediction(copy.deepcopy(config)).train()


def trace_step(config: LlataConfig, workload: Workload) -> Trace:
    """Trace the forward and backward pass of `config` (with `backbone_config` filled in) for `workload`."""
    depth = config.num_layers
    cuts = _CUTS[workload.checkpointing]
    if depth <= max(cuts):
        return _trace(config, workload)
    shallow, deep = (_trace(_cut(config, layers), workload) for layers in cuts)
    blocks = (depth - cuts[0]) / (cuts[1] - cuts[0])
    return Trace(*(low + blocks * (high - low) for low, high in zip(shallow, deep, strict=True)))


def _cut(config: LlataConfig, num_layers: int) -> LlataConfig:
    config = copy.deepcopy(config)
    config.num_layers, config.backbone_config = num_layers, cut_config(config.backbone_config, num_layers)
    return config


def _trace(config: LlataConfig, workload: Workload) -> Trace:
    model = _prepared(meta_model(config), workload)
    with FakeTensorMode(), as_on_gpu() if workload.on_gpu else contextlib.nullcontext():
        # recomputation under fake tensors leaves reference cycles behind, unlike with real tensors
        memory = LiveMemory(collect_every=20 if workload.checkpointing else None)
        step = _step(model, config, workload)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(memory.note_gradient)
        # garbage collection then scans only objects created from here on
        gc.freeze()
        try:
            with memory:
                flops = count_flops(step)
        finally:
            gc.unfreeze()
    return Trace(flops, memory.operations, memory.peak_beside_gradients, memory.gradients_then, memory.peak)


def _prepared(model: LlataForPrediction, workload: Workload) -> LlataForPrediction:
    if workload.precision == "bf16":
        model.to(torch.bfloat16)
    elif workload.precision == "autocast":
        store_frozen(model.backbone, torch.bfloat16)
    if workload.checkpointing:
        # the method's name in transformers, and its older name
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def _step(model: LlataForPrediction, config: LlataConfig, workload: Workload) -> Callable[[], None]:
    """A training step on fake tensors; create and call it in the same mode."""
    make_fake(model)
    sizes = (workload.batch_size, config.context_length + config.prediction_length, workload.channels)
    past, future = torch.zeros(sizes).split([config.context_length, config.prediction_length], dim=1)
    covariates = {name: torch.zeros(sizes[0], *shape) for name, shape in model.covariate_shapes.items()}

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=workload.precision == "autocast"):
            loss = model(past, future, **covariates).loss
        loss.backward()

    return step


def make_fake(model: nn.Module):
    """Replace meta tensors by fake ones; tensors that are shared stay shared."""
    replaced: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if tensor not in replaced:
                    fake = torch.zeros(tensor.shape, dtype=tensor.dtype)
                    parameter = isinstance(tensor, nn.Parameter)
                    replaced[tensor] = nn.Parameter(fake, tensor.requires_grad) if parameter else fake
                tensors[name] = replaced[tensor]  # type: ignore[assignment]


class LiveMemory(TorchDispatchMode):
    """Counts operators, and the bytes of their outputs for as long as these are alive.

    With `collect_every`, garbage is collected after that many operators.
    """

    def __init__(self, collect_every: int | None = None):
        super().__init__()
        self.collect_every, self.calls = collect_every, 0
        self.live = self.peak = self.gradients = self.operations = 0
        self.peak_beside_gradients = self.gradients_then = 0
        self.seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        if self.collect_every and self.calls % self.collect_every == 0:
            gc.collect()
        given = _storages((args, kwargs))
        output = function(*args, **(kwargs or {}))
        # a view allocates nothing
        made = _storages(output) - given
        for storage in made:
            if storage not in self.seen:
                self.seen.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._forget, storage.nbytes())
        self.operations += bool(made)
        self.peak = max(self.peak, self.live)
        if self.live - self.gradients > self.peak_beside_gradients:
            self.peak_beside_gradients, self.gradients_then = self.live - self.gradients, self.gradients
        return output

    def note_gradient(self, parameter: nn.Parameter):
        self.gradients += parameter.grad.nbytes  # type: ignore[union-attr]

    def _forget(self, size: int):
        self.live -= size


def _storages(tree) -> set:
    return {leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Take the code paths for CUDA tensors."""
    attention = F.scaled_dot_product_attention

    def flash(*args, **kwargs):
        # flash attention drops out inside its kernel; on a CPU, dropout would store the attention maps
        return attention(*args, **kwargs | {"dropout_p": 0.0})

    F.scaled_dot_product_attention = flash
    try:
        with triton_for_fake_tensors():
            yield
    finally:
        F.scaled_dot_product_attention = attention
