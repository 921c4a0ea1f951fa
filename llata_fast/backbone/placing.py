"""Fill an empty decoder with weights, one tensor at a time: complete on every rank, or partitioned under ZeRO-3.

As in transformers, the DeepSpeed configuration of the current `TrainingArguments` decides which. Under ZeRO-3 only rank
0 reads, and DeepSpeed partitions each tensor as soon as every rank has received it, so no rank ever holds more than its
share of the model plus one tensor.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as integration
from transformers.integrations import deepspeed_config, is_deepspeed_zero3_enabled
from transformers.pytorch_utils import Conv1D

from ..ranks import from_first_rank
from .branched import is_norm
from .quantised import QuantisedLinear


@contextmanager
def whole_models() -> Iterator[None]:
    """Inside, transformers builds complete models even under ZeRO-3, where it would partition them on all ranks."""
    # transformers has a setter for this configuration, but no getter
    announced = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = announced


def fill_decoder(
    decoder: PreTrainedModel,
    tensors: dict[str, Tensor],
    dtype: torch.dtype = torch.float32,
    base_precision: str = "auto",
):
    """Move the weights `tensors` (keys of its state dict) into a decoder on the meta device, emptying `tensors`.

    Projections are stored in `dtype` (or in `base_precision`, for products in `dtype`), all else in fp32. Under ZeRO-3
    every rank calls it, and only rank 0 has tensors. What the branches copy (norms, positions) becomes complete on
    every rank; the rest is partitioned.
    """
    if not is_deepspeed_zero3_enabled():
        projections = {path: module for path, module in decoder.named_modules() if _is_projection(module)}
        in_dtype = {key for path, module in projections.items() for key in _own(path, module)}
        if base_precision != "auto":
            for path, module in projections.items():
                own = [_taken(tensors, key, dtype) for key in _own(path, module)]
                decoder.set_submodule(path, _quantised(module, *own, base_precision=base_precision))
        weights = {key: _taken(tensors, key, dtype if key in in_dtype else torch.float32) for key in list(tensors)}
        decoder.load_state_dict(weights, strict=base_precision == "auto", assign=True)
        return
    import deepspeed

    # otherwise DeepSpeed would assume that each process is the only rank
    deepspeed.init_distributed()
    # children first: DeepSpeed partitions a module together with everything below it
    for path, module in reversed(list(decoder.named_modules())):
        keys = _own(path, module)
        if keys and not (is_norm(module) or isinstance(module, nn.Embedding)):
            _partition(module, {key: _taken(tensors, key, dtype) if tensors else None for key in keys}, dtype)
    whole = from_first_rank(lambda: {key: _taken(tensors, key, torch.float32) for key in list(tensors)})
    decoder.load_state_dict(whole, strict=False, assign=True)


def _partition(module: nn.Module, weights: dict[str, Tensor | None], dtype: torch.dtype):
    """Partition a module's own parameters over the ranks; only rank 0 knows their values."""
    import deepspeed

    for key, weight in weights.items():
        name = key.rpartition(".")[2]
        if weight is None:
            weight = torch.empty(getattr(module, name).shape, dtype=dtype)
        setattr(module, name, nn.Parameter(weight, requires_grad=False))
    # this broadcasts rank 0's values
    deepspeed.zero.Init(module=module, config_dict_or_path=deepspeed_config())


def finish_partitioning(model: nn.Module, dtype: torch.dtype, device: torch.device):
    """Move the parts of a model that are not partitioned to their precision and device.

    DeepSpeed does this only for models without partitioned parameters; those follow when it partitions them.
    """
    if not any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return
    for parameter in model.parameters():
        if not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(dtype)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def _is_projection(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _quantised(
    projection: nn.Module, weight: Tensor, bias: Tensor | None = None, *, base_precision: str
) -> QuantisedLinear:
    # GPT-2 stores its matrices transposed
    return QuantisedLinear(weight.T if isinstance(projection, Conv1D) else weight, bias, base_precision)


def _own(path: str, module: nn.Module) -> list[str]:
    return [f"{path}.{name}".removeprefix(".") for name, _ in module.named_parameters(recurse=False)]


def _taken(tensors: dict[str, Tensor], key: str, dtype: torch.dtype) -> Tensor:
    # copy: a memory-mapped tensor would change with its file, or crash the process
    return tensors.pop(key).to(dtype, copy=True)
