"""SIGTERM to the process that started a training leaves a complete checkpoint, one line, and no other process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import training_flags

from llata_fast.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
# the time that a scheduler waits, times three for a slow machine
_STOP_SECONDS = 90
LAUNCHERS = {
    "python": ([sys.executable], [], 0),
    "torchrun": (["torchrun", "--nproc_per_node", "2"], [], 1),
    "deepspeed": (["deepspeed", "--num_gpus", "2"], ["--deepspeed", "ds_configs/zero2.json"], -signal.SIGTERM),
}
"""Launcher command, its flags for train.py, and the launcher's exit code."""


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    steps = {"max_steps": 100_000, "save_steps": 100_000, "eval_strategy": "steps", "eval_steps": 1, "patience": 0}
    return training_flags(tmp_path_factory.mktemp("stopped"), **steps)


def left_of(run: Path) -> list[str]:
    """Ids of processes that train into this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"--output_dir={run}".encode() in words and path.parent.name != str(os.getpid()):
            found.append(path.parent.name)
    return found


def waited_for(condition, seconds: float) -> float:
    """Wait until the condition holds; returns the seconds waited."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come true"
        time.sleep(0.1)
    return time.monotonic() - began


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_stopped_launcher_leaves_a_complete_checkpoint_and_no_process(launcher, flags, free_ports, tmp_path):
    command, more, code = LAUNCHERS[launcher]
    meeting = [] if launcher == "python" else ["--master_port", str(free_ports(1)[0])]
    run, log = tmp_path / "run", tmp_path / "log"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *meeting, "train.py", *flags, *more, f"--output_dir={run}"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        waited_for(lambda: "step 2 of" in log.read_text() or process.poll() is not None, 240)
        assert process.poll() is None, log.read_text()[-3000:]
        process.send_signal(signal.SIGTERM)
        waited_for(lambda: process.poll() is not None and not left_of(run), _STOP_SECONDS)
    finally:
        for pid in left_of(run):
            os.kill(int(pid), signal.SIGKILL)
        process.kill()
    said = log.read_text()
    assert process.returncode == code, said[-3000:]
    checkpoint = RunFolder(run).last_checkpoint().path
    assert f"resume with --resume_from_checkpoint {checkpoint}" in said
    assert not list(run.glob(".*partial"))
