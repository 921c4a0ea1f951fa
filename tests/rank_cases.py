"""One rank of two that end in some way: `rank_cases.py CASE`, with torch's environment variables for ranks."""

# first: why says llata_fast/__init__.py
import llata_fast  # noqa: F401, I001

import os
import signal
import sys
import time

from torch import distributed

from llata_fast.errors import InputError
from llata_fast.ranks import from_first_rank, leaving_in_order


def finished(rank):
    # the first one holds the store and has nothing to do
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
    # as in a collective that does not notice
    time.sleep(300)


def failed(rank):
    if rank == 1:
        raise RuntimeError("this one alone")
    time.sleep(300)


def refused(rank):
    def read():
        raise InputError("no such file")

    from_first_rank(read)


def main():
    try:
        with leaving_in_order():
            distributed.init_process_group("gloo")
            rank = from_first_rank(lambda: 0) + distributed.get_rank()
            print("joined", flush=True)
            globals()[sys.argv[1]](rank)
    except InputError as error:
        sys.exit(str(error))
    assert not distributed.is_initialized()


if __name__ == "__main__":
    main()
