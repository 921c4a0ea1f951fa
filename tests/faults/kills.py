"""Trainings that are killed, at each of their file events or at any moment, and what a resume makes of what they left.

Every training is forked from one process that has imported everything: a start costs ten seconds. A kill is SIGKILL
before a file event of the run's folder, as Python's audit hooks see them, or an alarm that nobody handles, which also
ends what writes without Python.
"""

import contextlib
import gc
import importlib
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from faults.inputs import settings_of
from faults.outcomes import HANG, LINE, RIGHT, TRACEBACK, WRONG, Tally
from safetensors.torch import load_file
from training.distributed_cases import train

from llata_fast.lifelines import Lifelines
from llata_fast.training import trainer  # noqa: F401, what takes long to import is there before the fork

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_LIMIT_S = 300
_OUTLIVED_S = 60


@dataclass
class Kind:
    """A way of training that is killed and resumed."""

    name: str
    flags: list[str]
    ranks: int = 1
    tolerance: float = 0.0
    """Of the resumed weights, against an uninterrupted training's."""
    whole: dict[str, torch.Tensor] = field(default_factory=dict)
    events: int = 0
    seconds: float = 0.0


KINDS = [
    Kind("one process", ["--average_decay=0", "--dropout=0.2"]),
    Kind("averaged weights", ["--average_decay=0.5", "--dropout=0.2"]),
    Kind("two ranks", ["--average_decay=0", "--use_cpu=true"], 2, 1e-6),
    Kind("two ranks, ZeRO-2", ["--average_decay=0", f"--deepspeed={ROOT}/ds_configs/zero2.json"], 2, 1e-6),
    Kind("two ranks, ZeRO-3", ["--average_decay=0", f"--deepspeed={ROOT}/ds_configs/zero3.json"], 2, 1e-6),
]


class Trainings:
    """Forks trainings of one tiny model into folders of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        settings = settings_of(folder) | {"max_steps": STEPS, "save_total_limit": 2}
        self.flags = [f"--{name}={value}" for name, value in settings.items() if name != "average_decay"]

    def run(self, kind: Kind, output_dir: Path, *flags: str, kill: dict[str, Any] | None = None) -> list[int | None]:
        """Exit statuses of a training's ranks; negative: the signal, None: it hung. `kill` is for its "rank"."""
        arguments = [*self.flags, *kind.flags, f"--output_dir={output_dir}", *flags]
        port = _free_port()
        victim = kill["rank"] if kill else 0
        pids = []
        for rank in range(kind.ranks):
            log = self.folder / f"log-{rank}"
            environment = _ranks(rank, kind.ranks, port)
            pids.append(_fork(arguments, environment, log, output_dir, kill if rank == victim else None))
        return _statuses(pids)

    def log(self) -> str:
        return "\n".join(path.read_text()[-1500:] for path in sorted(self.folder.glob("log-*")))

    def prepare(self, kind: Kind):
        """Train once without interruption: the weights, the file events, the seconds."""
        if kind.whole:
            return
        run = self.folder / "whole"
        shutil.rmtree(run, ignore_errors=True)
        counted = self.folder / "events"
        # what it imports is there before the next one is forked
        statuses = self.run(kind, run, kill={"rank": 0, "modules": counted})
        assert statuses == [0] * kind.ranks, self.log()
        _import(counted.read_text().split())
        shutil.rmtree(run)
        began = time.monotonic()
        statuses = self.run(kind, run, kill={"rank": 0, "count": counted})
        assert statuses == [0] * kind.ranks, self.log()
        kind.seconds = time.monotonic() - began
        kind.events = int(counted.read_text())
        kind.whole = load_file(run / "model.safetensors")

    def kill_and_resume(self, kind: Kind, kill: dict[str, Any]) -> tuple[str, str]:
        run = Path(tempfile.mkdtemp(dir=self.folder)) / "run"
        try:
            statuses = self.run(kind, run, kill=kill)
            if None in statuses:
                return HANG, f"a rank outlived another one: {statuses}\n{self.log()}"
            if all(status == 0 for status in statuses):
                # the moment came after the end
                return self._judge(kind, run, "")
            killed = statuses[kill["rank"]]
            if killed not in (-signal.SIGKILL, -signal.SIGALRM):
                return TRACEBACK, f"{statuses}\n{self.log()}"
            had = _checkpoints(run)
            statuses = self.run(kind, run, "--resume_from_checkpoint=last")
            if statuses != [0] * kind.ranks and not had and "no whole checkpoint" in self.log():
                statuses = self.run(kind, run, "--overwrite_output_dir=true")
            if None in statuses:
                return HANG, f"the resume: {statuses}\n{self.log()}"
            if statuses != [0] * kind.ranks:
                return TRACEBACK, f"the resume: {statuses}, checkpoints {had}\n{self.log()}"
            return self._judge(kind, run, f"from {had}")
        finally:
            shutil.rmtree(run.parent, ignore_errors=True)

    @staticmethod
    def _judge(kind: Kind, run: Path, how: str) -> tuple[str, str]:
        found = load_file(run / "model.safetensors")
        if found.keys() != kind.whole.keys():
            return WRONG, f"other weights' names {how}"
        apart = max(float((found[name] - expected).abs().max()) for name, expected in kind.whole.items())
        return (RIGHT, "") if apart <= kind.tolerance else (WRONG, f"weights differ by {apart} {how}")


def kills_of(kind: Kind, number: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """`number` kills, at file events (all of them, if they suffice) and at random moments by turns."""
    events = list(range(1, kind.events + 1))
    rng.shuffle(events)
    for index in range(number):
        rank = rng.randrange(kind.ranks)
        if index % 2 == 0 and events:
            # the first rank writes nearly all of it
            yield {"rank": 0, "event": events.pop()}
        else:
            yield {"rank": rank, "seconds": rng.uniform(0.0, kind.seconds)}


def try_kills(trainings: Trainings, kind: Kind, number: int, seed: int, tally: Tally, until: float = float("inf")):
    """Kill and resume `number` times, or until that time of the monotonic clock."""
    trainings.prepare(kind)
    for kill in kills_of(kind, number, random.Random(f"{seed} {kind.name}")):
        if time.monotonic() > until:
            return
        outcome, said = trainings.kill_and_resume(kind, kill)
        tally.add(f"kill: {kind.name}", outcome, f"{kill}: {said}")


def try_two_at_once(trainings: Trainings, tally: Tally):
    """Into one folder that is named, and into the default one, from an empty working directory."""
    kind = KINDS[1]
    trainings.prepare(kind)
    place = Path(tempfile.mkdtemp(dir=trainings.folder))
    for named in (True, False):
        arguments = [*trainings.flags, *kind.flags, *([f"--output_dir={place / 'run'}"] if named else [])]
        logs = [trainings.folder / f"log-{index}" for index in range(2)]
        pids = [_fork(arguments, {}, log, place, None, directory=place) for log in logs]
        statuses = _statuses(pids)
        runs = [place / "run"] if named else sorted((place / "runs").glob("*"))
        right = all(trainings._judge(kind, run, "")[0] == RIGHT for run in runs)
        if None in statuses:
            outcome = HANG
        elif sorted(statuses) == ([0, 2] if named else [0, 0]) and right and len(runs) == (1 if named else 2):
            outcome = LINE if named else RIGHT
        else:
            outcome = WRONG
        tally.add("two runs at once", outcome, f"{statuses} {runs}\n{trainings.log()}")
    shutil.rmtree(place, ignore_errors=True)


def _checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("checkpoint-*") if (path / "manifest.json").is_file())


def _ranks(rank: int, number: int, port: int) -> dict[str, str]:
    if number == 1:
        return {}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    return meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(number)}


def _import(names: list[str]):
    """Import what is there, and keep it from the collector: a fork that looks through it copies every page."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _fork(
    arguments: list[str],
    environment: dict[str, str],
    log: Path,
    watched: Path,
    kill: dict[str, Any] | None,
    directory: Path | None = None,
) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os.environ.update(environment)
        os.chdir(directory or ROOT)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if kill and "seconds" in kill:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, kill["seconds"]))
        Path("/proc/self/comm").write_text("llata_alone")
        counter = _count_events(watched, kill.get("event")) if kill else None
        with _plain():
            train(arguments)
        status = 0
        if kill and "modules" in kill:
            kill["modules"].write_text("\n".join(sys.modules))
        if kill and "count" in kill:
            signal.setitimer(signal.ITIMER_REAL, 0)
            kill["count"].write_text(str(counter[0]))
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _plain() -> contextlib.AbstractContextManager:
    """Without what takes long and writes no weights: a picture, the device's rate of products."""
    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch("llata_fast.kernels._launch.ENABLED", False))
    stack.enter_context(mock.patch("llata_fast.training.trainer.matmul_rate", lambda *_: 1e12))
    stack.enter_context(mock.patch("llata_fast.ranks.Lifelines", _Met))
    stack.enter_context(mock.patch("llata_fast.forecasting.pictures.HAS_MATPLOTLIB", False))
    return stack


class _Met(Lifelines):
    """Says so once all ranks have met."""

    def __init__(self):
        super().__init__()
        Path("/proc/self/comm").write_text("llata_met")


def _count_events(folder: Path, kill_at: int | None) -> list[int]:
    """Count what happens to files below `folder`, and die before the `kill_at`-th event."""
    counter, prefix = [0], str(folder)

    def see(event, args):
        if event not in _EVENTS or not any(isinstance(arg, (str, os.PathLike)) and prefix in str(arg) for arg in args):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITING):
            return
        counter[0] += 1
        if counter[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(see)
    return counter


def _statuses(pids: list[int]) -> list[int | None]:
    """How each of them ended; None: it did not in _LIMIT_S, or not in _OUTLIVED_S after another one had failed.

    Then it is killed, as a launcher would. One that has not met the others yet is the launcher's to end.
    """
    until, ended = time.monotonic() + _LIMIT_S, {}
    while len(ended) < len(pids) and time.monotonic() < until:
        if any(ended.values()):
            until = min(until, time.monotonic() + _OUTLIVED_S)
        for pid in pids:
            if pid not in ended:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    ended[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for pid in pids:
        if pid not in ended:
            alone = b"llata_alone" in Path(f"/proc/{pid}/comm").read_bytes()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if alone and any(ended.values()):
                ended[pid] = -signal.SIGKILL
    return [ended.get(pid) for pid in pids]
