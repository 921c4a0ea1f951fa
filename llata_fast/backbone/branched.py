"""Wrappers that the twin pass puts around a decoder's modules: trained on temporal rows, frozen on textual rows."""

import copy

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..kernels import twin_norm
from .products import product


class _Branched(nn.Module):
    """A module whose first rows are temporal: the first half in a twin training pass, otherwise all."""

    def __init__(self, twin: bool):
        super().__init__()
        self.twin = twin

    def num_time_rows(self, x: Tensor) -> int:
        return x.shape[0] // 2 if self.twin and self.training else x.shape[0]


class LoraLinear(_Branched):
    """A frozen projection `base`; temporal rows get the low-rank update `B A dropout(x) * alpha / r` as well."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float, twin: bool):
        super().__init__(twin)
        in_features, out_features = _features(base)
        self.base = base
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.lora_a = nn.Linear(in_features, rank, bias=False)
        self.lora_b = nn.Linear(rank, out_features, bias=False)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.num_time_rows(x)
        if isinstance(self.base, nn.Linear | Conv1D) and _is_whole(self.base.weight):
            weight = self.base.weight.t() if isinstance(self.base, Conv1D) else self.base.weight
            low = self.dropout(x[:rows]) if self.training and self.dropout.p else None
            tensors = _in_compute_dtype(x, low, weight, self.base.bias, self.lora_a.weight, self.lora_b.weight)
            return _TwinLinear.apply(*tensors, self.scale, rows)
        y = self.base(x)
        update = self.lora_b(self.lora_a(self.dropout(x[:rows]))) * self.scale
        return y + update if rows == len(x) else torch.cat((y[:rows] + update, y[rows:]))

    def merged(self) -> nn.Module:
        """The frozen projection with the update folded in (in place)."""
        update = (self.lora_b.weight @ self.lora_a.weight) * self.scale
        with torch.no_grad():
            self.base.weight += update.T if isinstance(self.base, Conv1D) else update  # type: ignore[operator]
        return self.base


class _TwinLinear(torch.autograd.Function):
    """x [rows, T, in] @ weight^T + bias, plus low @ (b a)^T * scale on the first `time_rows` rows.

    Both products write to one output, and x gets one gradient: computed separately, they would have to be split and
    concatenated again. `low` is the first rows of x after dropout, None without dropout; weight and bias are frozen.
    """

    @staticmethod
    def forward(ctx, x, low, weight, bias, a, b, scale, time_rows):
        y = product(x, weight, bias)
        rows = x[:time_rows] if low is None else low
        hidden = rows.flatten(0, 1) @ a.t()
        y[:time_rows].flatten(0, 1).addmm_(hidden, b.t(), alpha=scale)
        ctx.save_for_backward(rows, hidden, weight, a, b)
        ctx.scale, ctx.time_rows, ctx.dropped = scale, time_rows, low is not None
        return y

    @staticmethod
    def backward(ctx, dy):
        rows, hidden, weight, a, b = ctx.saved_tensors
        needs_x, needs_low = ctx.needs_input_grad[:2]
        dtime = dy[: ctx.time_rows].flatten(0, 1)
        dhidden = dtime @ b
        # with beta 0, only the shapes of `a` and `b` matter
        da = torch.addmm(a, dhidden.t(), rows.flatten(0, 1), beta=0, alpha=ctx.scale)
        db = torch.addmm(b, dtime.t(), hidden, beta=0, alpha=ctx.scale)
        dx = product(dy, weight.t()) if needs_x else None
        dlow = None
        if ctx.dropped:
            dlow = (dhidden @ a).mul_(ctx.scale).view_as(rows) if needs_low else None
        elif needs_x:
            dx[: ctx.time_rows].flatten(0, 1).addmm_(dhidden, a, alpha=ctx.scale)  # type: ignore[index]
        return dx, dlow, None, None, da, db, None, None


class TwinNorm(_Branched):
    """A frozen norm `base` for textual rows and a trained copy `tuned` for temporal ones.

    Under autocast its output has the dtype of the following product; a `last` norm, followed by a residual, keeps the
    input's dtype.
    """

    def __init__(self, base: nn.Module, twin: bool, last: bool = False):
        super().__init__(twin)
        self.base = base
        self.tuned = copy.deepcopy(base).requires_grad_(True)
        self.last, self.form = last, _norm_form(base)

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, ..., D] -> the same."""
        return self.add(x)[0]

    def add(self, x: Tensor, update: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x, update [rows, ..., D] -> the norm of x + update, and x + update."""
        rows = self.num_time_rows(x)
        if self.form is None or not _is_whole(self.base.weight):  # type: ignore[arg-type]
            total = x if update is None else x + update
            y = self.tuned(total)
            if rows < len(x):
                y = torch.cat((self.tuned(total[:rows]), self.base(total[rows:])))
            return y, total
        flat = x.flatten(0, -2)
        y, total = twin_norm(
            flat,
            self.tuned.weight,
            getattr(self.tuned, "bias", None),
            self.base.weight,
            getattr(self.base, "bias", None),
            num_time_rows=rows * (len(flat) // max(len(x), 1)),
            update=None if update is None else update.flatten(0, -2),
            out_dtype=x.dtype if self.last else _compute_dtype(x),
            **self.form,
        )
        return y.view(x.shape), x if update is None else total.view(x.shape)

    def merged(self) -> nn.Module:
        return self.tuned.requires_grad_(False)


class TwinPositions(_Branched):
    """Trained position embeddings [max_tokens, D], one table per branch."""

    def __init__(self, base: nn.Embedding, twin: bool):
        super().__init__(twin)
        self.time = copy.deepcopy(base).requires_grad_(True)
        # without textual rows, nothing would train this table
        self.text = copy.deepcopy(base).requires_grad_(twin)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [rows, T, D] -> the same with positions added."""
        rows, T = self.num_time_rows(tokens), tokens.shape[1]
        if _is_whole(self.time.weight):
            time, text = self.time.weight[:T], self.text.weight[:T]
        else:
            offsets = torch.arange(T, device=tokens.device)
            time, text = self.time(offsets), self.text(offsets)
        if rows == len(tokens):
            return tokens + time
        branches = tokens.unflatten(0, (2, rows)) + torch.stack((time, text))[:, None]
        return branches.flatten(0, 1)


def _is_whole(weight: Tensor) -> bool:
    """Whether the weight is whole: ZeRO-3 gathers it only during its own module's call."""
    return not hasattr(weight, "ds_id")


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which products of x are computed."""
    device_type = x.device.type
    # some devices, such as meta, do not support autocast
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return x.dtype


def _in_compute_dtype(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    dtype = _compute_dtype(x)
    return tuple(t if t is None else t.to(dtype) for t in (x, *others))


def is_norm(module: nn.Module) -> bool:
    # each family in transformers defines its own RMSNorm class
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__.endswith("RMSNorm")


# transformers' RMS norms -> the constant added to the weight
_RMS_OFFSETS = {"Gemma2RMSNorm": 1.0, "Gemma3RMSNorm": 1.0} | dict.fromkeys(
    ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"), 0.0
)


def _norm_form(norm: nn.Module) -> dict | None:
    """Arguments of `twin_norm` that reproduce `norm`; None for an unknown norm."""
    if type(norm) is nn.LayerNorm and norm.elementwise_affine and len(norm.normalized_shape) == 1:
        return {"kind": "layer", "eps": norm.eps}
    offset = _RMS_OFFSETS.get(type(norm).__name__)
    if offset is None:
        return None
    eps = getattr(norm, "variance_epsilon", None)
    return {"kind": "rms", "eps": norm.eps if eps is None else eps, "offset": offset}


def _features(projection: nn.Module) -> tuple[int, int]:
    # not from the weight's shape, as ZeRO-3 may have partitioned it
    if isinstance(projection, Conv1D):
        return projection.nx, projection.nf
    return projection.in_features, projection.out_features  # type: ignore[return-value]
