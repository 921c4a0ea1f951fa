"""When training stops early, and its speed: windows, tokens and FLOPs per second, for the log and metrics.json.

Times are the host's, taken where it waits for the device anyway (a log, an evaluation, a checkpoint), so timing adds no
synchronisation except at the end of the first step, a warm-up that is left out.
"""

import copy
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback

from ..backbone.attention import CAUSAL_SDPA
from ..planning.flops import count_flops

if TYPE_CHECKING:
    from ..modeling import LlataForPrediction

# edge length; three matrices take 96 MiB in 16 bits
_MATMUL_SIZE = {"cuda": 4096, "cpu": 512}
_MATMUL_SECONDS = 0.2


def memory_hint(error: BaseException) -> str:
    """One line for an out-of-memory error: which setting to lower first."""
    needed = str(error).strip().partition(". ")[0]
    return (
        f"{needed}: raise --gradient_accumulation_steps (the same training in smaller pieces), then try "
        "--gradient_checkpointing true, fewer --num_layers, a smaller --per_device_eval_batch_size or --deepspeed "
        "ds_configs/zero3.json"
    )


def micro_step_flops(model: "LlataForPrediction", num_windows: int, num_channels: int) -> int:
    """FLOPs of forward and backward pass over a micro-batch, counted on tensors without memory.

    Frozen weights have no weight gradients and cost none; work repeated by activation checkpointing counts once.
    """
    config = copy.deepcopy(model.config)
    config.attn_implementation = "auto"
    # products do not depend on the loss, and M4's losses need more inputs than the values of the series
    config.task_loss = config.consistency_loss = "mse"
    with torch.device("meta"):
        twin = type(model)(config).train()
        for module in twin.modules():
            if isinstance(module, PreTrainedModel):
                # other implementations read values, which meta tensors do not have
                module.config._attn_implementation = CAUSAL_SDPA
        past = torch.empty(num_windows, config.context_length, num_channels)
        future = torch.empty(num_windows, config.prediction_length, num_channels)
        covariates = {name: torch.empty(num_windows, *shape) for name, shape in twin.covariate_shapes.items()}
        return count_flops(lambda: twin(past, future, **covariates).loss.backward())


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, the best over about 0.2 s: the denominator of MFU."""
    size = _MATMUL_SIZE.get(device.type, 512)
    # no random numbers: measuring must not change those of the training
    matrix = torch.arange(size * size, device=device).cos().view(size, size).to(dtype)
    best, deadline = float("inf"), time.perf_counter() + _MATMUL_SECONDS
    _synchronize(device)
    while True:
        start = time.perf_counter()
        matrix @ matrix
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > deadline:
            return 2 * size**3 / best


def _synchronize(device: torch.device):
    if device.type != "cpu":
        torch.get_device_module(device.type).synchronize(device)


class EarlyStopping(EarlyStoppingCallback):
    """Stops after `early_stopping_patience` evaluations without an improvement; a resumed run continues the count."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        # the Trainer's own restore would also bring back the old patience
        if (stored := state.stateful_callbacks.get(type(self).__name__)) is not None:
            self.early_stopping_patience_counter = stored["attributes"]["early_stopping_patience_counter"]


class ThroughputCallback(TrainerCallback):
    """Counts and times the training of all ranks; each rank counts for itself, without communication.

    Args:
        device: where this rank computes.
        num_ranks: ranks that train in parallel.
        tokens_per_window: tokens of one window in one branch, over all channels.
        flops_per_window: FLOPs of a training step, per window.
        peak_flops: FLOP/s of one rank's device; None leaves out `mfu`.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        num_ranks: int,
        tokens_per_window: int,
        flops_per_window: float = 0.0,
        peak_flops: float | None = None,
    ):
        self.device, self.num_ranks = device, num_ranks
        self.tokens_per_window = tokens_per_window
        self.flops_per_window, self.peak_flops = flops_per_window, peak_flops
        self._clock: float | None = None
        self._warm = False
        self._reported = dict.fromkeys(("seconds", "wait", "steps", "windows"), 0.0)
        self._total = dict(self._reported)

    def fetch(self, get: Callable[[], tuple[list[dict], object]]) -> tuple[list[dict], object]:
        """`get()`, timed: this rank's micro-batches of the next step; the step's clock starts here."""
        start = time.perf_counter()
        if self._clock is None:
            self._clock = start
        fetched = get()
        self._total["wait"] += time.perf_counter() - start
        self._total["steps"] += 1
        self._total["windows"] += self.num_ranks * sum(len(batch["past_values"]) for batch in fetched[0])
        return fetched

    def on_train_begin(self, args, state, control, **kwargs):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def on_step_end(self, args, state, control, **kwargs):
        if not self._warm:
            self._warm = True
            self._stop()
            self._total = dict.fromkeys(self._total, 0.0)
        elif control.should_evaluate or control.should_save:
            self._stop()

    def on_epoch_end(self, args, state, control, **kwargs):
        self._stop()

    def _stop(self):
        """Wait for the device, then stop the clock."""
        if self._clock is not None:
            _synchronize(self.device)
            self._total["seconds"] += time.perf_counter() - self._clock
            self._clock = None

    def report(self) -> dict[str, float]:
        """Figures since the last report, {} if nothing was timed; call it right after reading the loss back."""
        self._stop()
        since = {name: value - self._reported[name] for name, value in self._total.items()}
        self._reported = dict(self._total)
        return self._figures(since)

    def summary(self) -> dict[str, float]:
        """Figures of the whole training except its first step."""
        self._stop()
        return self._figures(self._total)

    def _figures(self, spent: dict[str, float]) -> dict[str, float]:
        if not spent["steps"] or not spent["seconds"]:
            return {}
        windows_per_s = spent["windows"] / spent["seconds"]
        figures = {
            "windows_per_s": windows_per_s,
            "tokens_per_s": windows_per_s * self.tokens_per_window,
            "step_ms": 1e3 * spent["seconds"] / spent["steps"],
            "data_wait_ms": 1e3 * spent["wait"] / spent["steps"],
            "peak_memory_mib": self._peak_memory() / 2**20,
        }
        if self.peak_flops:
            figures["mfu"] = windows_per_s * self.flops_per_window / (self.num_ranks * self.peak_flops)
        return figures

    def _peak_memory(self) -> int:
        """Peak bytes: of this rank's tensors on a GPU, of its process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _peak_resident_bytes()


def _peak_resident_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's getrusage starts at the parent process's peak
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
