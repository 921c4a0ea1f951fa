"""SIGTERM, and the end of the launcher, stop a training in order: a step is finished, a checkpoint written, the exit 0.

Schedulers send SIGTERM and wait, often for half a minute, before they kill. Some launchers forward it to their ranks,
others die and leave them behind, so that ranks also watch who started them. One rank's word stops all of them at the
same step.
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
"""A stop waits so long for an evaluation; without its score the step's checkpoint would not resume to the same run."""

_requested: float | None = None
_training = False
_where = "nothing to resume from: there is no checkpoint yet"


def where_it_stands() -> str:
    """From where an interrupted training can be resumed, as the end of a sentence."""
    return _where


@contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """SIGTERM, or the launcher's end, asks a training inside to stop; where none is under way, it ends the program.

    In another thread than the main one, which alone receives signals, it does nothing.
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
        # print may be what the signal has interrupted
        os.write(sys.stdout.fileno(), f"\nstopped{when}; {_where}\n".encode())
    raise Stopped(together)


def _watch_launcher(done: threading.Event):
    started_by = _launcher()
    while not done.wait(1):
        if _launcher() != started_by:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _launcher() -> list[int]:
    """The processes whose end must be this one's: its parent, and DeepSpeed's runner, which forwards nothing."""
    parents = [os.getppid()]
    try:
        if b"deepspeed.launcher.launch" in Path(f"/proc/{parents[0]}/cmdline").read_bytes():
            # the name in parentheses may hold anything
            status = Path(f"/proc/{parents[0]}/stat").read_text().rpartition(")")[2].split()
            parents.append(int(status[1]))
    except OSError:
        pass
    return parents


class Stopping(TrainerCallback):
    """Ends a training at the step at which any rank was asked to; comes before what prepares a checkpoint.

    A checkpoint is written there. Where the epoch ends, too, that is after its evaluation.
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
        # it may have taken long
        self._agreed = any_rank(_requested is not None)
        control.should_save |= self._agreed

    def on_save(self, args, state, control, **kwargs):
        self._saved_step = state.global_step
        self._note(Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"))

    def on_prediction_step(self, args, state, control, **kwargs):
        # of several ranks the others would wait for this one
        alone = args.world_size == 1
        if alone and _requested is not None and time.monotonic() - _requested > _EVALUATION_SECONDS:
            self._leave(state)

    def on_train_end(self, *args, **kwargs):
        global _training
        _training = False

    def leave_if_agreed(self, state):
        """Every rank calls it once what a step, or an epoch, leaves to be done is done."""
        if self._agreed and not self._epoch_ends:
            self._leave(state)

    def _leave(self, state):
        _stop(together=True, when=f" at step {state.global_step}")

    @staticmethod
    def _note(checkpoint: str | Path):
        global _where
        _where = f"--resume_from_checkpoint {checkpoint} goes on from there"
