"""Attention of many queries over a few keys and values that all of them share.

    out[m, a] = softmax_v(scale q[m, a] . k[v, a]) @ v[:, a]

The batch is folded into the query axis, so no key is copied; there is no mask. Bound by the exponentials and the two
GEMMs. M queries, V prototypes, A heads, E head width.
Online softmax as in Dao et al., https://arxiv.org/abs/2205.14135 (BSD-3-Clause)
"""
import torch.nn.functional as F
from torch import Tensor

from ._checks import autocast, check_device, check_dtype, check_shape


def prototype_attention_ref(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Specification and CPU path of `prototype_attention`: one sample whose query block is the whole batch."""
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))  # [1, A, M or V, E]
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[0].transpose(0, 1)


def prototype_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Attend from M queries to V shared keys and values, head by head, without a mask.

    Args:
        q: `[M, A, E]`, fp32, bf16 or fp16; M may be 0.
        k, v: `[V, A, E]`, q's dtype.
        scale: factor on the scores; None: 1 / sqrt(E).

    Returns:
        `[M, A, E]` in q's dtype; gradients flow to q, k and v.

    Raises:
        ValueError: a shape, dtype or device is wrong.
    """
    q, k, v = autocast(q, k, v)
    check_shape("q", q, "[M, A, E]", M=None)
    _, A, E = q.shape
    check_shape("k", k, "[V, A, E]", A=A, E=E)
    check_shape("v", v, "[V, A, E]", V=k.shape[0], A=A, E=E)
    check_dtype("q", q)
    for name, tensor in (("k", k), ("v", v)):
        check_dtype(name, tensor, (q.dtype,))
        check_device(name, tensor, q.device)
    return prototype_attention_ref(q, k, v, scale=scale)
