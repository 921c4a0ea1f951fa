"""A connection from every rank to the first, so that all ranks learn at once when one of them dies.

When a rank dies, the others keep waiting for it, with some backends for half an hour. The kernel closes the connections
of a dead process, however it died, and keep-alive detects a lost machine within a minute. Ranks connect before their
first collective, so the rendezvous of the process group is watched, too.
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
"""How long a rank may take to end by itself after another one has failed, before it is killed."""
MISSED_SECONDS = 30
"""After this long, a rank that has not connected is named in the log."""
MEETING_SECONDS = 300
"""After this long, the job ends: a rank that died before connecting looks the same as a slow machine."""
_LEAVE_SECONDS = 40
_CLOSE_SECONDS = 5
_CONNECT_SECONDS = 20
# no signal is handled while torch waits
_TRY_SECONDS = 10
# idle seconds, seconds between probes, number of unanswered probes: 40 s in all
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
_MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def several_started() -> bool:
    """Whether a launcher started this process as one of several ranks and told it where they meet."""
    return all(os.environ.get(name) for name in _MEETING) and int(os.environ["WORLD_SIZE"]) > 1


class Lifelines:
    """One rank's connections. If `several_started`, every rank creates them before it joins the process group.

    The first surviving rank of each machine logs which rank died. The others exit with code 1, and are killed if their
    main threads have not ended after GRACE_SECONDS. A rank that reports its own error and ends early ends them, too.
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
        """The store of the process group's rendezvous, held by torchrun's launcher or else by the first rank."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        first = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        # stores that torch opens later share this process's server
        options = {"is_master": first, "multi_tenant": True, "wait_for_workers": False}
        missed = False
        while True:
            with suppress(distributed.DistError):
                store = distributed.TCPStore(host, port, self.size, timeout=_seconds(_TRY_SECONDS), **options)
                store.set_timeout(_seconds(self._time_left()))
                # a launcher that restarts its ranks keeps the store, hence a prefix for each restart
                return distributed.PrefixStore(f"lifelines {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            if self._time_left() <= 0:
                _log.error(f"rank 0 did not appear at {host}:{port} within {MEETING_SECONDS} s: the job ends")
                raise SystemExit(1)
            if not missed and self._time_left() < MEETING_SECONDS - MISSED_SECONDS:
                missed = True
                _log.error(f"{self.name} is waiting for rank 0 at {host}:{port}")

    def _time_left(self) -> float:
        return self._until - time.monotonic()

    def _accept(self, listener: socket.socket, token: str):
        def accept():
            missed = False
            while missing := self._missing():
                waited = MEETING_SECONDS - self._time_left()
                if waited > MISSED_SECONDS and not missed:
                    missed = True
                    _log.error(f"{self.name} is waiting for {_ranks(missing)}")
                if waited > MEETING_SECONDS:
                    self._end(f"{_ranks(missing)} did not connect within {MEETING_SECONDS} s", 1)
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
        """Ranks that have not connected yet; only the first rank asks."""
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
            # if the first rank holds the store, it is gone with that rank
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
        """End this rank, as the job cannot go on: `why` names the rank that died, None if a rank reported an error."""
        with self._lock:
            if self.lost.is_set():
                return
            self.lost.set()
        # the first local rank reports for its machine
        if why and (self.rank == 0 or os.environ.get("LOCAL_RANK", "0") == "0" or why.startswith("rank 0 ")):
            _log.error(f"{why}: the job ends")
        if self.rank == 0:
            self._tell(f"died {why}" if why else f"ended {status}")
        threading.Event().wait(GRACE_SECONDS)
        if not self._left.is_set():
            # the main thread is stuck in a collective that will never complete
            os._exit(status)

    def _tell(self, line: str):
        for peer in list(self._peers.values()):
            with suppress(OSError):
                peer.sendall(f"{line}\n".encode())

    def leave(self):
        """Wait up to _LEAVE_SECONDS for the others to leave; from here on, a closed connection is not a death."""
        if self.rank != 0:
            self._tell("bye")
        self._left.wait(_LEAVE_SECONDS)
        if self.rank == 0:
            self._tell("bye")
        self._left.set()

    def end_early(self, status: int):
        """Tell the other ranks to end: this one exits with `status` and reports the reason itself."""
        until = time.monotonic() + _CONNECT_SECONDS
        while self.rank == 0 and self._missing() and time.monotonic() < until:
            # a rank that connects later would wait forever, so wait for it here
            time.sleep(0.1)
        self._tell(f"ended {status}")
        self._left.set()

    def close(self):
        """Close the connections; the first rank waits for the others to close theirs, as it may hold the store."""
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
