"""An op's launcher as a differentiable operation: through PyTorch's dispatcher where something looks on, else past it.

The dispatcher's custom op is what `torch.compile`, fake tensors and `opcheck` see; in plain eager mode its Python side
costs several times as much as the launch, so there the same launcher runs in an `autograd.Function`.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class Operation:
    """`launcher(*args)` -> a tensor or a tuple of tensors, registered as `llata_fast::<name>`.

    Args:
        fake: the launcher's outputs without their values, of the same arguments.
        setup_context, backward: as `torch.library.register_autograd` takes them; None where it is not differentiable.

    Arguments are tensors, lists of tensors, None and numbers, annotated as `torch.library.infer_schema` asks.
    """

    def __init__(
        self,
        name: str,
        launcher: Callable,
        *,
        fake: Callable,
        setup_context: Callable | None = None,
        backward: Callable | None = None,
    ):
        def save(ctx, inputs, output):
            # zeros for outputs without a gradient would be written and never read
            ctx.set_materialize_grads(False)
            setup_context(ctx, inputs, output)

        registered = torch.library.custom_op(f"llata_fast::{name}", launcher, mutates_args=())
        registered.register_fake(fake)
        if backward is not None:
            registered.register_autograd(backward, setup_context=save)
        self.launcher, self.differentiable = launcher, backward is not None
        self.setup_context, self.backward = save, backward
        self.registered = getattr(torch.ops.llata_fast, name).default

    def __call__(self, *args):
        # a dispatch mode is what counts, traces or fakes
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
            return self.registered(*args)
        if not self.differentiable or not torch.is_grad_enabled():
            return self.launcher(*args)
        flat, lengths = _flatten(args)
        return _Eager.apply(self, lengths, *flat)


class _Eager(torch.autograd.Function):
    """The operation without the dispatcher; a list's tensors are arguments each, or autograd would miss them."""

    @staticmethod
    def forward(ctx, operation: Operation, lengths: tuple[int | None, ...], *flat):
        ctx.operation = operation
        args = _unflatten(flat, lengths)
        output = operation.launcher(*args)
        operation.setup_context(ctx, args, output)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        flat, _ = _flatten(ctx.operation.backward(ctx, *grads))
        return None, None, *flat


def _flatten(args) -> tuple[list, tuple[int | None, ...]]:
    """Arguments without their lists, and each list's length (None where there is none)."""
    flat, lengths = [], []
    for arg in args:
        is_list = isinstance(arg, list | tuple) and all(isinstance(item, Tensor | None) for item in arg)
        flat.extend(arg if is_list else [arg])
        lengths.append(len(arg) if is_list else None)
    return flat, tuple(lengths)


def _unflatten(flat, lengths) -> list:
    remaining = iter(flat)
    return [next(remaining) if length is None else [next(remaining) for _ in range(length)] for length in lengths]
