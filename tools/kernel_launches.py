"""Launches of every kernel for all shape classes and variants, and at the named shapes, on tensors never read."""

import dataclasses
from functools import partial
from unittest import mock

import torch
from llata_fast.kernels import _launch, providers
from llata_fast.kernels.alignment_loss import alignment_loss_bwd, alignment_loss_fwd, shape_class
from llata_fast.kernels.forecast_losses import KINDS, forecast_losses_bwd, forecast_losses_fwd
from llata_fast.kernels.patch_embed import _normalise, patch_embed_bwd, patch_embed_fwd
from llata_fast.kernels.prototype_attention import prototype_attention_bwd, prototype_attention_fwd
from llata_fast.kernels.twin_norm import twin_norm_bwd, twin_norm_fwd


def launches(sample: bool = False, variants: bool = True):
    """(variant, launch) for every kernel and shape class; values are never read, so memory is never touched."""
    yield from _norm_launches(sample)
    yield from _loss_launches(sample)
    for dtype in (torch.bfloat16,) if sample else (torch.bfloat16, torch.float32):
        yield from _patch_launches(dtype, sample)
        yield from _attention_launches(dtype, sample)
        yield from _alignment_launches(dtype, sample)
    if variants and not sample:
        for dtype, variant, odd in VARIANTS:
            for launches_of in (_patch_launches, _attention_launches, _alignment_launches):
                for what, launch in launches_of(dtype, plain=True, odd=odd):
                    allowed = partial(_with_tf32, launch) if variant == "tf32" else launch
                    yield ", ".join(part for part in (what, variant) if part), allowed


# in addition to bf16 and exact fp32, on the simplest inputs; odd: rows, prototypes and patch length
VARIANTS = [(torch.float16, "fp16", 0), (torch.float32, "tf32", 0), (torch.bfloat16, "odd sizes", 1)]


def _with_tf32(launch):
    with mock.patch.object(_launch, "_allows_tf32", lambda: True):
        launch()


def _provided(provider: str, launch, *args):
    """Launch with this provider, whatever the table says."""
    rows = {key: dataclasses.replace(row, provider=provider) for key, row in providers.TABLE.items()}
    with mock.patch.object(providers, "TABLE", rows):
        return launch(*args)


by_triton, by_library = partial(partial, _provided, providers.TRITON), partial(partial, _provided, providers.LIBRARY)


def _patch_launches(dtype: torch.dtype, sample: bool = False, plain: bool = False, odd: int = 0):
    empty = partial(torch.empty, dtype=dtype)
    for L, P, S in ((512, 16, 8),) if sample else ((512, 16, 8), (96, 96, 96), (512, 512, 512)):
        P = P - odd
        B, C, D, N = 16, 862 + odd, 768, (L - P) // S + 1
        x, weight, bias = empty(B, L, C, dtype=torch.float32), empty(D, P), empty(D)
        stats = [empty(B, C, dtype=torch.float32)] * 3
        for mask in (None,) if sample or plain else (None, torch.empty(x.shape, dtype=torch.bool)):
            variant = "" if mask is None else "masked"
            backward = empty(B, C, N, D), x, weight, *stats, mask, S
            yield variant, by_triton(patch_embed_fwd, x, weight, bias, mask, S, 1e-5)
            yield variant, by_triton(patch_embed_bwd, *backward)
            # the library's product is for long windows; the sample has only the short one
            if P != 96 - odd:
                yield variant, by_library(_normalise, x, weight, mask, S, 1e-5, stats, False)
                yield variant, by_library(_normalise, x, weight, mask, S, 1e-5, stats, True)


def _attention_launches(dtype: torch.dtype, sample: bool = False, plain: bool = False, odd: int = 0):
    empty = partial(torch.empty, dtype=dtype)
    for E in (64,) if sample else (64, 128, 256):
        for M in (256, 10272) if E == 64 else (10272,):
            shape = 12, E
            q, k, lse = empty(M + odd, *shape), empty(500 + odd, *shape), empty(12, M + odd, dtype=torch.float32)
            yield "", by_triton(prototype_attention_fwd, q, k, k, 0.1)
            yield "", by_triton(prototype_attention_bwd, q, q, k, k, q, lse, 0.1)


def _alignment_launches(dtype: torch.dtype, sample: bool = False, plain: bool = False, odd: int = 0):
    empty = partial(torch.empty, dtype=dtype)
    for G, M, D in ((1, 256, 768),) if sample else ((1, 256, 768), (7, 10272, 2048)):
        M += odd
        weight, loss, slope = empty(G, D, D), empty(1, dtype=torch.float32), empty(G, M, D)
        slope = empty(0) if dtype == torch.float32 else slope
        # under autocast the residual stream can also be fp32
        for features_dtype in (dtype,) if sample or plain else dict.fromkeys((dtype, torch.float32)):
            features = [empty(2 * M, D, dtype=features_dtype)] * G
            variant = "" if features_dtype == dtype else ", fp32 features"
            for kind in ("l1",) if sample or plain else ("l1", "smooth_l1", "mse"):
                inputs = features, [], weight, weight
                yield kind + variant, by_triton(alignment_loss_fwd, *inputs, [1.0] * G, kind, True)
            backward = alignment_loss_bwd, loss, *inputs, slope, [1.0] * G, "l1"
            yield variant.removeprefix(", "), by_triton(*backward)


def _loss_launches(sample: bool):
    """(variant, launch) for the forecast losses, with a head in bf16 and in fp32."""
    cases = [(torch.bfloat16, 7, KINDS), (torch.bfloat16, 321, ("l1",)), (torch.float32, 321, ("mse",))]
    for dtype, C, kinds in [(torch.bfloat16, 7, ("l1",))] if sample else cases:
        target, units = torch.empty(32, 96, C), torch.empty(32, C)
        forecasts, loss = torch.empty(64, C, 96), torch.empty(())
        normalised = torch.empty(64, C, 96, dtype=dtype)
        for task in kinds:
            variant = f"{task}, {str(dtype).removeprefix('torch.')}"
            losses = task, task, 1.0
            yield variant, partial(forecast_losses_fwd, normalised, units, units, target, units, *losses)
            grads = None, loss, loss, loss
            yield variant, partial(forecast_losses_bwd, *grads, forecasts, units, target, units, *losses, dtype)


def _norm_launches(sample: bool):
    """(variant, launch) for the norms: an fp32 stream with a bf16 update, as under autocast, and bf16 throughout."""
    for D in (768,) if sample else (128, 768, 4096, 8192):
        weight, rows = torch.empty(D), torch.empty(64, dtype=torch.float32)
        streams = (torch.float32,) if sample else (torch.float32, torch.bfloat16)
        for stream in streams:
            x, update = torch.empty(64, D, dtype=stream), torch.empty(64, D, dtype=torch.bfloat16)
            for kind in ("layer",) if sample else ("layer", "rms"):
                bias = weight if kind == "layer" else None
                variant = f"{kind}, {str(stream).removeprefix('torch.')} stream"
                mean = rows if kind == "layer" else rows[:0]
                forward = x, weight, bias, weight, bias, update, 32, 1e-5, 0.0, kind, torch.bfloat16
                yield variant, partial(twin_norm_fwd, *forward)
                backward = update, x, x, weight, bias, weight, mean, rows, 32, 0.0, kind, stream, torch.bfloat16
                yield variant, partial(twin_norm_bwd, *backward)


# B, C, L, P, S, D, A, V of the named shapes
NAMED = {
    "ETT": (256, 7, 96, 96, 96, 768, 12, 500),
    "Weather": (64, 21, 96, 96, 96, 768, 12, 500),
    "ECL": (32, 321, 96, 96, 96, 768, 12, 500),
    "Traffic": (16, 862, 96, 96, 96, 768, 12, 500),
    "Traffic, long window": (16, 862, 2048, 2048, 2048, 768, 12, 500),
    "ECL patches": (32, 321, 512, 16, 8, 768, 12, 500),
    "large backbone": (32, 321, 512, 512, 512, 4096, 32, 1000),
}


def named_launches(sizes: dict[str, tuple[int, ...]] = NAMED):
    """(shape, launch) for a training step's kernels: bf16 products, residual stream and series in fp32."""
    half = partial(torch.empty, dtype=torch.bfloat16)
    for shape, (B, C, L, P, S, D, A, V) in sizes.items():
        N = (L - P) // S + 1
        M = B * C * N
        x, weight, bias = torch.empty(B, L, C), half(D, P), half(D)
        stats = [torch.empty(B, C)] * 3
        if N == 1 and P > 256:
            # do not launch the library's product: a CPU would compute it
            yield shape, partial(_normalise, x, weight, None, S, 1e-5, stats, False)
            yield shape, partial(_normalise, x, weight, None, S, 1e-5, stats, True)
        else:
            yield shape, partial(patch_embed_fwd, x, weight, bias, None, S, 1e-5)
            yield shape, partial(patch_embed_bwd, half(B, C, N, D), x, weight, *stats, None, S)
        if L > 512:
            # it has as many tokens as Traffic
            continue
        q, k, lse = half(M, A, D // A), half(V, A, D // A), torch.empty(A, M)
        yield shape, partial(prototype_attention_fwd, q, k, k, 0.1)
        yield shape, partial(prototype_attention_bwd, q, q, k, k, q, lse, 0.1)
        if N > 1:
            # gradients of seven depths with so many tokens need more memory than there is here
            continue
        loss, stream, weights = torch.empty(()), torch.empty(2 * M, D), half(7, D, D)
        inputs = [stream] * 7, [], weights, weights
        yield shape, partial(alignment_loss_fwd, *inputs, [1.0] * 7, "l1", True)
        if shape_class(7, M, D, weights) == "few tiles":
            yield shape, partial(alignment_loss_bwd, loss, *inputs, half(7, M, D), [1.0] * 7, "l1")
        update, norm, rows = half(2 * M, D), torch.empty(D), torch.empty(2 * M)
        forward = stream, norm, norm, norm, norm, update, M, 1e-5, 0.0, "layer", torch.bfloat16
        yield shape, partial(twin_norm_fwd, *forward)
        backward = update, stream, stream, norm, norm, norm, rows, rows, M, 0.0, "layer", torch.float32, torch.bfloat16
        yield shape, partial(twin_norm_bwd, *backward)
        target, units, forecasts = torch.empty(B, 96, C), torch.empty(B, C), torch.empty(2 * B, C, 96)
        kinds = None, "l1", "l1", 1.0
        yield shape, partial(forecast_losses_fwd, half(2 * B, C, 96), units, units, target, *kinds)
        grads = None, None, None, loss
        yield shape, partial(forecast_losses_bwd, *grads, forecasts, units, target, *kinds, torch.bfloat16)
