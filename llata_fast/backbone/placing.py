"""Weights into an empty decoder, one tensor at a time: whole on every rank or, under ZeRO-3, each rank its share.

As in transformers, what decides is the DeepSpeed configuration that `TrainingArguments` announces. Under ZeRO-3 rank 0
alone reads; DeepSpeed takes a tensor apart as soon as every rank has received it, so that no rank ever holds more than
its share of the model and one tensor.
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
    """Inside, transformers makes whole models even under ZeRO-3, which would partition them, all ranks in step."""
    # transformers has a setter for it, but no getter
    announced = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = announced


def fill_decoder(
    decoder: PreTrainedModel,
    tensors: dict[str, Tensor] | None,
    dtype: torch.dtype = torch.float32,
    base_precision: str = "auto",
):
    """Give a decoder on the meta device its weights, and empty `tensors` (keys of its state dict) on the way.

    Projections are kept in `dtype` (or in `base_precision`, for products in `dtype`), all else in fp32. Under ZeRO-3
    every rank calls it, rank 0 alone with tensors: what the branches copy (norms, positions) becomes whole on every
    rank, the rest is partitioned.
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

    # without its own view of the ranks, DeepSpeed would take each process for the only one
    deepspeed.init_distributed()
    # children first: DeepSpeed takes a module with all that is below it
    for path, module in reversed(list(decoder.named_modules())):
        keys = _own(path, module)
        if keys and not (is_norm(module) or isinstance(module, nn.Embedding)):
            _partition(module, {key: tensors and _taken(tensors, key, dtype) for key in keys}, dtype)
    whole = from_first_rank(lambda: {key: _taken(tensors, key, torch.float32) for key in list(tensors)})
    decoder.load_state_dict(whole, strict=False, assign=True)


def _partition(module: nn.Module, weights: dict[str, Tensor | None], dtype: torch.dtype):
    """Each rank's share of a module's own parameters; only rank 0 knows their values."""
    import deepspeed

    for key, weight in weights.items():
        name = key.rpartition(".")[2]
        if weight is None:
            weight = torch.empty(getattr(module, name).shape, dtype=dtype)
        setattr(module, name, nn.Parameter(weight, requires_grad=False))
    # sends rank 0's values to all
    deepspeed.zero.Init(module=module, config_dict_or_path=deepspeed_config())


def finish_partitioning(model: nn.Module, dtype: torch.dtype, device: torch.device):
    """Move what is not partitioned of a model to its precision and device.

    DeepSpeed does so for models without such parameters. The others follow to the device when it partitions them.
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
    # GPT-2 keeps its matrices the other way round
    return QuantisedLinear(weight.T if isinstance(projection, Conv1D) else weight, bias, base_precision)


def _own(path: str, module: nn.Module) -> list[str]:
    return [f"{path}.{name}".removeprefix(".") for name, _ in module.named_parameters(recurse=False)]


def _taken(tensors: dict[str, Tensor], key: str, dtype: torch.dtype) -> Tensor:
    # a copy: a tensor of a mapped file would change, or end the process, with the file
    return tensors.pop(key).to(dtype, copy=True)
