"""The backbone's attention: FlashAttention where it is available and faster, else SDPA; neither takes a mask tensor.

transformers builds masks from position ids, reads them back to detect packed sequences (a host synchronisation in each
step) and, when compiled, passes SDPA a mask that rules out its flash kernels. Our sequences are neither padded nor
packed, so the implementations registered here declare no mask function: every layer gets None, SDPA its `is_causal`
flag, and flash kernels no position ids.

The choice is made in two steps. Whether a backend supports a backbone on this machine (Is it installed? Does it support
this head width, grouped keys, this window?) is found once, by trying it. What varies between calls (device, precision,
number of tokens) is checked at every call, from shapes and types alone, so the same model can train in bf16 on a GPU
and forecast in fp32 on a CPU. The choice is not stored in a checkpoint; it is made whenever weights are loaded.
"""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, modeling_flash_attention_utils
from transformers.utils import is_kernels_available

from ..errors import InputError
from ..hub_access import KERNEL_SECONDS, within
from .loading import decoder_class

AUTO, SDPA, EAGER = "auto", "sdpa", "eager"
FLASH_PACKAGES = ("flash_attention_4", "flash_attention_3", "flash_attention_2")
HUB_KERNEL = "kernels-community/flash-attn2"
FLASH_DEVICE = "cuda"

# with fewer tokens SDPA is faster: reported crossover 150 to 200 (github.com/Dao-AILab/flash-attention/issues/591)
FLASH_MIN_TOKENS = 200

CAUSAL_SDPA = "causal_sdpa"


def causal_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """query [B, A, T, E], key and value [B, A / groups, T, E] -> [B, T, A, E]; causal, within any sliding window."""
    T = query.shape[2]
    band = None
    if sliding_window is not None and T > sliding_window:
        position = torch.arange(T, device=query.device)
        distance = position[:, None] - position  # [T, T]
        band = (distance >= 0) & (distance < sliding_window)
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=band,
        dropout_p=dropout,
        is_causal=band is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(CAUSAL_SDPA, causal_sdpa)


class AttentionChoice(NamedTuple):
    """The attention of a backbone on this machine."""

    name: str
    """`attn_implementation` of the backbone's config."""
    backend: str
    """A flash package, a hub kernel, sdpa or eager."""
    forced: bool
    reason: str

    def explain(self, num_tokens: int, dtype: torch.dtype, device: torch.device) -> str:
        """Backend and reason in one line, for sequences of `num_tokens` computed in `dtype`.

        Raises:
            InputError: the user requested a backend that does not support these sequences.
        """
        if self.backend in (SDPA, EAGER):
            return f"{self.backend} ({self.reason})"
        refusal = _refuses_call(self.backend, self.forced, num_tokens, dtype, device)
        return f"{self.backend} ({self.reason})" if refusal is None else f"{SDPA} ({refusal})"


def choose_attention(config: PreTrainedConfig, requested: str = AUTO) -> AttentionChoice:
    """Choose the attention for a backbone's `config`.

    `auto` takes the first flash backend that works here (4, 3, 2, then a hub kernel) for calls that it supports and
    speeds up, and SDPA for the rest; it takes eager attention if scores are soft-capped (Gemma 2).

    Raises:
        InputError: the requested backend is unknown or cannot be used.
    """
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    if requested == AUTO:
        return _choose_freely(config, capped)
    if requested == EAGER:
        return AttentionChoice(EAGER, EAGER, True, "forced")
    if requested == SDPA:
        if capped:
            raise InputError(f"attn_implementation sdpa cannot cap attention scores, as {config.model_type} does")
        return AttentionChoice(CAUSAL_SDPA, SDPA, True, "forced")
    if requested not in FLASH_PACKAGES and "/" not in requested:
        raise InputError(
            f"attn_implementation must be one of {', '.join((AUTO, *FLASH_PACKAGES, SDPA, EAGER))} "
            f"or a hub kernel like {HUB_KERNEL}, got {requested!r}"
        )
    if (refusal := _refuses_config(requested, config, seconds=None)) is not None:
        raise InputError(f"attn_implementation {requested} cannot be used: {refusal}")
    lost = _lost_dropout(requested, config)
    return AttentionChoice(_register_flash(requested, forced=True), requested, True, f"forced{lost and ', ' + lost}")


def _choose_freely(config: PreTrainedConfig, capped: bool) -> AttentionChoice:
    if capped:
        return AttentionChoice(EAGER, EAGER, False, f"{config.model_type} caps attention scores")
    if not torch.get_device_module(FLASH_DEVICE).is_available():
        return AttentionChoice(CAUSAL_SDPA, SDPA, False, f"no {FLASH_DEVICE} device")
    refusals: list[str] = []
    for backend in (*FLASH_PACKAGES, HUB_KERNEL):
        refusal = _refuses_config(backend, config, KERNEL_SECONDS) or _lost_dropout(backend, config)
        if not refusal:
            reason = "; ".join([*refusals, f"from {FLASH_MIN_TOKENS} tokens in 16 bits"])
            return AttentionChoice(_register_flash(backend, forced=False), backend, False, reason)
        refusals.append(f"{backend}: {refusal}")
    return AttentionChoice(CAUSAL_SDPA, SDPA, False, "; ".join(refusals))


def _register_flash(backend: str, forced: bool) -> str:
    """Register attention by `backend` with transformers; returns the name to use there."""
    # transformers treats any name that contains "flash" as one of its own backends
    name = f"{'forced' if forced else 'auto'}_{backend.replace('flash', 'fast')}"

    def attend(module, query, key, value, attention_mask, **kwargs):
        dtype = _compute_dtype(value)
        if _refuses_call(backend, forced, query.shape[2], dtype, query.device) is not None:
            return causal_sdpa(module, query, key, value, attention_mask, **kwargs)
        return _flash(backend, query, key, value, dtype, **kwargs), None

    AttentionInterface.register(name, attend)
    return name


def _compute_dtype(value: Tensor) -> torch.dtype:
    # not the query's dtype: under autocast, norms and rotary positions leave queries and keys in fp32
    device = value.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype


def _flash(
    backend: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dtype: torch.dtype,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs,
) -> Tensor:
    """query [B, A, T, E], key and value [B, A / groups, T, E] -> [B, T, A, E] in `dtype`."""
    # the only place where all three are cast to a precision that the kernels support
    query, key, value = (tensor.transpose(1, 2).to(dtype) for tensor in (query, key, value))
    return modeling_flash_attention_utils._flash_attention_forward(
        query,
        key,
        value,
        None,
        query_length=query.shape[1],
        is_causal=True,
        dropout=dropout,
        softmax_scale=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        attn_implementation=backend,
    )


def _refuses_call(backend: str, forced: bool, num_tokens: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why `backend` does not suit these sequences, None if it does; InputError if the user requested it."""
    if device.type != FLASH_DEVICE:
        refusal = f"{backend} needs a {FLASH_DEVICE} device, this is {device.type}"
    elif dtype not in (torch.bfloat16, torch.float16):
        refusal = f"{backend} takes bf16 and fp16, this is {dtype}"
    elif num_tokens < FLASH_MIN_TOKENS and not forced:
        return f"{backend} is faster only from {FLASH_MIN_TOKENS} tokens, these are {num_tokens}"
    else:
        return None
    if forced:
        raise InputError(f"attn_implementation {refusal}")
    return refusal


class _Probe(NamedTuple):
    """The properties of a backbone with which a backend is tried."""

    num_heads: int
    num_key_value_heads: int
    head_dim: int
    sliding_window: int | None
    softcap: float | None


def _refuses_config(backend: str, config: PreTrainedConfig, seconds: float | None) -> str | None:
    """Why `backend` cannot serve this backbone on this machine, None if it can; `seconds` limits a download."""
    if not decoder_class(config)._supports_flash_attn:
        return f"{config.model_type} has no flash attention"
    num_heads = config.num_attention_heads
    return _tried(
        backend,
        _Probe(
            num_heads,
            getattr(config, "num_key_value_heads", None) or num_heads,
            getattr(config, "head_dim", None) or config.hidden_size // num_heads,
            getattr(config, "sliding_window", None),
            getattr(config, "attn_logit_softcapping", None),
        ),
        seconds,
    )


@functools.cache
def _tried(backend: str, probe: _Probe, seconds: float | None) -> str | None:
    """Why a small attention by `backend`, forward and backward, failed; None if it worked.

    The result is compared with SDPA's: documented limits change between releases, and transformers silently drops
    arguments that a backend does not support.
    """
    if not torch.get_device_module(FLASH_DEVICE).is_available():
        return f"no {FLASH_DEVICE} device"
    T = 24
    window = None if probe.sliding_window is None else min(probe.sliding_window, T // 2)
    try:
        _, with_lengths, *_ = _load(backend, seconds)
        # older versions of transformers silently drop a soft cap that the backend does not support
        if probe.softcap is not None and "softcap" not in inspect.signature(with_lengths).parameters:
            return "it cannot cap attention scores (softcap)"
        shapes = [(1, heads, T, probe.head_dim) for heads in (probe.num_heads, *2 * [probe.num_key_value_heads])]
        # no random numbers: those of the run must not depend on what is installed
        inputs = [
            torch.arange(torch.Size(shape).numel(), device=FLASH_DEVICE).mul(7 + shift).cos().view(shape).bfloat16()
            for shift, shape in enumerate(shapes)
        ]
        with torch.enable_grad(), torch.autocast(FLASH_DEVICE, enabled=False):
            inputs = [tensor.requires_grad_() for tensor in inputs]
            query, key, value = inputs
            output = _flash(backend, query, key, value, torch.bfloat16, sliding_window=window, softcap=probe.softcap)
            torch.autograd.grad(output.sum(), inputs)
        if probe.softcap is None:
            expected, _ = causal_sdpa(nn.Module(), query, key, value, None, sliding_window=window)
            if not (error := (output - expected).abs().max().item()) < 0.05:
                return f"its result differs from SDPA's by {error:.2g}"
    # a missing package, an unsupported GPU or head width, a broken build: a backend may raise anything
    except Exception as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None


def _load(backend: str, seconds: float | None = None) -> tuple[Callable, ...]:
    """A backend's functions, for equal lengths first; passes on any error of the import or download."""
    load = functools.partial(modeling_flash_attention_utils.lazy_import_flash_attention, backend)
    if backend in FLASH_PACKAGES:
        # ask here, as transformers would download a hub kernel instead; older versions do not know version 4
        installed = getattr(modeling_flash_attention_utils, f"is_flash_attn_{backend[-1]}_available", lambda: False)
        if not installed():
            raise ImportError("not installed")
    elif not is_kernels_available():
        raise ImportError("the package kernels is not installed, or transformers does not support its version")
    elif seconds is not None:
        load = functools.partial(within, seconds, load)
    try:
        functions, _ = load()
    except Exception:
        # older versions record a backend as loaded too early, and would then return the previous one
        modeling_flash_attention_utils._loaded_implementation = None
        raise
    return functions


def _lost_dropout(backend: str, config: PreTrainedConfig) -> str:
    """What training would lose with `backend`, "" if nothing: versions 3 and 4 have no dropout."""
    dropout = getattr(config, "attn_pdrop", None) or getattr(config, "attention_dropout", None)
    if not dropout:
        return ""
    _, with_lengths, *_ = _load(backend)
    takes_it = "dropout_p" in inspect.signature(with_lengths).parameters
    return "" if takes_it else f"it has no attention dropout, but the backbone has {dropout}"
