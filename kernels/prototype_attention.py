"""Attention of many queries over a few keys and values that all of them share.

    out[m, a] = softmax_v(scale q[m, a] . k[v, a]) @ v[:, a]

The batch is folded into the query axis, so no key is copied; there is no mask. Bound by the exponentials and the two
GEMMs. M queries, V prototypes, A heads, E head width.
Online softmax as in Dao et al., https://arxiv.org/abs/2205.14135 (BSD-3-Clause)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import autocast, check_device, check_dtype, check_shape
from ._launch import device_guard, dot_options, num_multiprocessors, num_splits, tl, triton, use_triton
from ._operation import Operation
from ._reduce import split_outputs
from .configs import config_for
from .providers import by_library


def prototype_attention_ref(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Specification and CPU path of `prototype_attention`: one sample whose query block is the whole batch."""
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))  # [1, A, M or V, E]
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[0].transpose(0, 1)


@triton.jit
def _load_head(ptr, offs, size, pid_a, E, stride_row, stride_head, stride_e, DOT_DTYPE: tl.constexpr,
               BLOCK_E: tl.constexpr):  # fmt: skip
    """Rows `offs` of one head [BLOCK, BLOCK_E], 0 beyond `size` rows and beyond E."""
    offs_e = tl.arange(0, BLOCK_E)
    ptrs = ptr + pid_a * stride_head + offs[:, None].to(tl.int64) * stride_row
    ptrs += offs_e[None, :].to(tl.int64) * stride_e
    return tl.load(ptrs, mask=(offs[:, None] < size) & (offs_e[None, :] < E), other=0.0).to(DOT_DTYPE)


@triton.jit
def _store_head(ptr, value, offs, size, pid_a, A, E, BLOCK_E: tl.constexpr):
    """Store [BLOCK, BLOCK_E] into rows `offs` of one head of a contiguous [size, A, E]."""
    offs_e = tl.arange(0, BLOCK_E)
    ptrs = ptr + (offs[:, None].to(tl.int64) * A + pid_a) * E + offs_e[None, :]
    tl.store(ptrs, value.to(ptr.dtype.element_ty), mask=(offs[:, None] < size) & (offs_e[None, :] < E))


@triton.jit(do_not_specialize=["M"])
def _fwd_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr,
    M, V, A, E,
    scale_log2,
    stride_qm, stride_qa, stride_qe, stride_kv, stride_ka, stride_ke, stride_vv, stride_va, stride_ve,
    DOT_DTYPE: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    pid_a = tl.program_id(1).to(tl.int64)
    q = _load_head(q_ptr, offs_m, M, pid_a, E, stride_qm, stride_qa, stride_qe, DOT_DTYPE, BLOCK_E)

    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for start in range(0, V, BLOCK_V):
        offs_v = start + tl.arange(0, BLOCK_V)
        k = _load_head(k_ptr, offs_v, V, pid_a, E, stride_kv, stride_ka, stride_ke, DOT_DTYPE, BLOCK_E)
        scores = tl.dot(q, tl.trans(k), input_precision=INPUT_PRECISION)  # [BLOCK_M, BLOCK_V]
        scores = tl.where(offs_v[None, :] < V, scores, float("-inf"))
        # base 2 with the scale folded in: one multiply-add and one exp2 an element
        new_max = tl.maximum(row_max, tl.max(scores, axis=1) * scale_log2)
        p = tl.exp2(scores * scale_log2 - new_max[:, None])
        shrink = tl.exp2(row_max - new_max)
        row_sum = row_sum * shrink + tl.sum(p, axis=1)
        v = _load_head(v_ptr, offs_v, V, pid_a, E, stride_vv, stride_va, stride_ve, DOT_DTYPE, BLOCK_E)
        acc = tl.dot(p.to(DOT_DTYPE), v, acc * shrink[:, None], input_precision=INPUT_PRECISION)
        row_max = new_max

    _store_head(out_ptr, acc / row_sum[:, None], offs_m, M, pid_a, A, E, BLOCK_E)
    tl.store(lse_ptr + pid_a * M + offs_m, row_max + tl.log2(row_sum), mask=offs_m < M)


@triton.jit(do_not_specialize=["M"])
def _bwd_dq_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, dq_ptr, delta_ptr,
    M, V, A, E,
    scale, scale_log2,
    stride_gm, stride_ga, stride_ge, stride_qm, stride_qa, stride_qe, stride_kv, stride_ka, stride_ke,
    stride_vv, stride_va, stride_ve, stride_om, stride_oa, stride_oe,
    DOT_DTYPE: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    pid_a = tl.program_id(1).to(tl.int64)
    q = _load_head(q_ptr, offs_m, M, pid_a, E, stride_qm, stride_qa, stride_qe, DOT_DTYPE, BLOCK_E)
    dout = _load_head(dout_ptr, offs_m, M, pid_a, E, stride_gm, stride_ga, stride_ge, DOT_DTYPE, BLOCK_E)
    out = _load_head(out_ptr, offs_m, M, pid_a, E, stride_om, stride_oa, stride_oe, DOT_DTYPE, BLOCK_E)
    lse = tl.load(lse_ptr + pid_a * M + offs_m, mask=offs_m < M, other=0.0)
    # sum_v p dp = dout . out: the kernel for dk and dv reads it from here
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), axis=1)
    tl.store(delta_ptr + pid_a * M + offs_m, delta, mask=offs_m < M)

    dq = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for start in range(0, V, BLOCK_V):
        offs_v = start + tl.arange(0, BLOCK_V)
        k = _load_head(k_ptr, offs_v, V, pid_a, E, stride_kv, stride_ka, stride_ke, DOT_DTYPE, BLOCK_E)
        v = _load_head(v_ptr, offs_v, V, pid_a, E, stride_vv, stride_va, stride_ve, DOT_DTYPE, BLOCK_E)
        scores = tl.dot(q, tl.trans(k), input_precision=INPUT_PRECISION)  # [BLOCK_M, BLOCK_V]
        # beyond V the score is 0, which is large beside a very negative lse: exp2 would be inf, and inf times 0 NaN
        p = tl.where(offs_v[None, :] < V, tl.exp2(scores * scale_log2 - lse[:, None]), 0.0)
        dp = tl.dot(dout, tl.trans(v), input_precision=INPUT_PRECISION)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(DOT_DTYPE), k, dq, input_precision=INPUT_PRECISION)
    _store_head(dq_ptr, dq * scale, offs_m, M, pid_a, A, E, BLOCK_E)


@triton.jit(do_not_specialize=["M", "rows_per_split"])
def _bwd_dkv_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    M, V, A, E, rows_per_split,
    scale, scale_log2,
    stride_gm, stride_ga, stride_ge, stride_qm, stride_qa, stride_qe, stride_kv, stride_ka, stride_ke,
    stride_vv, stride_va, stride_ve, stride_split,
    DOT_DTYPE: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    offs_v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    pid_a = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    k = _load_head(k_ptr, offs_v, V, pid_a, E, stride_kv, stride_ka, stride_ke, DOT_DTYPE, BLOCK_E)
    v = _load_head(v_ptr, offs_v, V, pid_a, E, stride_vv, stride_va, stride_ve, DOT_DTYPE, BLOCK_E)

    dk = tl.zeros([BLOCK_V, BLOCK_E], tl.float32)
    dv = tl.zeros([BLOCK_V, BLOCK_E], tl.float32)
    first_row = split * rows_per_split
    for start in range(first_row, min(first_row + rows_per_split, M), BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        q = _load_head(q_ptr, offs_m, M, pid_a, E, stride_qm, stride_qa, stride_qe, DOT_DTYPE, BLOCK_E)
        dout = _load_head(dout_ptr, offs_m, M, pid_a, E, stride_gm, stride_ga, stride_ge, DOT_DTYPE, BLOCK_E)
        lse = tl.load(lse_ptr + pid_a * M + offs_m, mask=offs_m < M, other=0.0)
        delta = tl.load(delta_ptr + pid_a * M + offs_m, mask=offs_m < M, other=0.0)
        # queries beyond M need no mask: their q, dout and delta are 0, so they add 0 to dk and dv; keys beyond V
        # may overflow, and are not stored
        scores = tl.dot(k, tl.trans(q), input_precision=INPUT_PRECISION)  # [BLOCK_V, BLOCK_M]
        p = tl.exp2(scores * scale_log2 - lse[None, :])
        dv = tl.dot(p.to(DOT_DTYPE), dout, dv, input_precision=INPUT_PRECISION)
        dp = tl.dot(v, tl.trans(dout), input_precision=INPUT_PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(DOT_DTYPE), q, dk, input_precision=INPUT_PRECISION)
    _store_head(dk_ptr + split.to(tl.int64) * stride_split, dk * scale, offs_v, V, pid_a, A, E, BLOCK_E)
    _store_head(dv_ptr + split.to(tl.int64) * stride_split, dv, offs_v, V, pid_a, A, E, BLOCK_E)


def _width(q: Tensor) -> int:
    return next((limit for limit in (64, 128) if q.shape[2] <= limit), 256)


def _config(kernel: str, q: Tensor):
    M, A, _ = q.shape
    width = _width(q)
    few = ""
    # narrow heads need few programs: with 128 queries each they would leave multiprocessors without any
    if kernel == "prototype_attention_fwd" and width == 64:
        few = "few queries, " if triton.cdiv(M, 128) * A < 2 * num_multiprocessors(q.device) else "many queries, "
    return config_for(kernel, f"E <= {width}, {few}{q.dtype.itemsize * 8}-bit", q)


def _scales(scale: float) -> dict:
    return {"scale": scale, "scale_log2": scale * math.log2(math.e)}


def _sizes_and_strides(q: Tensor, k: Tensor, v: Tensor) -> dict:
    M, A, E = q.shape
    return {
        "M": M, "V": k.shape[0], "A": A, "E": E,
        "stride_qm": q.stride(0), "stride_qa": q.stride(1), "stride_qe": q.stride(2),
        "stride_kv": k.stride(0), "stride_ka": k.stride(1), "stride_ke": k.stride(2),
        "stride_vv": v.stride(0), "stride_va": v.stride(1), "stride_ve": v.stride(2),
        # the dot's inner axis takes at least 16
        "BLOCK_E": max(16, triton.next_power_of_2(E)),
    }  # fmt: skip


def prototype_attention_fwd(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """-> out [M, A, E], base-2 log-sum-exp of the scaled scores [A, M] fp32."""
    out, lse = _empty_outputs(q, k, v, scale)
    if len(q) == 0:
        return out, lse
    config = _config("prototype_attention_fwd", q)
    with device_guard(q):
        _fwd_kernel[(triton.cdiv(len(q), config.blocks["BLOCK_M"]), q.shape[1])](
            q, k, v, out, lse,
            scale_log2=_scales(scale)["scale_log2"],
            **_sizes_and_strides(q, k, v), **dot_options(q.dtype), **config.launch_options(),
        )  # fmt: skip
    return out, lse


def _empty_outputs(q, k, v, scale):
    M, A, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(A, M, dtype=torch.float32)


def prototype_attention_bwd(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
                            scale: float) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """-> dq [M, A, E], dk, dv [V, A, E]."""
    dq, dk, dv = _empty_grads(dout, q, k, v, out, lse, scale)
    delta = torch.empty_like(lse)
    shared = {
        "stride_gm": dout.stride(0), "stride_ga": dout.stride(1), "stride_ge": dout.stride(2),
        **_sizes_and_strides(q, k, v), **_scales(scale), **dot_options(q.dtype),
    }  # fmt: skip
    M, A, _ = q.shape
    if M > 0:
        config = _config("prototype_attention_bwd_dq", q)
        with device_guard(q):
            _bwd_dq_kernel[(triton.cdiv(M, config.blocks["BLOCK_M"]), A)](
                dout, q, k, v, out, lse, dq, delta,
                stride_om=out.stride(0), stride_oa=out.stride(1), stride_oe=out.stride(2),
                **shared, **config.launch_options(),
            )  # fmt: skip

    config = _config("prototype_attention_bwd_dkv", q)
    blocks_v, blocks_m = triton.cdiv(len(k), config.blocks["BLOCK_V"]), triton.cdiv(M, config.blocks["BLOCK_M"])
    # the few key blocks alone would leave most multiprocessors idle
    splits = num_splits(q.device, config.waves, blocks_v * A, limit=blocks_m)
    targets, stride_split, sum_splits = split_outputs(splits, dk, dv)
    with device_guard(q):
        _bwd_dkv_kernel[(blocks_v, A, splits)](
            dout, q, k, v, lse, delta, *targets,
            rows_per_split=triton.cdiv(blocks_m, splits) * config.blocks["BLOCK_M"],
            stride_split=stride_split,
            **shared, **config.launch_options(),
        )  # fmt: skip
    sum_splits()
    return dq, dk, dv


def _empty_grads(dout, q, k, v, out, lse, scale):
    return tuple(t.new_empty(t.shape) for t in (q, k, v))


def _save_for_backward(ctx, inputs, output):
    q, k, v, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dout, _):
    return *_backward_op(dout, *ctx.saved_tensors, ctx.scale), None


_backward_op = Operation("prototype_attention_backward", prototype_attention_bwd, fake=_empty_grads)
_op = Operation("prototype_attention", prototype_attention_fwd, fake=_empty_outputs, setup_context=_save_for_backward,
                backward=_backward)  # fmt: skip


def prototype_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Attend from M queries to V shared keys and values, head by head, without a mask.

    Args:
        q: `[M, A, E]`, fp32, bf16 or fp16; M may be 0.
        k, v: `[V, A, E]`, q's dtype.
        scale: positive factor on the scores; None: 1 / sqrt(E).

    Returns:
        `[M, A, E]` in q's dtype; gradients flow to q, k and v.

    Raises:
        ValueError: a shape, dtype, device or the scale is wrong.
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
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not scale > 0:
        raise ValueError(f"scale: expected a positive number or None, got {scale}")
    if use_triton(q) and not by_library("prototype_attention", f"E <= {_width(q)}", q):
        return _op(q, k, v, scale)[0]
    return prototype_attention_ref(q, k, v, scale=scale)
