"""Trainings with a failing disk: it fills up, a file size limit is reached, the folder vanishes or becomes a file.

The training must end with one line and leave only complete checkpoints. Once there is space again, it must resume to
the weights of an uninterrupted training.
"""

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from faults.kills import KINDS, Trainings
from faults.outcomes import HANG, LINE, RIGHT, TRACEBACK, WRONG, Tally

_KINDS = ("limit", "full", "vanishes", "becomes a file")


def try_disks(trainings: Trainings, number: int, seed: int, tally: Tally):
    """Run `number` single-process trainings with averaged weights for every way of failing."""
    kind = KINDS[1]
    trainings.prepare(kind)
    sizes = [path.stat().st_size for path in (trainings.folder / "whole").rglob("*") if path.is_file()]
    rng = random.Random(f"{seed} disks")
    for index in range(number * len(_KINDS)):
        failing = _KINDS[index % len(_KINDS)]
        if failing == "full" and not _can_mount():
            continue
        place = Path(tempfile.mkdtemp(dir=trainings.folder))
        try:
            with _disk(place, round(rng.uniform(0.1, 1.2) * sum(sizes)) if failing == "full" else None) as grow:
                watch: dict = {"rank": 0}
                if failing == "limit":
                    watch["limit"] = round(rng.uniform(0.02, 1.1) * max(sizes))
                elif failing != "full":
                    watch |= {"event": rng.choice(kind.events)[1], "instead": _vanish if "v" in failing else _become}
                statuses = trainings.run(kind, place / "run", watch=watch)
                outcome = _outcome(trainings, place / "run", statuses, grow)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        tally.add(f"disk: {failing}", *outcome)
        tally.keep()


def _outcome(trainings: Trainings, run: Path, statuses: list, grow) -> tuple[str, str]:
    kind, said = KINDS[1], (trainings.folder / "log-0").read_text()
    if statuses == [None]:
        return HANG, said
    if statuses == [0]:
        return trainings.judge(kind, run, "") if (run / "model.safetensors").is_file() else (WRONG, "nothing is left")
    line = said.strip().splitlines()[-1] if said.strip() else ""
    if statuses != [2] or "Traceback" in said or ": error: " not in line:
        return TRACEBACK, f"{statuses} {said}"
    # there is space again
    grow()
    if run.is_file():
        run.unlink()
    for flags in (["--resume_from_checkpoint=last"], ["--overwrite_output_dir=true"]):
        if trainings.run(kind, run, *flags) == [0]:
            outcome, why = trainings.judge(kind, run, "")
            return (LINE if outcome == RIGHT else outcome), why or line
    return TRACEBACK, f"{line}, then {trainings.log()}"


@contextlib.contextmanager
def _disk(place: Path, size: int | None) -> Iterator:
    """Mount a disk of `size` bytes at `place`, if a size is given; yields a function that enlarges it."""
    if size is None:
        yield lambda: None
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "tmpfs", folder]
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            return False
        return not subprocess.run(["umount", folder], check=False).returncode


def _vanish(folder: Path):
    shutil.rmtree(folder, ignore_errors=True)


def _become(folder: Path):
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("a file\n")
