"""Patch embedding of a raw series: instance normalisation, right-aligned patches and a linear layer in one op.

    loc = mean_l x,  scale = sqrt(mean_l (x - loc)^2 + eps)                        over observed values
    tokens[b, c, n] = weight @ ((x[b, first + n S : first + n S + P, c] - loc) / scale) + bias
    first = (L - P) mod S, so that the newest value is always in a patch

Missing values are left out of the statistics and enter the patches as 0. Small P is bound by writing the tokens,
P = L by the GEMM. B windows, L lookback, C channels, P patch length, S patch stride, N patches, D width.
Statistics as in Kim et al., ICLR 2022, https://openreview.net/forum?id=cGDAkQo1C0p
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import autocast, check_device, check_dtype, check_shape
from ._launch import device_guard, dot_options, num_splits, tl, triton, use_triton
from ._operation import Operation
from ._reduce import split_outputs
from .configs import config_for
from .providers import by_library


def _window_stats(x: Tensor, observed_mask: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, L, C] -> x - loc (0 where missing) [B, L, C], loc, scale [B, C]."""
    # x - first is exact where x is far from 0 and varies little: the two passes then lose nothing to its level
    if observed_mask is None:
        first = x[:, :1]
        centred = x - first
        mean = centred.mean(1, keepdim=True)
        centred = centred.sub_(mean)
        variance = centred.square().mean(1)
    else:
        first = x.gather(1, observed_mask.to(torch.uint8).argmax(1, keepdim=True))
        first = first.where(observed_mask.any(1, keepdim=True), 0)
        count = observed_mask.sum(1, keepdim=True).clamp(min=1)
        mean = (x - first).where(observed_mask, 0).sum(1, keepdim=True) / count
        centred = (x - first - mean).where(observed_mask, 0)
        variance = centred.square().sum(1) / count[:, 0]
    return centred, (first + mean)[:, 0], (variance + eps).sqrt()


def patch_embed_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    patch_length: int,
    patch_stride: int,
    observed_mask: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Specification and CPU path of `patch_embed`; float64 throughout if x is float64."""
    x = x.detach()
    centred, loc, scale = _window_stats(x if x.dtype == torch.float64 else x.float(), observed_mask, eps)
    normalised = (centred / scale[:, None]).to(weight.dtype).transpose(1, 2)  # [B, C, L]
    first = (x.shape[1] - patch_length) % patch_stride
    patches = normalised[..., first:].unfold(-1, patch_length, patch_stride)  # [B, C, N, P]
    return F.linear(patches, weight, bias), loc, scale


@triton.jit
def _two_sum(a, b):
    """a + b as a rounded sum and the part that rounding lost."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


@triton.jit
def _load_values(x_row, mask_row, offs_l, in_range, stride_xl, stride_ol, HAS_MASK: tl.constexpr):
    """Time steps offs_l of the rows pointed at, in fp32, 0 where missing or out of range; and which are observed."""
    offs_l = offs_l.to(tl.int64)
    observed = in_range
    if HAS_MASK:
        observed = in_range & (tl.load(mask_row + offs_l * stride_ol, mask=in_range, other=0) != 0)
    return tl.load(x_row + offs_l * stride_xl, mask=observed, other=0.0).to(tl.float32), observed


@triton.jit
def _first_observed(x_row, mask_row, in_row, L, stride_xl, stride_ol, HAS_MASK: tl.constexpr, BLOCK_L: tl.constexpr):
    """Each row's first observed value, 0 if it has none."""
    if HAS_MASK:
        first = tl.zeros_like(in_row.to(tl.int32)) + L
        for start in range(0, L, BLOCK_L):
            offs_l = start + tl.arange(0, BLOCK_L)[:, None]
            mask_ptrs = mask_row + offs_l.to(tl.int64) * stride_ol
            observed = tl.load(mask_ptrs, mask=(offs_l < L) & in_row, other=0) != 0  # [BLOCK_L, BLOCK_R]
            first = tl.minimum(first, tl.min(tl.where(observed, offs_l, L), axis=0, keep_dims=True))
        in_row = in_row & (first < L)
        x_row += first.to(tl.int64) * stride_xl
    return tl.load(x_row, mask=in_row, other=0.0).to(tl.float32)


@triton.jit
def _row_stats(x_row, mask_row, in_row, L, eps, stride_xl, stride_ol, HAS_MASK: tl.constexpr, BLOCK_L: tl.constexpr):
    """loc (rounded, and what rounding lost) and scale of each row [1, BLOCK_R], in two passes over the window."""
    x_first = _first_observed(x_row, mask_row, in_row, L, stride_xl, stride_ol, HAS_MASK, BLOCK_L)
    count = tl.zeros_like(x_first)
    total = tl.zeros_like(x_first)
    for start in range(0, L, BLOCK_L):
        offs_l = start + tl.arange(0, BLOCK_L)[:, None]
        in_range = (offs_l < L) & in_row
        x, observed = _load_values(x_row, mask_row, offs_l, in_range, stride_xl, stride_ol, HAS_MASK)
        count += tl.sum(observed.to(tl.float32), axis=0, keep_dims=True)
        total += tl.sum(tl.where(observed, x - x_first, 0.0), axis=0, keep_dims=True)
    # a row without observed values has only zeros to divide
    count = tl.maximum(count, 1.0)
    loc, loc_rest = _two_sum(x_first, total / count)

    squares = tl.zeros_like(x_first)
    for start in range(0, L, BLOCK_L):
        offs_l = start + tl.arange(0, BLOCK_L)[:, None]
        in_range = (offs_l < L) & in_row
        x, observed = _load_values(x_row, mask_row, offs_l, in_range, stride_xl, stride_ol, HAS_MASK)
        centred = tl.where(observed, (x - loc) - loc_rest, 0.0)
        squares += tl.sum(centred * centred, axis=0, keep_dims=True)
    return loc, loc_rest, tl.sqrt(squares / count + eps)


@triton.jit
def _load_patches(x_row, mask_row, start_l, offs_p, in_patch, P, loc, loc_rest, inverse, stride_xl, stride_ol,
                  HAS_MASK: tl.constexpr):  # fmt: skip
    """Steps offs_p [BLOCK_P, 1] of the patches that begin at start_l, normalised, in fp32; 0 where missing."""
    in_range = (offs_p < P) & (in_patch if len(in_patch.shape) == 2 else in_patch[None, :])
    x, observed = _load_values(x_row, mask_row, start_l + offs_p, in_range, stride_xl, stride_ol, HAS_MASK)
    return tl.where(observed, ((x - loc) - loc_rest) * inverse, 0.0)


@triton.jit
def _load_weight(weight_row, start, P, in_d, stride_wp, BLOCK_P: tl.constexpr):
    """Columns from `start` on of the rows pointed at, transposed: [BLOCK_P, BLOCK_D]."""
    offs_p = start + tl.arange(0, BLOCK_P)[:, None]
    return tl.load(weight_row + offs_p.to(tl.int64) * stride_wp, mask=(offs_p < P) & in_d[None, :], other=0.0)


@triton.jit(do_not_specialize=["R", "tiles_per_program"])
def _fwd_kernel(
    x_ptr, mask_ptr, weight_ptr, bias_ptr, tokens_ptr, loc_ptr, loc_rest_ptr, scale_ptr,
    R, C, L, N, P, D, first, patch_stride, tiles_per_program,
    eps,
    stride_xb, stride_xl, stride_xc, stride_ob, stride_ol, stride_oc, stride_wd, stride_wp, stride_bias,
    HAS_MASK: tl.constexpr, WHOLE_PATCH: tl.constexpr, DOT_DTYPE: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """R = B C rows; a tile is BLOCK_N patches of BLOCK_R rows, the row running faster, times BLOCK_D of the width."""
    BLOCK_M: tl.constexpr = BLOCK_N * BLOCK_R
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
    b, c = (row // C).to(tl.int64), (row % C).to(tl.int64)
    x_row, mask_row = x_ptr + b * stride_xb + c * stride_xc, mask_ptr + b * stride_ob + c * stride_oc
    loc, loc_rest, scale = _row_stats(x_row, mask_row, row < R, L, eps, stride_xl, stride_ol, HAS_MASK, BLOCK_L)
    if tl.program_id(1) == 0:
        tl.store(loc_ptr + row, loc, mask=row < R)
        tl.store(loc_rest_ptr + row, loc_rest, mask=row < R)
        tl.store(scale_ptr + row, scale, mask=row < R)

    # the rows' statistics, once for each of their BLOCK_N patches
    loc = tl.reshape(tl.broadcast_to(loc, (BLOCK_N, BLOCK_R)), (1, BLOCK_M))
    loc_rest = tl.reshape(tl.broadcast_to(loc_rest, (BLOCK_N, BLOCK_R)), (1, BLOCK_M))
    inverse = tl.reshape(tl.broadcast_to(1.0 / scale, (BLOCK_N, BLOCK_R)), (1, BLOCK_M))
    offs_m = tl.arange(0, BLOCK_M)
    row = tl.program_id(0) * BLOCK_R + offs_m % BLOCK_R
    b, c = (row // C).to(tl.int64), (row % C).to(tl.int64)
    x_row = (x_ptr + b * stride_xb + c * stride_xc)[None, :]
    mask_row = (mask_ptr + b * stride_ob + c * stride_oc)[None, :]

    tiles_n = tl.cdiv(N, BLOCK_N)
    first_tile = tl.program_id(1) * tiles_per_program
    last_tile = min(first_tile + tiles_per_program, tiles_n * tl.cdiv(D, BLOCK_D))
    # patches run faster than the width: a block of the weight serves them all
    for block in range(first_tile // tiles_n, tl.cdiv(last_tile, tiles_n)):
        offs_d = block * BLOCK_D + tl.arange(0, BLOCK_D)
        in_d = offs_d < D
        bias = tl.load(bias_ptr + offs_d.to(tl.int64) * stride_bias, mask=in_d, other=0.0).to(tl.float32)
        weight_row = weight_ptr + offs_d[None, :].to(tl.int64) * stride_wd
        if WHOLE_PATCH:
            weight = _load_weight(weight_row, 0, P, in_d, stride_wp, BLOCK_P)
        for tile_n in range(max(first_tile - block * tiles_n, 0), min(last_tile - block * tiles_n, tiles_n)):
            offs_n = tile_n * BLOCK_N + offs_m // BLOCK_R
            in_patch = (row < R) & (offs_n < N)
            start_l = first + (offs_n * patch_stride)[None, :]
            acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            if WHOLE_PATCH:
                patches = _load_patches(
                    x_row, mask_row, start_l, tl.arange(0, BLOCK_P)[:, None], in_patch, P, loc, loc_rest, inverse,
                    stride_xl, stride_ol, HAS_MASK,
                )  # fmt: skip
                acc = tl.dot(
                    tl.trans(patches.to(DOT_DTYPE)), weight.to(DOT_DTYPE), acc, input_precision=INPUT_PRECISION
                )
            else:
                for start in range(0, P, BLOCK_P):
                    patches = _load_patches(
                        x_row, mask_row, start_l, start + tl.arange(0, BLOCK_P)[:, None], in_patch, P, loc, loc_rest,
                        inverse, stride_xl, stride_ol, HAS_MASK,
                    )  # fmt: skip
                    weight = _load_weight(weight_row, start, P, in_d, stride_wp, BLOCK_P)
                    acc = tl.dot(
                        tl.trans(patches.to(DOT_DTYPE)), weight.to(DOT_DTYPE), acc, input_precision=INPUT_PRECISION
                    )
            tokens = (acc + bias[None, :]).to(tokens_ptr.dtype.element_ty)
            token_ptrs = tokens_ptr + ((row.to(tl.int64) * N + offs_n) * D)[:, None] + offs_d[None, :]
            tl.store(token_ptrs, tokens, mask=in_patch[:, None] & in_d[None, :])


@triton.jit(do_not_specialize=["R"])
def _normalise_kernel(
    x_ptr, mask_ptr, loc_ptr, loc_rest_ptr, scale_ptr, patches_ptr,
    R, C, L, N, P, first, patch_stride,
    eps,
    stride_xb, stride_xl, stride_xc, stride_ob, stride_ol, stride_oc,
    HAS_MASK: tl.constexpr, HAS_STATS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """The normalised patches [R, N, P] of BLOCK_R rows; their statistics are made, or read if they are there."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
    in_row = row < R
    b, c = (row // C).to(tl.int64), (row % C).to(tl.int64)
    x_row, mask_row = x_ptr + b * stride_xb + c * stride_xc, mask_ptr + b * stride_ob + c * stride_oc
    if HAS_STATS:
        loc = tl.load(loc_ptr + row, mask=in_row, other=0.0)
        loc_rest = tl.load(loc_rest_ptr + row, mask=in_row, other=0.0)
        scale = tl.load(scale_ptr + row, mask=in_row, other=1.0)
    else:
        loc, loc_rest, scale = _row_stats(x_row, mask_row, in_row, L, eps, stride_xl, stride_ol, HAS_MASK, BLOCK_L)
        tl.store(loc_ptr + row, loc, mask=in_row)
        tl.store(loc_rest_ptr + row, loc_rest, mask=in_row)
        tl.store(scale_ptr + row, scale, mask=in_row)
    inverse = 1.0 / scale
    for n in range(0, N):
        for start in range(0, P, BLOCK_L):
            offs_p = start + tl.arange(0, BLOCK_L)[:, None]
            patches = _load_patches(
                x_row, mask_row, first + n * patch_stride, offs_p, in_row, P, loc, loc_rest, inverse,
                stride_xl, stride_ol, HAS_MASK,
            )  # fmt: skip
            # steps along the fast axis of what is written
            offs_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
            out_p = start + tl.arange(0, BLOCK_L)[None, :]
            offs = (offs_r.to(tl.int64) * N + n) * P + out_p
            tl.store(
                patches_ptr + offs, tl.trans(patches).to(patches_ptr.dtype.element_ty), mask=(offs_r < R) & (out_p < P)
            )


@triton.jit(do_not_specialize=["R", "tiles_per_split"])
def _bwd_kernel(
    dtokens_ptr, x_ptr, mask_ptr, loc_ptr, loc_rest_ptr, scale_ptr, dweight_ptr, dbias_ptr,
    R, C, N, P, D, first, patch_stride, tiles_per_split,
    stride_gb, stride_gc, stride_gn, stride_gd, stride_xb, stride_xl, stride_xc, stride_ob, stride_ol, stride_oc,
    stride_split,
    HAS_MASK: tl.constexpr, DOT_DTYPE: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One block of dweight, summed over the tiles of BLOCK_N patches of BLOCK_R rows that belong to one split."""
    offs_m = tl.arange(0, BLOCK_N * BLOCK_R)
    offs_d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    offs_p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_d = offs_d < D
    split = tl.program_id(2)
    tiles_n = tl.cdiv(N, BLOCK_N)
    first_tile = split * tiles_per_split
    dweight = tl.zeros([BLOCK_D, BLOCK_P], tl.float32)
    dbias = tl.zeros([BLOCK_D], tl.float32)
    for tile in range(first_tile, min(first_tile + tiles_per_split, tl.cdiv(R, BLOCK_R) * tiles_n)):
        row = tile // tiles_n * BLOCK_R + offs_m % BLOCK_R
        offs_n = tile % tiles_n * BLOCK_N + offs_m // BLOCK_R
        in_patch = (row < R) & (offs_n < N)
        b, c = (row // C).to(tl.int64), (row % C).to(tl.int64)
        dtokens_row = dtokens_ptr + b * stride_gb + c * stride_gc + offs_n.to(tl.int64) * stride_gn
        dtokens_ptrs = dtokens_row[:, None] + offs_d[None, :].to(tl.int64) * stride_gd
        dtokens = tl.load(dtokens_ptrs, mask=in_patch[:, None] & in_d[None, :], other=0.0)  # [BLOCK_M, BLOCK_D]

        loc = tl.load(loc_ptr + row, mask=row < R, other=0.0)[None, :]
        loc_rest = tl.load(loc_rest_ptr + row, mask=row < R, other=0.0)[None, :]
        inverse = 1.0 / tl.load(scale_ptr + row, mask=row < R, other=1.0)[None, :]
        x_row = (x_ptr + b * stride_xb + c * stride_xc)[None, :]
        mask_row = (mask_ptr + b * stride_ob + c * stride_oc)[None, :]
        patches = _load_patches(
            x_row, mask_row, first + (offs_n * patch_stride)[None, :], offs_p[:, None], in_patch, P, loc, loc_rest,
            inverse, stride_xl, stride_ol, HAS_MASK,
        ).to(DOT_DTYPE)  # fmt: skip

        dtokens_t = tl.trans(dtokens.to(DOT_DTYPE))
        dweight = tl.dot(dtokens_t, tl.trans(patches), dweight, input_precision=INPUT_PRECISION)
        dbias += tl.sum(dtokens.to(tl.float32), axis=0)

    dweight_ptr += split.to(tl.int64) * stride_split
    dbias_ptr += split.to(tl.int64) * stride_split
    dweight_ptrs = dweight_ptr + offs_d[:, None].to(tl.int64) * P + offs_p[None, :]
    tl.store(dweight_ptrs, dweight.to(dweight_ptr.dtype.element_ty), mask=in_d[:, None] & (offs_p[None, :] < P))
    # every block of P has summed the same
    if tl.program_id(1) == 0:
        tl.store(dbias_ptr + offs_d, dbias.to(dbias_ptr.dtype.element_ty), mask=in_d)


def _shape_class(num_patches: int, weight: Tensor) -> str:
    return "patches" if num_patches >= 8 else "long window" if weight.shape[1] > 256 else "short window"


def _config(kernel: str, num_patches: int, weight: Tensor):
    return config_for(kernel, f"{_shape_class(num_patches, weight)}, {weight.dtype.itemsize * 8}-bit", weight)


def _mask_arguments(x: Tensor, observed_mask: Tensor | None) -> tuple[Tensor, dict]:
    # without a mask its pointer is never read, but it has to be one
    mask = x if observed_mask is None else observed_mask
    stride_ob, stride_ol, stride_oc = mask.stride()
    has_mask = observed_mask is not None
    return mask, {"stride_ob": stride_ob, "stride_ol": stride_ol, "stride_oc": stride_oc, "HAS_MASK": has_mask}


def _geometry(x: Tensor, weight: Tensor, patch_stride: int) -> dict:
    B, L, C = x.shape
    D, P = weight.shape
    return {
        "R": B * C,
        "C": C,
        "N": (L - P) // patch_stride + 1,
        "P": P,
        "D": D,
        "first": (L - P) % patch_stride,
        "patch_stride": patch_stride,
    }


def patch_embed_fwd(
    x: Tensor, weight: Tensor, bias: Tensor, observed_mask: Tensor | None, patch_stride: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> tokens [B, C, N, D], loc, what rounding took from loc, scale [B, C]."""
    outputs = _empty_outputs(x, weight, bias, observed_mask, patch_stride, eps)
    sizes = _geometry(x, weight, patch_stride)
    if sizes["R"] == 0:
        return outputs
    if by_library("patch_embed", _shape_class(sizes["N"], weight), weight):
        tokens, *stats = outputs
        patches = _normalise(x, weight, observed_mask, patch_stride, eps, stats, has_stats=False)
        torch.addmm(bias, patches, weight.t(), out=tokens.view(-1, sizes["D"]))
        return outputs
    config = _config("patch_embed_fwd", sizes["N"], weight)
    rows = triton.cdiv(sizes["R"], config.blocks["BLOCK_R"])
    tiles = triton.cdiv(sizes["N"], config.blocks["BLOCK_N"]) * triton.cdiv(sizes["D"], config.blocks["BLOCK_D"])
    tiles_per_program = triton.cdiv(tiles, num_splits(x.device, config.waves, rows, limit=tiles))
    mask, mask_options = _mask_arguments(x, observed_mask)
    with device_guard(x):
        _fwd_kernel[(rows, triton.cdiv(tiles, tiles_per_program))](
            x, mask, weight, bias, *outputs,
            L=x.shape[1], tiles_per_program=tiles_per_program, eps=eps, **sizes,
            stride_xb=x.stride(0), stride_xl=x.stride(1), stride_xc=x.stride(2),
            stride_wd=weight.stride(0), stride_wp=weight.stride(1), stride_bias=bias.stride(0),
            WHOLE_PATCH=sizes["P"] <= config.blocks["BLOCK_P"],
            **mask_options, **dot_options(weight.dtype), **config.launch_options(),
        )  # fmt: skip
    return outputs


def _normalise(x, weight, observed_mask, patch_stride, eps, stats, has_stats) -> Tensor:
    """Normalised patches [B C N, P] in weight's dtype; fills `stats` (loc, its lost part, scale) or reads them."""
    sizes = _geometry(x, weight, patch_stride)
    patches = weight.new_empty(sizes["R"] * sizes["N"], sizes["P"])
    del sizes["D"]
    config = config_for("patch_embed_normalise", "any", x)
    mask, mask_options = _mask_arguments(x, observed_mask)
    with device_guard(x):
        _normalise_kernel[(triton.cdiv(sizes["R"], config.blocks["BLOCK_R"]),)](
            x, mask, *stats, patches,
            L=x.shape[1], eps=eps, **sizes,
            stride_xb=x.stride(0), stride_xl=x.stride(1), stride_xc=x.stride(2),
            HAS_STATS=has_stats, **mask_options, **config.launch_options(),
        )  # fmt: skip
    return patches


def _empty_outputs(x, weight, bias, observed_mask, patch_stride, eps):
    B, L, C = x.shape
    D, P = weight.shape
    tokens = weight.new_empty(B, C, (L - P) // patch_stride + 1, D)
    return tokens, *(x.new_empty(B, C, dtype=torch.float32) for _ in range(3))


def patch_embed_bwd(
    dtokens: Tensor,
    x: Tensor,
    weight: Tensor,
    loc: Tensor,
    loc_rest: Tensor,
    scale: Tensor,
    observed_mask: Tensor | None,
    patch_stride: int,
) -> tuple[Tensor, Tensor]:
    """-> dweight [D, P], dbias [D]."""
    dweight, dbias = _empty_grads(dtokens, x, weight, loc, loc_rest, scale, observed_mask, patch_stride)
    sizes = _geometry(x, weight, patch_stride)
    if by_library("patch_embed", _shape_class(sizes["N"], weight), weight):
        patches = _normalise(x, weight, observed_mask, patch_stride, 0.0, (loc, loc_rest, scale), has_stats=True)
        rows = dtokens.reshape(-1, sizes["D"])
        torch.mm(rows.t(), patches, out=dweight)
        torch.sum(rows, 0, out=dbias)
        return dweight, dbias
    config = _config("patch_embed_bwd", sizes["N"], weight)
    blocks = triton.cdiv(sizes["D"], config.blocks["BLOCK_D"]), triton.cdiv(sizes["P"], config.blocks["BLOCK_P"])
    tiles = triton.cdiv(sizes["R"], config.blocks["BLOCK_R"]) * triton.cdiv(sizes["N"], config.blocks["BLOCK_N"])
    splits = num_splits(x.device, config.waves, blocks[0] * blocks[1], limit=tiles)
    targets, stride_split, sum_splits = split_outputs(splits, dweight, dbias)
    mask, mask_options = _mask_arguments(x, observed_mask)
    with device_guard(x):
        _bwd_kernel[(*blocks, splits)](
            dtokens, x, mask, loc, loc_rest, scale, *targets,
            tiles_per_split=triton.cdiv(tiles, splits), **sizes,
            stride_gb=dtokens.stride(0), stride_gc=dtokens.stride(1), stride_gn=dtokens.stride(2),
            stride_gd=dtokens.stride(3), stride_xb=x.stride(0), stride_xl=x.stride(1), stride_xc=x.stride(2),
            stride_split=stride_split,
            **mask_options, **dot_options(weight.dtype), **config.launch_options(),
        )  # fmt: skip
    sum_splits()
    return dweight, dbias


def _empty_grads(dtokens, x, weight, loc, loc_rest, scale, observed_mask, patch_stride):
    return weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _save_for_backward(ctx, inputs, output):
    x, weight, _, observed_mask, ctx.patch_stride, _ = inputs
    _, loc, loc_rest, scale = output
    ctx.save_for_backward(x, weight, loc, loc_rest, scale, observed_mask)
    ctx.mark_non_differentiable(loc, loc_rest, scale)


def _backward(ctx, dtokens, *_):
    *tensors, observed_mask = ctx.saved_tensors
    dweight, dbias = _backward_op(dtokens, *tensors, observed_mask, ctx.patch_stride)
    return None, dweight, dbias, None, None, None


_backward_op = Operation("patch_embed_backward", patch_embed_bwd, fake=_empty_grads)
_op = Operation("patch_embed", patch_embed_fwd, fake=_empty_outputs, setup_context=_save_for_backward,
                backward=_backward)  # fmt: skip


def patch_embed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    patch_length: int,
    patch_stride: int,
    observed_mask: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each window of each channel, cut it into patches, embed them.

    Args:
        x: series `[B, L, C]`, fp32, bf16 or fp16; B may be 0. Gets no gradient.
        weight: `[D, P]`, fp32, bf16 or fp16.
        bias: `[D]`, weight's dtype.
        patch_length, patch_stride: P and S, 1 <= P <= L, S >= 1.
        observed_mask: `[B, L, C]` bool, False where a value is missing (which may be NaN); None: all observed.
        eps: added to the variance.

    Returns:
        tokens `[B, C, N, D]` in weight's dtype, N = (L - P) // S + 1; loc and scale `[B, C]` fp32, without gradient.
        A window without observed values has loc 0, scale sqrt(eps) and tokens equal to the bias.

    Raises:
        ValueError: a shape, dtype, device or patch size is wrong.

    Under autocast weight and bias are cast, x is not: its statistics need all of its bits.
    """
    weight, bias = autocast(weight, bias)
    check_shape("x", x, "[B, L, C]", B=None)
    B, L, C = x.shape
    if patch_stride < 1 or not 1 <= patch_length <= L:
        raise ValueError(
            f"expected 1 <= patch_length <= L = {L} and patch_stride >= 1, "
            f"got patch_length {patch_length}, patch_stride {patch_stride}"
        )
    check_shape("weight", weight, "[D, P]", P=patch_length)
    check_shape("bias", bias, "[D]", D=weight.shape[0])
    check_dtype("x", x)
    check_dtype("weight", weight)
    check_dtype("bias", bias, (weight.dtype,))
    check_device("weight", weight, x.device)
    check_device("bias", bias, x.device)
    if observed_mask is not None:
        check_shape("observed_mask", observed_mask, "[B, L, C]", B=B, L=L, C=C)
        check_dtype("observed_mask", observed_mask, (torch.bool,))
        check_device("observed_mask", observed_mask, x.device)
    if use_triton(x):
        tokens, loc, _, scale = _op(x.detach(), weight, bias, observed_mask, patch_stride, eps)
        return tokens, loc, scale
    return patch_embed_ref(
        x, weight, bias, patch_length=patch_length, patch_stride=patch_stride, observed_mask=observed_mask, eps=eps
    )
