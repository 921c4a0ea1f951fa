"""What is counted: products and attention, backward as well, and nothing for what is frozen."""

import torch
import torch.nn.functional as F
from torch import nn

from llata_fast.planning.flops import count_flops


def test_product_and_its_backward():
    linear, x = nn.Linear(5, 7), torch.randn(3, 5)
    assert count_flops(lambda: linear(x)) == 2 * 3 * 5 * 7
    # no gradient of x
    assert count_flops(lambda: linear(x).sum().backward()) == 2 * 2 * 3 * 5 * 7
    linear.requires_grad_(False)
    x.requires_grad_(True)
    assert count_flops(lambda: linear(x).sum().backward()) == 2 * 2 * 3 * 5 * 7


def test_attention():
    """Two products forward; backward these scores again and four gradients' products."""
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 3 * 5 * 5 * 8
    assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * product
    assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward()) == (2 + 5) * product
