"""FLOPs of whatever runs, counted product by product: `torch.utils.flop_counter` plus what it does not know.

A multiply-add is two. Frozen weights have no weight gradients, so none are counted; a checkpointed block's second
forward is. torch lacks a formula for its attention on the CPU; our own operations bring theirs (`kernels/_flops.py`).
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
    """FLOPs of one `call()`, which is run; compiled code hides its operations, so pass what is not compiled."""
    with FlopCounterMode(display=False, custom_mapping=_ON_THE_CPU) as counter:
        call()
    return counter.get_total_flops()
