"""FLOPs of matrix products and attention, forward and backward; frozen weights have no gradient to count."""

import torch
import torch.nn.functional as F
from torch import nn

from llata_fast.planning.flops import count_flops


def test_product_and_its_backward():
    linear, x = nn.Linear(5, 7), torch.randn(3, 5)
    assert count_flops(lambda: linear(x)) == 2 * 3 * 5 * 7
    # x has no gradient
    assert count_flops(lambda: linear(x).sum().backward()) == 2 * 2 * 3 * 5 * 7
    linear.requires_grad_(False)
    x.requires_grad_(True)
    assert count_flops(lambda: linear(x).sum().backward()) == 2 * 2 * 3 * 5 * 7


def test_attention():
    """Forward is two products; backward computes the scores again and four products for the gradients."""
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 3 * 5 * 5 * 8
    assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * product
    assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward()) == (2 + 5) * product
