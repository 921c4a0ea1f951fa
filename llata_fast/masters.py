"""Trained weights in the dtype of their products, all by one copy a step.

Under autocast they are fp32 masters, and each one's cast and its gradient's way back would be launches of their own:
some 70 a step of six blocks, which a GPU runs in less time than the host needs to start them.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class _Cast(torch.autograd.Function):
    """fp32 tensors in `dtype`, and their gradients in fp32, by a multi-tensor copy each."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, *masters: Tensor):
        # zeros in the place of a gradient that is not there would be written, and count as one
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
    """Within it the trained fp32 parameters of `modules` themselves are their casts to the dtype of autocast.

    Does nothing without autocast; in a graph that is compiled, whose casts are part of other kernels; and to weights
    that ZeRO-3 gathers.
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
    """(module, name, parameter) of every one to cast."""
    if torch.compiler.is_compiling():
        return []
    slots = []
    for module in modules:
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad or parameter.dtype != torch.float32:
                continue
            device_type = parameter.device.type
            # the meta device, for one, knows no autocast
            if not (torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)):
                return []
            if not hasattr(parameter, "ds_id"):
                slots.append((module, name, parameter))
    return slots
