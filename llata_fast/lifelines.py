"""A connection of every rank to the first one, by which all learn at once that one of them has died.

A rank that dies leaves the others where they wait for it, with some backends for half an hour. The kernel closes a
dead process's connections, however it died; of a machine that is gone, keep-alive tells within a minute. They are made
before anything else that ranks do together, so that the meeting of the process group is watched, too.
"""

import datetime
import json
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress

from torch import distributed

_log = logging.getLogger(__name__)

GRACE_SECONDS = 10
"""How long a rank may take to end by itself once another one has failed, before it is ended."""
MISSED_SECONDS = 30
"""After so long a rank that has not come is named."""
MEETING_SECONDS = 300
"""After so long it is given up: nothing tells one that died before it came from a machine that is slow to start."""
_LEAVE_SECONDS = 40
_CLOSE_SECONDS = 5
_CONNECT_SECONDS = 20
# a wait inside torch sees no signal
_TRY_SECONDS = 10
# seconds without traffic, between probes, and how many go unanswered: 40 s in all
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
_MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def several_started() -> bool:
    """Whether a launcher has started this process as one of several ranks, and says where they meet."""
    return all(os.environ.get(name) for name in _MEETING) and int(os.environ["WORLD_SIZE"]) > 1


class Lifelines:
    """What one rank holds of them. Every rank makes it, where `several_started`, before it joins the others.

    Who dies is named in the log, by the first rank of each machine that is left, and the others end with 1, after
    GRACE_SECONDS if their main threads have not done so. A rank that ends early, and says why, takes them along.
    """

    def __init__(self):
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.name = f"rank {self.rank} (process {os.getpid()} on {socket.gethostname()})"
        self.lost = threading.Event()
        """Another rank has died or ended early."""
        self._left = threading.Event()
        self._lock = threading.Lock()
        self._peers: dict[int, socket.socket] = {}
        self._saying_goodbye: set[int] = set()
        self._until = time.monotonic() + MEETING_SECONDS
        if self.rank == 0:
            listener, token = socket.create_server(("", 0), backlog=self.size), secrets.token_hex(16)
            self._store = self._open_store()
            self._store.set("first", json.dumps([listener.getsockname()[1], token, self.name]))
            self._accept(listener, token)
        else:
            self._store = self._open_store()
            self._connect(*json.loads(self._store.get("first")))

    def _open_store(self) -> "distributed.Store":
        """The store at which the process group will meet, too; torchrun's launcher holds it, or else the first rank."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        first = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        # what torch itself opens later joins a server of this process's
        options = {"is_master": first, "multi_tenant": True, "wait_for_workers": False}
        missed = False
        while True:
            with suppress(distributed.DistError):
                store = distributed.TCPStore(host, port, self.size, timeout=_seconds(_TRY_SECONDS), **options)
                store.set_timeout(_seconds(self._time_left()))
                # a launcher that starts its ranks anew keeps the store
                return distributed.PrefixStore(f"lifelines {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            if self._time_left() <= 0:
                _log.error(f"rank 0 has not come to {host}:{port} within {MEETING_SECONDS} s: the job ends")
                raise SystemExit(1)
            if not missed and self._time_left() < MEETING_SECONDS - MISSED_SECONDS:
                missed = True
                _log.error(f"{self.name} waits for rank 0 at {host}:{port}")

    def _time_left(self) -> float:
        return self._until - time.monotonic()

    def _accept(self, listener: socket.socket, token: str):
        def accept():
            missed = False
            while missing := self._missing():
                waited = MEETING_SECONDS - self._time_left()
                if waited > MISSED_SECONDS and not missed:
                    missed = True
                    _log.error(f"{self.name} waits for {_ranks(missing)}")
                if waited > MEETING_SECONDS:
                    self._end(f"{_ranks(missing)} has not come within {MEETING_SECONDS} s", 1)
                    break
                listener.settimeout(1)
                with suppress(OSError, ValueError):
                    peer, _ = listener.accept()
                    peer.settimeout(_CONNECT_SECONDS)
                    given, rank, name = peer.makefile().readline().rstrip("\n").split(" ", 2)
                    if secrets.compare_digest(given, token):
                        self._watch(int(rank), peer, name)
                    else:
                        peer.close()
            listener.close()

        threading.Thread(target=accept, daemon=True, name="lifelines").start()

    def _missing(self) -> list[int]:
        """Ranks that have yet to come; the first one asks."""
        if self._left.is_set() or self.lost.is_set():
            return []
        ranks = [rank for rank in range(1, self.size) if rank not in self._peers]
        with suppress(distributed.DistError):
            return [rank for rank in ranks if not self._store.check([f"goes without {rank}"])]
        return ranks

    def _connect(self, port: int, token: str, first: str):
        address = (os.environ["MASTER_ADDR"], port)
        try:
            peer = socket.create_connection(address, timeout=_CONNECT_SECONDS)
            peer.sendall(f"{token} {self.rank} {self.name}\n".encode())
        except OSError as error:
            # the first rank may hold the store, too
            try:
                self._store.set(f"goes without {self.rank}", "")
            except distributed.DistError:
                _log.error(f"{first} has died: the job ends")
                raise SystemExit(1) from None
            _log.error(f"{self.name} cannot watch {first} at port {port}: {error}")
        else:
            self._watch(0, peer, first)

    def _watch(self, rank: int, peer: socket.socket, name: str):
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            if hasattr(socket, option):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._peers[rank] = peer
        threading.Thread(target=self._listen, args=(rank, peer, name), daemon=True, name=f"lifeline {rank}").start()

    def _listen(self, rank: int, peer: socket.socket, name: str):
        lines = peer.makefile(errors="replace")
        while True:
            try:
                word, _, rest = lines.readline().rstrip("\n").partition(" ")
            except OSError:
                word = ""
            if word == "bye":
                self._hear_goodbye(rank)
                return
            if self._left.is_set():
                return
            if word == "ended":
                self._end(None, int(rest))
            else:
                self._end(rest if word == "died" else f"{name} has died", 1)
            return

    def _hear_goodbye(self, rank: int):
        with self._lock:
            self._saying_goodbye.add(rank)
            complete = self.rank != 0 or len(self._saying_goodbye) == self.size - 1
        if complete:
            self._left.set()

    def _end(self, why: str | None, status: int):
        """This job cannot go on; `why` names who died, None: a rank has said itself why it ended."""
        with self._lock:
            if self.lost.is_set():
                return
            self.lost.set()
        # the first local rank speaks for its machine
        if why and (self.rank == 0 or os.environ.get("LOCAL_RANK", "0") == "0" or why.startswith("rank 0 ")):
            _log.error(f"{why}: the job ends")
        if self.rank == 0:
            self._tell(f"died {why}" if why else f"ended {status}")
        threading.Event().wait(GRACE_SECONDS)
        if not self._left.is_set():
            # the main thread is in a collective that nobody will answer
            os._exit(status)

    def _tell(self, line: str):
        for peer in list(self._peers.values()):
            with suppress(OSError):
                peer.sendall(f"{line}\n".encode())

    def leave(self):
        """Wait up to _LEAVE_SECONDS for the others to leave; from here on a closed connection is no death."""
        if self.rank != 0:
            self._tell("bye")
        self._left.wait(_LEAVE_SECONDS)
        if self.rank == 0:
            self._tell("bye")
        self._left.set()

    def end_early(self, status: int):
        """End the others, which cannot go on without this rank: it ends with `status` and reports why itself."""
        until = time.monotonic() + _CONNECT_SECONDS
        while self.rank == 0 and self._missing() and time.monotonic() < until:
            # who has not come yet would wait for it
            time.sleep(0.1)
        self._tell(f"ended {status}")
        self._left.set()

    def close(self):
        """End the connections; the first rank waits for the others to do so, as it may hold the store they met at."""
        for peer in self._peers.values():
            with suppress(OSError):
                peer.shutdown(socket.SHUT_WR)
        if self.rank == 0:
            for peer in self._peers.values():
                with suppress(OSError):
                    peer.settimeout(_CLOSE_SECONDS)
                    while peer.recv(4096):
                        pass


def _seconds(number: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=max(1, number))


def _ranks(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"rank {shown}" if len(numbers) == 1 else f"one of ranks {shown}"
