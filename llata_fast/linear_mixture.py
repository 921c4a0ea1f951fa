"""Shares of forecasts in a mixture: as good as can be, against one of them, where the mixture does worst.

Letters: F forecasts, M errors of each behind an origin.
"""

import torch
from torch import Tensor

# the worst ratio is approached through soft ones, a step of descent at each softness; a baseline is hardly ever beaten
# everywhere, so that the last still trades a few tenths of a percent of the worst for the others
_SOFTNESSES = torch.logspace(-1, -2.7, 300).tolist()
_RATE = 0.1

# what a log would round to nothing is nothing
_LEAST_SHARE = 0.005


def mixture(scored: list[Tensor], yardstick: int) -> Tensor:
    """Shares [F], none negative and 1 in sum, of forecasts with errors [F, M] behind several origins.

    They make the worst ratio to forecast `yardstick`, of squared and of absolute errors behind every origin, softly the
    least there is: a convex problem. With six origins none is above 1.005, the soft worst of the yardstick alone.
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
    """The largest of `relative_errors` behind any origin."""
    return max(relative_errors(shares, errors, yardstick).max().item() for errors in scored)


def relative_errors(shares: Tensor, errors: Tensor, yardstick: int = 0) -> Tensor:
    """Of a mixture of forecasts with errors [F, M], in those of one of them: mean squared and absolute error, [2]."""
    return _sizes(shares @ errors) / _sizes(errors[yardstick])


def _sizes(errors: Tensor) -> Tensor:
    """Mean squared and absolute error [2] of errors [M], never 0."""
    return torch.stack((errors.square().mean(), errors.abs().mean())).clamp(min=1e-12)
