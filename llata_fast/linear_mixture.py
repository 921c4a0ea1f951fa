"""Shares of forecasts in a mixture, chosen to minimise its worst ratio to one of them.

Letters: F forecasts, M errors of each on a stretch of rows.
"""

import torch
from torch import Tensor

# the maximum is approached by soft maxima, with a descent step at each softness; a baseline is hardly ever beaten on
# every one, so the last softness still trades a few tenths of a percent of the worst ratio for the others
_SOFTNESSES = torch.logspace(-1, -2.8, 300).tolist()
_RATE = 0.1

# a share that the log would round to 0 becomes 0
_LEAST_SHARE = 0.005


def mixture(scored: list[Tensor], yardstick: int) -> Tensor:
    """Shares [F], non-negative with sum 1, of forecasts with errors [F, M] on several stretches of rows.

    They minimise a soft maximum of the ratios to forecast `yardstick`, of squared and absolute errors on every stretch:
    a convex problem. With eleven of them no ratio exceeds 1.005, the soft maximum for the yardstick alone.
    """
    alone = torch.eye(len(scored[0]), dtype=torch.float64)[yardstick]
    scored = [errors for errors in scored if errors.shape[1]]
    if not scored:
        return alone
    units = torch.stack([_sizes(errors[yardstick]) for errors in scored])
    squares = torch.stack([errors @ errors.T / errors.shape[1] for errors in scored])
    with torch.enable_grad():
        logits = torch.zeros_like(alone, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=_RATE)
        for softness in _SOFTNESSES:
            shares = logits.softmax(0)
            absolute = torch.stack([(shares @ errors).abs().mean() for errors in scored])
            ratios = torch.stack((squares @ shares @ shares, absolute), 1) / units
            optimizer.zero_grad()
            (softness * (ratios / softness).logsumexp((0, 1))).backward()
            optimizer.step()
    shares = logits.detach().softmax(0)
    shares = torch.where(shares < _LEAST_SHARE, 0, shares)
    return shares / shares.sum()


def worst_ratio(shares: Tensor, scored: list[Tensor], yardstick: int = 0) -> float:
    """The largest of `relative_errors` on any stretch."""
    return max(relative_errors(shares, errors, yardstick).max().item() for errors in scored)


def relative_errors(shares: Tensor, errors: Tensor, yardstick: int = 0) -> Tensor:
    """Mean squared and mean absolute error of a mixture, relative to one forecast's: [2]; errors are [F, M]."""
    return _sizes(shares @ errors) / _sizes(errors[yardstick])


def _sizes(errors: Tensor) -> Tensor:
    """Mean squared and mean absolute error [2] of errors [M], never 0."""
    return torch.stack((errors.square().mean(), errors.abs().mean())).clamp(min=1e-12)
