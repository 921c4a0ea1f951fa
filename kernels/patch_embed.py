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


def patch_embed_ref(x: Tensor, weight: Tensor, bias: Tensor, *, patch_length: int, patch_stride: int,
                    observed_mask: Tensor | None = None, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """Specification and CPU path of `patch_embed`; float64 throughout if x is float64."""
    x = x.detach()
    centred, loc, scale = _window_stats(x if x.dtype == torch.float64 else x.float(), observed_mask, eps)
    normalised = (centred / scale[:, None]).to(weight.dtype).transpose(1, 2)  # [B, C, L]
    first = (x.shape[1] - patch_length) % patch_stride
    patches = normalised[..., first:].unfold(-1, patch_length, patch_stride)  # [B, C, N, P]
    return F.linear(patches, weight, bias), loc, scale


def patch_embed(x: Tensor, weight: Tensor, bias: Tensor, *, patch_length: int, patch_stride: int,
                observed_mask: Tensor | None = None, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
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
        raise ValueError(f"expected 1 <= patch_length <= L = {L} and patch_stride >= 1, "
                         f"got patch_length {patch_length}, patch_stride {patch_stride}")
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
    return patch_embed_ref(x, weight, bias, patch_length=patch_length, patch_stride=patch_stride,
                           observed_mask=observed_mask, eps=eps)
