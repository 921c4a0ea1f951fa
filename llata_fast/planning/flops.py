"""Count the FLOPs of any call, product by product: `torch.utils.flop_counter` plus the formulas that it lacks.

A multiply-add counts as two. Frozen weights have no weight gradients, so none are counted; the second forward pass of a
checkpointed block is counted. torch has no formula for its CPU attention; our operations define their own
(`kernels/_flops.py`).
"""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query, key, value, *args, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient, query, key, value, *args, **kwargs) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


_ON_THE_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def count_flops(call: Callable[[], object]) -> int:
    """FLOPs of one execution of `call()`; pass uncompiled code, as compiled code hides its operations."""
    with FlopCounterMode(display=False, custom_mapping=_ON_THE_CPU) as counter:
        call()
    return counter.get_total_flops()
