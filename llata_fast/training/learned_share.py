"""How much of what was learned beside the linear start the forecast keeps, and how much that helps."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..covariate_tokens import COVARIATE_INPUTS, moving
from ..linear_mixture import worst_ratio
from ..ranks import from_first_rank
from .trainer import ForecastTrainer

BLOCKS = 4
"""Number of consecutive blocks of validation windows; each must show a gain."""

_GRID = 20

# at most this many windows, and error values held at a time
_WINDOWS, _VALUES = 1024, 2**25

# smallest relative gain that counts as help, and the smallest error to divide by
_WORTH, _LEAST = 0.005, 1e-12


@dataclass(frozen=True)
class LearnedShare:
    """The kept share, and validation errors (MSE, MAE) of the forecast with it and of the linear start alone."""

    share: float
    mse: float
    mae: float
    start_mse: float
    start_mae: float
    seconds: float
    trained_parameters: int

    def to_dict(self, without: "LearnedShare | None" = None) -> dict[str, Any]:
        return asdict(self) | {"without_language_model": without and asdict(without)}

    def lines(self, language_model: bool, without: "LearnedShare | None" = None) -> list[str]:
        """Log lines: what training gained, and what leaving out the language model would cost and save.

        Args:
            without: the result of the same training without the language model; None compares with the linear start.
        """
        what = "language model" if language_model else "trained part"
        scores = (
            f"validation MSE {self.mse:.4f} and MAE {self.mae:.4f}; for the linear start alone "
            f"{self.start_mse:.4f} and {self.start_mae:.4f}"
        )
        if without is None:
            other, mse, mae, size, seconds = "the linear start alone", self.start_mse, self.start_mae, 0, 0.0
        else:
            other, mse, mae = "the same training without it (--ablation no_llm)", without.mse, without.mae
            size, seconds = without.trained_parameters, without.seconds
        costs = [other / max(own, _LEAST) - 1 for other, own in ((mse, self.mse), (mae, self.mae))]
        verdict = "helped" if sum(costs) / 2 >= _WORTH else "did not help"
        changes = " and ".join(f"{100 * cost:+.1f} %" for cost in costs)
        return [
            f"kept {self.share:.2f} of the learned part: {scores}",
            f"the {what} {verdict}: {other} would change validation MSE and MAE by {changes} and save "
            f"{self.trained_parameters - size:,} trained parameters and {self.seconds - seconds:.0f} s of training",
        ]


@torch.no_grad()
def weigh_learned_part(trainer: ForecastTrainer, seconds: float) -> LearnedShare | None:
    """Keep the share of what `trainer` learned (in `seconds`) that validation supports; every rank calls it.

    For each share, take the least gain over the linear start among `BLOCKS` blocks of validation windows, in squared
    and in absolute error. The share with the largest such gain is kept, or none if it is never a gain. Returns None if
    the model has no linear skip.
    """
    model = trainer.model
    if model.skip is None:
        return None
    model.eval()
    errors = torch.cat([_errors(trainer, batch) for batch in _batches(trainer)], 1)  # [2, windows, H, C]
    blocks = [part[:, ~part[0].isnan()] for part in errors.chunk(BLOCKS, 1)]
    blocks = [block for block in blocks if block.shape[1]]
    known = torch.cat(blocks, 1) if blocks else torch.zeros(2, 0)
    # nothing is kept of a training that diverged
    share = from_first_rank(lambda: _best_share(blocks) if blocks and known.isfinite().all() else 0.0)
    model.skip.keep(share)
    start = known[0]
    kept = start.lerp(known[1], share) if share else start
    size = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    mse, start_mse = (errors.square().mean().item() for errors in (kept, start))
    mae, start_mae = (errors.abs().mean().item() for errors in (kept, start))
    return LearnedShare(share, mse, mae, start_mse, start_mae, seconds, size)


def _best_share(blocks: list[Tensor]) -> float:
    """The best share, given the errors [2, M] of linear start and full forecast in each block."""

    def worst(share: float) -> float:
        return worst_ratio(torch.tensor([1 - share, share]), blocks)

    return min((number / _GRID for number in range(_GRID + 1)), key=worst)


def _batches(trainer: ForecastTrainer) -> Iterator[dict[str, Tensor]]:
    """Evenly spaced validation windows, few enough for their errors to fit into memory."""
    windows = trainer.splits.val
    H, C = windows[0]["future_values"].shape
    number = min(len(windows), _WINDOWS, max(BLOCKS, _VALUES // (H * C)))
    indices = torch.linspace(0, len(windows) - 1, number, dtype=torch.float64).round().long()
    for part in indices.split(trainer.args.per_device_eval_batch_size):
        yield windows.__getitems__(part)


def _errors(trainer: ForecastTrainer, batch: dict[str, Tensor]) -> Tensor:
    """Errors [2, B, H, C] of the start and of the trained forecast, on the CPU; for M4 in units of MASE."""
    past, future = batch["past_values"], batch["future_values"]
    observed = batch.get("past_observed_mask", torch.ones_like(past, dtype=torch.bool))
    if "window_level" in batch:
        level, scale = batch["window_level"][:, None], batch["window_scale"][:, None]
        past, future = past * scale + level, future + level
    assert trainer.model.skip is not None
    covariates = {name: batch[name].to(trainer.args.device) for name in COVARIATE_INPUTS if name in batch}
    of_window = past.to(trainer.args.device), observed.to(trainer.args.device)
    start = trainer.model.skip.alone(*of_window, *moving(covariates))
    whole = trainer.forecast(past, observed, covariates)
    errors = torch.stack([forecast.to(future.device) - future for forecast in (start, whole)])
    if "insample_scale" in batch:
        errors = errors / batch["insample_scale"][:, None]
    return errors.float().cpu()
