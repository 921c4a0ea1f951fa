"""Graceful stops: on SIGTERM or when the launcher dies, training finishes its step, saves a checkpoint and exits 0.

Schedulers send SIGTERM and wait, often for half a minute, before they kill. Some launchers forward it to their ranks;
others die and leave their ranks behind, so each rank also watches its launcher. A request to any one rank stops all
ranks at the same step.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..ranks import Stopped, any_rank

_EVALUATION_SECONDS = 20
"""How long a stop waits for an evaluation; without its score, resuming from this step would give another run."""

_requested: float | None = None
_training = False
_where = "nothing to resume from: there is no checkpoint yet"


def where_it_stands() -> str:
    """Where an interrupted training can be resumed, as the end of a sentence."""
    return _where


@contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM or the death of the launcher stops the current training, or ends the program if there is none.

    Does nothing outside the main thread, which alone receives signals.
    """
    global _requested, _training, _where
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requested, _training, _where = None, False, "nothing to resume from: there is no checkpoint yet"
    before = signal.signal(signal.SIGTERM, _ask)
    done = threading.Event()
    if "LOCAL_RANK" in os.environ:
        threading.Thread(target=_watch_launcher, args=(done,), daemon=True, name="launcher").start()
    try:
        yield
    finally:
        done.set()
        signal.signal(signal.SIGTERM, before)


def _ask(*_):
    global _requested
    first, _requested = _requested is None, _requested or time.monotonic()
    if first and not _training:
        _stop(together=False)


def _stop(together: bool, when: str = ""):
    if os.environ.get("LOCAL_RANK", "0") == "0":
        # not print: the signal may have interrupted a print
        os.write(sys.stdout.fileno(), f"\nstopped{when}; {_where}\n".encode())
    raise Stopped(together)


def _watch_launcher(done: threading.Event):
    started_by = _launcher()
    while not done.wait(1):
        if _launcher() != started_by:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _launcher() -> list[int]:
    """The processes that this one must not outlive: its parent, and DeepSpeed's runner, which forwards no signals."""
    parents = [os.getppid()]
    try:
        if b"deepspeed.launcher.launch" in Path(f"/proc/{parents[0]}/cmdline").read_bytes():
            # the name in parentheses may contain any characters
            status = Path(f"/proc/{parents[0]}/stat").read_text().rpartition(")")[2].split()
            parents.append(int(status[1]))
    except OSError:
        pass
    return parents


class Stopping(TrainerCallback):
    """Ends training at the step at which any rank received a request; runs before callbacks that prepare a checkpoint.

    It saves a checkpoint there; at the end of an epoch, only after the epoch's evaluation.
    """

    def __init__(self):
        self._agreed = self._epoch_ends = False
        self._saved_step = -1

    def on_train_begin(self, args, state, control, **kwargs):
        global _training
        _training = True
        if args.resume_from_checkpoint:
            self._note(args.resume_from_checkpoint)
        if any_rank(_requested is not None):
            self._leave(state)

    def on_step_end(self, args, state, control, **kwargs):
        self._agreed = any_rank(_requested is not None)
        self._epoch_ends = control.should_training_stop or float(state.epoch).is_integer()
        control.should_save |= self._agreed and not self._epoch_ends

    def on_epoch_end(self, args, state, control, **kwargs):
        self._epoch_ends = False
        control.should_save |= self._agreed and self._saved_step != state.global_step

    def on_evaluate(self, args, state, control, **kwargs):
        # a request may have arrived during a long evaluation
        self._agreed = any_rank(_requested is not None)
        control.should_save |= self._agreed

    def on_save(self, args, state, control, **kwargs):
        self._saved_step = state.global_step
        self._note(Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"))

    def on_prediction_step(self, args, state, control, **kwargs):
        # with several ranks, the others would wait for this one
        alone = args.world_size == 1
        if alone and _requested is not None and time.monotonic() - _requested > _EVALUATION_SECONDS:
            self._leave(state)

    def on_train_end(self, *args, **kwargs):
        global _training
        _training = False

    def leave_if_agreed(self, state):
        """Every rank calls it once the work that follows a step or an epoch is done."""
        if self._agreed and not self._epoch_ends:
            self._leave(state)

    def _leave(self, state):
        _stop(together=True, when=f" at step {state.global_step}")

    @staticmethod
    def _note(checkpoint: str | Path):
        global _where
        _where = f"resume with --resume_from_checkpoint {checkpoint}"
