"""How two ranks end: together, or one before the other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("rank_cases.py")
CASES = ["finished", "nested", "killed", "first_killed", "failed", "refused"]
CASES += ["killed_meeting", "absent", "first_absent", "late"]


@pytest.fixture(scope="module")
def ended(free_ports):
    """{case: [(exit status, output, seconds) of each rank]}; all cases run at once."""
    began = time.monotonic()
    processes = {}
    for case, port in zip(CASES, free_ports(len(CASES)), strict=True):
        for rank in range(2):
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
            processes[case, rank] = subprocess.Popen(
                [sys.executable, SCRIPT, case],
                env=os.environ | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
    outcome = {case: [] for case in CASES}
    for (case, _), process in processes.items():
        try:
            output, _ = process.communicate(timeout=200)
        finally:
            process.kill()
        assert "joined" in output
        outcome[case].append((process.returncode, output.replace("joined\n", ""), time.monotonic() - began))
    return outcome


@pytest.mark.parametrize("case", ["finished", "nested", "late"])
def test_both_ranks_exit_with_zero(case, ended):
    assert [status for status, *_ in ended[case]] == [0, 0]
    assert not any(output for _, output, _ in ended[case])


@pytest.mark.parametrize(("case", "dead"), [("killed", 1), ("first_killed", 0), ("killed_meeting", 1)])
def test_a_dead_rank_ends_the_job_with_its_name(case, dead, ended):
    status, output, seconds = ended[case][1 - dead]
    assert ended[case][dead][0] == -signal.SIGKILL and status == 1
    assert f"rank {dead} (process " in output and "has died" in output
    assert "Traceback" not in output
    # a minute, while twenty processes start
    assert seconds < 180


@pytest.mark.parametrize(("case", "dead"), [("absent", 1), ("first_absent", 0)])
def test_a_rank_that_never_joins_is_named(case, dead, ended):
    status, output, _ = ended[case][1 - dead]
    assert ended[case][dead][0] == 3 and status == 1
    assert f"is waiting for rank {dead}" in output and f"rank {dead} did not " in output
    assert "Traceback" not in output


def test_a_failing_rank_ends_the_other(ended):
    (waiting, output, _), (failing, trace, _) = ended["failed"]
    assert (waiting, failing) == (1, 1)
    assert "this one alone" in trace and "has died" not in output


def test_wrong_input_is_reported_by_all(ended):
    """Each rank decides whether it prints the error."""
    assert [(status, output) for status, output, _ in ended["refused"]] == [(1, "no such file\n")] * 2
