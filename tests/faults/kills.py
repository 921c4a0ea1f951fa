"""Kills trainings at each of their file events or at random moments, resumes them, and judges the result.

A start takes ten seconds, so every training is forked from one process that has already imported everything. A kill is
SIGKILL before a file event in the run's folder (seen by a Python audit hook), or an unhandled alarm, which also ends
code that writes without Python. A training records its progress in memory shared with the parent process.
"""

import contextlib
import gc
import importlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from faults.inputs import settings_of
from faults.outcomes import BAD, HANG, LINE, RIGHT, TRACEBACK, WRONG, Tally
from safetensors.torch import load_file
from training.distributed_cases import train

from llata_fast.lifelines import Lifelines
from llata_fast.training import trainer  # noqa: F401, slow imports before the fork

ROOT = Path(__file__).resolve().parents[2]
# the third checkpoint replaces the first one
STEPS = 3
_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_LIMIT_S = 300
# seconds within which a rank must notice another's death, and before they have met
_OUTLIVED_S = 60
_ALONE_S = 2


@dataclass
class Kind:
    """A kind of training to kill and resume."""

    name: str
    flags: list[str]
    ranks: int = 1
    tolerance: float = 0.0
    """Largest allowed difference between the resumed weights and an uninterrupted training's."""
    every_event: bool = False
    """Whether a long run kills it at every file event."""
    whole: dict[str, torch.Tensor] = field(default_factory=dict)
    events: list[tuple[int, int]] = field(default_factory=list)
    """All file events as (rank, number of the event on that rank)."""
    seconds: float = 0.0


KINDS = [
    Kind("one process", ["--average_decay=0", "--dropout=0.2"]),
    Kind("averaged weights", ["--average_decay=0.5", "--dropout=0.2"], every_event=True),
    Kind("two ranks", ["--average_decay=0", "--use_cpu=true"], 2, 1e-6),
    Kind("two ranks, averaged weights", ["--average_decay=0.5", "--use_cpu=true"], 2, 1e-6),
    Kind("two ranks, ZeRO-2", ["--average_decay=0", f"--deepspeed={ROOT}/ds_configs/zero2.json"], 2, 1e-6),
    Kind("two ranks, ZeRO-3", ["--average_decay=0", f"--deepspeed={ROOT}/ds_configs/zero3.json"], 2, 1e-6),
]


class Marks:
    """Progress of the ranks in memory shared by all forks: one byte per kind of mark and rank."""

    def __init__(self):
        self._bytes = mmap.mmap(-1, 3 * 16)

    def clear(self):
        self._bytes[:] = bytes(len(self._bytes))

    def set(self, kind: int, rank: int, value: int):
        self._bytes[3 * rank + kind] = value

    def get(self, kind: int, rank: int = 0) -> int:
        return self._bytes[3 * rank + kind]


# 1 once the others watch this rank; optimizer steps taken; 1 + the step that the training began with
MET, TAKEN, BEGUN = range(3)
MARKS = Marks()


class Trainings:
    """Forks trainings of a tiny model, each into a new folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        settings = settings_of(folder) | {"max_steps": STEPS, "save_total_limit": 2}
        self.save_steps = settings["save_steps"]
        self.flags = [f"--{name}={value}" for name, value in settings.items() if name != "average_decay"]

    def run(self, kind: Kind, output_dir: Path, *flags: str, watch: dict[str, Any] | None = None) -> list[int | None]:
        """Exit statuses of a training's ranks; -signal if killed, None if it hung. For `watch` see `_fork`."""
        arguments = [*self.flags, *kind.flags, f"--output_dir={output_dir}", *flags]
        port = _free_port()
        MARKS.clear()
        pids = []
        for rank in range(kind.ranks):
            log = self.folder / f"log-{rank}"
            ours = watch if watch and watch.get("rank", rank) == rank else None
            pids.append(_fork(arguments, _ranks(rank, kind.ranks, port), log, output_dir, ours))
        return _statuses(pids)

    def log(self) -> str:
        return "\n".join(path.read_text()[-1500:] for path in sorted(self.folder.glob("log-*")))

    def prepare(self, kind: Kind):
        """Train twice without interruption: first for the imports, then for weights, file events and seconds."""
        if kind.whole:
            return
        run = self.folder / "whole"
        for number in range(2):
            shutil.rmtree(run, ignore_errors=True)
            began = time.monotonic()
            statuses = self.run(kind, run, watch={"notes": self.folder})
            assert statuses == [0] * kind.ranks, self.log()
            notes = [json.loads((self.folder / f"notes-{rank}").read_text()) for rank in range(kind.ranks)]
            if number == 0:
                _import(notes[0]["modules"])
        kind.seconds = time.monotonic() - began
        kind.events = [(rank, 1 + event) for rank, note in enumerate(notes) for event in range(note["events"])]
        kind.whole = load_file(run / "model.safetensors")

    def kill_and_resume(self, kind: Kind, kill: dict[str, Any]) -> tuple[str, str]:
        run = Path(tempfile.mkdtemp(dir=self.folder)) / "run"
        try:
            statuses = self.run(kind, run, watch=kill)
            if None in statuses:
                return HANG, f"a rank outlived another one: {statuses}\n{self.log()}"
            if all(status == 0 for status in statuses):
                # the training ended before the kill
                return self.judge(kind, run, "")
            killed = statuses[kill["rank"]]
            if killed not in (-signal.SIGKILL, -signal.SIGALRM) or "Traceback" in self.log():
                return TRACEBACK, f"{statuses}\n{self.log()}"
            taken, had = MARKS.get(TAKEN, kill["rank"]), _checkpoints(run)
            statuses = self.run(kind, run, "--resume_from_checkpoint=last")
            begun = MARKS.get(BEGUN) - 1
            if statuses != [0] * kind.ranks and not had and "no complete checkpoint" in self.log():
                statuses, begun = self.run(kind, run, "--overwrite_output_dir=true"), 0
            if None in statuses:
                return HANG, f"the resume: {statuses}\n{self.log()}"
            if statuses != [0] * kind.ranks:
                return TRACEBACK, f"the resume: {statuses}, checkpoints {had}\n{self.log()}"
            if taken - begun > self.save_steps:
                return WRONG, f"{taken} steps were taken, the resume began with {begun}, checkpoints {had}"
            return self.judge(kind, run, f"from {had}")
        finally:
            shutil.rmtree(run.parent, ignore_errors=True)

    @staticmethod
    def judge(kind: Kind, run: Path, how: str) -> tuple[str, str]:
        found = load_file(run / "model.safetensors")
        if found.keys() != kind.whole.keys():
            return WRONG, f"other weights' names {how}"
        apart = max(float((found[name] - expected).abs().max()) for name, expected in kind.whole.items())
        return (RIGHT, "") if apart <= kind.tolerance else (WRONG, f"weights differ by {apart} {how}")


def kills_of(kind: Kind, number: int, each_event: bool, rng: random.Random) -> Iterator[dict[str, Any]]:
    """`number` kills, alternately at file events and at random moments, after one per event if `each_event`."""
    events = rng.sample(kind.events, len(kind.events))
    if each_event and kind.every_event:
        yield from ({"rank": rank, "event": event} for rank, event in events)
    for index in range(number):
        if events and index % 2 == 0:
            rank, event = events.pop()
            yield {"rank": rank, "event": event}
        else:
            yield {"rank": rng.randrange(kind.ranks), "seconds": rng.uniform(0.0, kind.seconds)}


def try_kills(
    trainings: Trainings,
    kinds: list[Kind],
    number: int,
    seed: int,
    tally: Tally,
    until: float = float("inf"),
    each_event: bool = False,
):
    """Kill and resume `number` trainings of each kind in turn, at most until `until` on the monotonic clock.

    Single-process kinds get twice as many, since they take less than half the time.
    """
    for kind in kinds:
        trainings.prepare(kind)
    turns = [kind for kind in kinds for _ in range(1 + (kind.ranks == 1))]
    queues = {
        kind.name: kills_of(kind, number * turns.count(kind), each_event, random.Random(f"{seed} {kind.name}"))
        for kind in kinds
    }
    while queues:
        for kind in [kind for kind in turns if kind.name in queues]:
            kill = next(queues.get(kind.name, iter(())), None)
            if kill is None or time.monotonic() > until:
                queues.pop(kind.name, None)
                continue
            outcome, said = trainings.kill_and_resume(kind, kill)
            tally.add(f"kill: {kind.name}", outcome, f"{kill}: {said}")
            tally.keep()
            if outcome in BAD:
                print(tally.examples[-1], flush=True)


def try_two_at_once(trainings: Trainings, tally: Tally):
    """Start two runs at once into a named folder, and into the default one from an empty working directory."""
    kind = KINDS[1]
    trainings.prepare(kind)
    place = Path(tempfile.mkdtemp(dir=trainings.folder))
    for named in (True, False):
        arguments = [*trainings.flags, *kind.flags, *([f"--output_dir={place / 'run'}"] if named else [])]
        logs = [trainings.folder / f"log-{index}" for index in range(2)]
        pids = [_fork(arguments, {}, log, place, None, directory=place) for log in logs]
        statuses = _statuses(pids, together=False)
        runs = [place / "run"] if named else sorted((place / "runs").glob("*"))
        right = all(trainings.judge(kind, run, "")[0] == RIGHT for run in runs)
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
    """Import what exists and freeze it: garbage collection in a fork would copy every page."""
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
    watch: dict[str, Any] | None,
    directory: Path | None = None,
) -> int:
    """Start a training in a fork; returns its process id.

    Keys of `watch`: "event" or "seconds" at which to kill it; "instead", a function of the folder to call at the event
    in place of the kill; "limit", the largest file size in bytes; "notes", a folder for the notes at the end.
    """
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
        watch = watch or {}
        if "seconds" in watch:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, watch["seconds"]))
        if "limit" in watch:
            _limit_files(watch["limit"])
        counter = _count_events(watched, watch.get("event"), watch.get("instead", _die))
        with _plain():
            train(arguments)
        status = 0
        if "notes" in watch:
            notes = {"events": counter[0], "modules": list(sys.modules)}
            (watch["notes"] / f"notes-{environment.get('RANK', 0)}").write_text(json.dumps(notes))
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
    """Context with marks and without slow parts that write no weights: picture, FLOPs, speed of the device."""
    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch("llata_fast.kernels._launch.ENABLED", False))
    stack.enter_context(mock.patch("llata_fast.training.trainer.matmul_rate", lambda *_: 1e12))
    stack.enter_context(mock.patch("llata_fast.training.trainer.micro_step_flops", lambda *_: 1e6))
    stack.enter_context(mock.patch("llata_fast.training.trainer.TrainingLog", _MarkingLog))
    stack.enter_context(mock.patch("llata_fast.ranks.Lifelines", _MarkingLifelines))
    stack.enter_context(mock.patch("llata_fast.forecasting.pictures.HAS_MATPLOTLIB", False))
    return stack


class _MarkingLifelines(Lifelines):
    """Sets a mark once the other ranks would notice this one's death."""

    def __init__(self):
        super().__init__()
        MARKS.set(MET, self.rank, 1)


class _MarkingLog(trainer.TrainingLog):
    """Marks the step that a training begins with, and every step it takes."""

    def on_train_begin(self, args, state, control, **kwargs):
        MARKS.set(BEGUN, args.process_index, 1 + state.global_step)
        return super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        MARKS.set(TAKEN, args.process_index, state.global_step)
        return super().on_step_end(args, state, control, **kwargs)


def _count_events(folder: Path, at: int | None, act: Callable[[Path], None]) -> list[int]:
    """Count file events below `folder`, and act before the `at`-th one."""
    counter, prefix = [0], str(folder)

    def see(event, args):
        if event not in _EVENTS or not any(isinstance(arg, (str, os.PathLike)) and prefix in str(arg) for arg in args):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITING):
            return
        counter[0] += 1
        # exactly once: `act` may cause events, too
        if counter[0] == at:
            act(folder)

    sys.addaudithook(see)
    return counter


def _die(_: Path):
    os.kill(os.getpid(), signal.SIGKILL)


def _limit_files(size: int):
    """Limit the size of files that this process writes, in bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _statuses(pids: list[int], together: bool = True) -> list[int | None]:
    """Exit status of each process; None if it outlived _LIMIT_S, or _OUTLIVED_S after another one failed.

    Prints the stacks of such a process and kills it. If the ranks have not met yet, killing them is the launcher's
    task, which this function takes over.
    """
    until, ended = time.monotonic() + _LIMIT_S, {}
    while len(ended) < len(pids) and time.monotonic() < until:
        for pid in pids:
            if pid not in ended:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    ended[pid] = os.waitstatus_to_exitcode(status)
        if together and any(ended.values()):
            all_met = all(MARKS.get(MET, rank) for rank in range(len(pids)))
            until = min(until, time.monotonic() + (_OUTLIVED_S if all_met else _ALONE_S))
        time.sleep(0.005)
    all_met = all(MARKS.get(MET, rank) for rank in range(len(pids)))
    for pid in pids:
        if pid not in ended:
            if all_met:
                show_stacks(pid)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if together and not all_met and any(ended.values()):
                ended[pid] = -signal.SIGKILL
    return [ended.get(pid) for pid in pids]


def show_stacks(pid: int):
    """Print Python and native stacks, if py-spy is installed."""
    if found := shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"):
        subprocess.run([found, "dump", "--native", "--pid", str(pid)], check=False, timeout=60)
