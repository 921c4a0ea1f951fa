"""Progress reports of a training: one line on the terminal, and the complete record in the run's log file."""

import logging
import time
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from ..run_folder import RunFolder

_log = logging.getLogger(__name__)

_TERMS = ("task", "quantile", "consistency", "alignment")


def training_line(record: dict[str, Any], seconds_left: float | None) -> str | None:
    """A record of the Trainer's log as one line: losses, or validation scores; None for any other record.

    `record` also has "step" and "max_steps".
    """
    place = f"step {record['step']:,} of {record['max_steps']:,}"
    if "loss" in record:
        terms = [f"{name} {record[f'{name}_loss']:.4g}" for name in _TERMS if f"{name}_loss" in record]
        parts = [f"loss {record['loss']:.4g}" + (f" ({', '.join(terms)})" if len(terms) > 1 else "")]
        if "windows_per_s" in record:
            parts.append(f"{record['windows_per_s']:,.0f} windows/s")
        if seconds_left is not None:
            parts.append(f"{_duration(seconds_left)} left")
        return f"{place}: {', '.join(parts)}"
    if "eval_mse" in record:
        scores = f"validation MSE {record['eval_mse']:.4f}, MAE {record['eval_mae']:.4f}"
        return f"{place}: {scores}" + (f", best {record['best']:.4f}" if record.get("best") is not None else "")
    return None


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    if hours:
        return f"{hours} h {minutes % 60:02} min"
    return f"{minutes} min {round(seconds) % 60:02} s" if minutes else f"{round(seconds)} s"


class TrainingLog(TrainerCallback):
    """Appends every record of the Trainer's log to the run's log file, one JSON object per line; only rank 0 writes.

    A resumed run continues at its checkpoint: records of later steps are dropped first.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            RunFolder(args.output_dir).cut_log(after_step=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            RunFolder(args.output_dir).append_log({"step": state.global_step} | logs)


class ProgressLine(ProgressCallback):
    """The Trainer's progress bar and one line per record; without `bar`, only the lines."""

    def __init__(self, bar: bool):
        super().__init__()
        self.bar = bar
        self._began: tuple[float, int] | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._began = time.perf_counter(), state.global_step
        if self.bar:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.bar:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        record = {"step": state.global_step, "max_steps": state.max_steps, "best": state.best_metric} | logs
        line = training_line(record, self._seconds_left(state))
        if line is not None:
            _log.info(line)

    def _seconds_left(self, state) -> float | None:
        if self._began is None or state.global_step <= self._began[1]:
            return None
        began, first = self._began
        pace = (time.perf_counter() - began) / (state.global_step - first)
        return pace * (state.max_steps - state.global_step)
