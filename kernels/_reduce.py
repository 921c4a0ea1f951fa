"""Second stage of the deterministic reductions: sum the partial results of all splits, in the order of the splits."""

from collections.abc import Callable

import torch
from torch import Tensor

from ._launch import device_guard, tl, triton
from .configs import config_for


@triton.jit(do_not_specialize=["num_splits"])
def _sum_splits_kernel(
    partial_ptr, first_ptr, second_ptr,
    num_splits, num_first, num_second,
    BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = num_first + num_second
    in_first = offs < num_first
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(num_splits):
        total += tl.load(partial_ptr + offs, mask=offs < size, other=0.0)
        partial_ptr += size
    tl.store(first_ptr + offs, total.to(first_ptr.dtype.element_ty), mask=in_first)
    tl.store(second_ptr + offs - num_first, total.to(second_ptr.dtype.element_ty), mask=~in_first & (offs < size))


def split_outputs(splits: int, first: Tensor, second: Tensor) -> tuple[tuple[Tensor, Tensor], int, Callable[[], None]]:
    """Where the programs of each split leave their share of two contiguous gradients.

    Returns the two tensors to write to, the distance from one split's share to the next, and the second stage to call
    afterwards. One split writes the gradients themselves; several leave fp32 partial sums, laid out as the gradients.
    """
    if splits == 1:
        return (first, second), 0, lambda: None
    size = first.numel() + second.numel()
    partial = first.new_empty(splits, size, dtype=torch.float32)

    def sum_splits() -> None:
        config = config_for("reduce_sum_splits", "any", partial)
        with device_guard(partial):
            _sum_splits_kernel[(triton.cdiv(size, config.blocks["BLOCK"]),)](
                partial, first, second,
                num_splits=splits, num_first=first.numel(), num_second=second.numel(),
                **config.launch_options(),
            )  # fmt: skip

    return (partial, partial[:, first.numel() :]), size, sum_splits
