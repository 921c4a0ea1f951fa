"""Trained weights cast to the dtype of their products, all in one copy per step.

Autocast keeps fp32 master weights, and casting each of them and its gradient would take a launch: about 70 in a step of
six blocks, which a GPU runs faster than the host can launch them.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class _Cast(torch.autograd.Function):
    """fp32 tensors cast to `dtype`, and their gradients back to fp32, by one multi-tensor copy each."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, *masters: Tensor):
        # materialised zeros would turn a missing gradient into a real one
        ctx.set_materialize_grads(False)
        return _copies(masters, dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor | None):
        wide = iter(_copies([grad for grad in grads if grad is not None], torch.float32))
        return None, *(None if grad is None else next(wide) for grad in grads)


def _copies(tensors: Iterable[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    tensors = list(tensors)
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if tensors:
        torch._foreach_copy_(copies, tensors)
    return tuple(copies)


@contextlib.contextmanager
def cast_masters(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it, the trained fp32 parameters of `modules` are replaced by their casts to autocast's dtype.

    It does nothing without autocast, in a compiled graph (whose casts are fused into other kernels), or to weights that
    ZeRO-3 gathers.
    """
    slots = _slots(modules)
    if not slots:
        yield
        return
    masters = [master for _, _, master in slots]
    casts = _Cast.apply(torch.get_autocast_dtype(masters[0].device.type), *masters)
    try:
        for (module, name, _), cast in zip(slots, casts, strict=True):
            module._parameters[name] = cast
        yield
    finally:
        for module, name, master in slots:
            module._parameters[name] = master


def _slots(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """(module, name, parameter) for every parameter to cast."""
    if torch.compiler.is_compiling():
        return []
    slots = []
    for module in modules:
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad or parameter.dtype != torch.float32:
                continue
            device_type = parameter.device.type
            # some devices, such as meta, do not support autocast
            if not (torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)):
                return []
            if not hasattr(parameter, "ds_id"):
                slots.append((module, name, parameter))
    return slots
