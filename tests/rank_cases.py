"""One of two ranks, which ends as CASE says: `rank_cases.py CASE`, with torch's environment variables for ranks."""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import os
import signal
import sys
import time

from torch import distributed

from llata_fast import lifelines
from llata_fast.errors import InputError
from llata_fast.ranks import from_first_rank, leaving_in_order


def absent(rank):
    """Rank 1 dies before rank 0 has heard from it."""
    lifelines.MISSED_SECONDS, lifelines.MEETING_SECONDS = 1, 3
    if rank == 1:
        os._exit(3)


def first_absent(rank):
    lifelines.MISSED_SECONDS, lifelines.MEETING_SECONDS, lifelines._TRY_SECONDS = 1, 3, 1
    if rank == 0:
        os._exit(3)


def late(rank):
    """Rank 0 exits with 0 before rank 1 has joined; then rank 1 exits with 0, too."""
    time.sleep(3 * rank)


def late_exit(rank):
    sys.exit(0)


def killed_meeting_exit(rank):
    """Rank 1 is killed after it has connected, but before it joins the process group."""
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def finished(rank):
    # rank 0 hosts the store and has nothing to do
    time.sleep(3 * rank)


def nested(rank):
    with leaving_in_order():
        pass
    assert distributed.is_initialized()


def killed(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()


def first_killed(rank):
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    # like a collective that does not notice the other rank's death
    time.sleep(300)


def failed(rank):
    if rank == 1:
        raise RuntimeError("this one alone")
    time.sleep(300)


def refused(rank):
    def read():
        raise InputError("no such file")

    from_first_rank(read)


BEFORE = {"absent": absent, "first_absent": first_absent, "late": late}
"""What a rank does before the other can watch it."""
MEETING = {"late": late_exit, "killed_meeting": killed_meeting_exit}
"""What a rank does before it joins the process group."""
JOINED = {case.__name__: case for case in (finished, nested, killed, first_killed, failed, refused)}


def main():
    case, rank = sys.argv[1], int(os.environ["RANK"])
    print("joined", flush=True)
    BEFORE.get(case, id)(rank)
    try:
        with leaving_in_order():
            MEETING.get(case, id)(rank)
            distributed.init_process_group("gloo")
            JOINED.get(case, id)(rank + from_first_rank(lambda: 0))
    except InputError as error:
        sys.exit(str(error))
    assert not distributed.is_initialized()


if __name__ == "__main__":
    main()
