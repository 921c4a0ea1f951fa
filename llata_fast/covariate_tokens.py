"""Covariates as inputs of the language model: each that varies over time is a token, static ones shift the targets'.

Letters: B windows, L lookback, H horizon, K covariates, D width. The sizes of the covariates define the layers: for
each column its number of categories, or 0 for a numeric column. Numbers are standardised; categories are 1, 2, ..., or
0 where unseen in training; NaN is missing (`data.covariate_encoding`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

COVARIATE_INPUTS = ("past_covariates", "future_covariates", "static_covariates")
"""The model's covariate inputs, in this order."""

Sizes = dict[str, list[int]]
"""known, past and static -> the size of each column."""

_WIDTH = 4
"""Width of a category's embedding at each step."""


def input_shapes(sizes: Sizes | None, context_length: int, prediction_length: int) -> dict[str, tuple[int, ...]]:
    """Input -> its shape without the batch axis, for the inputs that a model with these sizes takes."""
    if sizes is None:
        return {}
    known, past, static = (len(sizes[role]) for role in ("known", "past", "static"))
    shapes = ((context_length, known + past), (prediction_length, known), (static,))
    return {name: shape for name, shape in zip(COVARIATE_INPUTS, shapes, strict=True) if shape[-1]}


def moving(inputs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The past and future covariates among a model's inputs; None for an absent one."""
    return inputs.get(COVARIATE_INPUTS[0]), inputs.get(COVARIATE_INPUTS[1])


class CovariateTokens(nn.Module):
    """One token per known covariate, from lookback and horizon, then one per past covariate, from the lookback.

    In training a share `dropout` of the categories is replaced by "unseen", so that its embedding is learned, too.
    """

    def __init__(
        self, sizes: Sizes, context_length: int, prediction_length: int, hidden_size: int, dropout: float = 0.0
    ):
        super().__init__()
        self.num_known, self.num_tokens = len(sizes["known"]), len(sizes["known"]) + len(sizes["past"])
        lengths = [context_length + prediction_length] * self.num_known + [context_length] * len(sizes["past"])
        dynamic = zip([*sizes["known"], *sizes["past"]], lengths, strict=True)
        self.moving = nn.ModuleList(_Stretch(size, length, hidden_size, dropout) for size, length in dynamic)
        self.static = nn.ModuleList(
            _Category(size, hidden_size, dropout) if size else nn.Linear(1, hidden_size) for size in sizes["static"]
        )

    def forward(self, past: Tensor | None, future: Tensor | None) -> Tensor:
        """past [B, L, K], fp32, and future [B, H, known] -> tokens [B, K, D]."""
        assert past is not None
        stretches = [past[..., place] for place in range(self.num_tokens)]
        for place in range(self.num_known):
            assert future is not None
            stretches[place] = torch.cat((stretches[place], future[..., place]), 1)
        return torch.stack([embed(values) for embed, values in zip(self.moving, stretches, strict=True)], 1)

    def add_static(self, tokens: Tensor, static: Tensor | None) -> Tensor:
        """Add static covariates [B, S] to the target tokens [B, C, N, D]."""
        for place, embed in enumerate(self.static):
            assert static is not None
            values, observed = _known(static[:, place : place + 1])
            # a linear layer does not cast its input, and DeepSpeed's weights are half precision
            shift = embed(values)[:, 0] if isinstance(embed, _Category) else embed(values.to(tokens.dtype))
            tokens = tokens + (shift * observed.to(shift.dtype))[:, None, None]
        return tokens


class _Stretch(nn.Module):
    """Values [B, steps] of one covariate -> its token [B, D]; missing values add nothing."""

    def __init__(self, size: int, length: int, hidden_size: int, dropout: float):
        super().__init__()
        self.category = _Category(size, _WIDTH, dropout) if size else None
        self.project = nn.Linear(length * (_WIDTH if size else 1), hidden_size)

    def forward(self, values: Tensor) -> Tensor:
        values, observed = _known(values)
        if self.category is not None:
            values = (self.category(values) * observed[..., None]).flatten(1)
        return self.project(values.to(self.project.weight.dtype))


class _Category(nn.Module):
    """Categories [B, steps] -> embeddings [B, steps, width]."""

    def __init__(self, size: int, width: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.table = nn.Embedding(size + 1, width)
        nn.init.normal_(self.table.weight, std=1.0 if width == _WIDTH else 0.1)

    def forward(self, values: Tensor) -> Tensor:
        codes = values.long()
        if self.training and self.dropout:
            codes = torch.where(torch.rand_like(values) < self.dropout, 0, codes)
        return self.table(codes)


def _known(values: Tensor) -> tuple[Tensor, Tensor]:
    """The values with 0 for NaN, and a mask of the observed ones."""
    missing = values.isnan()
    return values.masked_fill(missing, 0), ~missing
