"""A connection of every rank to the first one, by which all learn at once that one of them has died.

A rank that dies leaves the others in a collective that waits for it, with some backends for half an hour. The kernel
closes a dead process's connections, however it died; of a machine that is gone, keep-alive tells within a minute.
"""

import logging
import os
import secrets
import socket
import threading
from contextlib import suppress
from typing import Any

from torch import distributed

_log = logging.getLogger(__name__)

GRACE_SECONDS = 10
"""How long a rank may take to end by itself once another one has failed, before it is ended."""
_LEAVE_SECONDS = 60
_CONNECT_SECONDS = 20
# seconds without traffic, between probes, and how many go unanswered: 40 s in all
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


class Lifelines:
    """What one rank holds of them. Every rank of a process group makes it at the same place.

    Who dies is named in the log, by the first rank of each machine that is left, and the others end with 1, after
    GRACE_SECONDS if their main threads have not done so. A rank that ends early, and says why, takes them along.
    """

    def __init__(self):
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.name = f"rank {self.rank} (process {os.getpid()} on {socket.gethostname()})"
        self.lost = threading.Event()
        """Another rank has died or ended early."""
        self._left = threading.Event()
        self._lock = threading.Lock()
        self._peers: dict[int, socket.socket] = {}
        self._saying_goodbye: set[int] = set()
        listener = socket.create_server(("", 0), backlog=self.size) if self.rank == 0 else None
        box: list[Any] = [(listener.getsockname()[1], secrets.token_hex(16), self.name) if listener else None]
        distributed.broadcast_object_list(box, src=0)
        port, token, first = box[0]
        if listener is not None:
            self._accept(listener, token)
        else:
            self._connect(port, token, first)
        # all are connected, or go without
        distributed.barrier()

    def _accept(self, listener: socket.socket, token: str):
        names: dict[int, str] = {}

        def accept():
            while len(names) < self.size - 1:
                peer, _ = listener.accept()
                peer.settimeout(_CONNECT_SECONDS)
                with suppress(OSError, ValueError):
                    given, rank, name = peer.makefile().readline().rstrip("\n").split(" ", 2)
                    if secrets.compare_digest(given, token):
                        names[int(rank)] = name
                        self._watch(int(rank), peer, name)
                        continue
                peer.close()
            listener.close()

        threading.Thread(target=accept, daemon=True, name="lifelines").start()

    def _connect(self, port: int, token: str, first: str):
        address = (os.environ.get("MASTER_ADDR", "127.0.0.1"), port)
        try:
            peer = socket.create_connection(address, timeout=_CONNECT_SECONDS)
            peer.sendall(f"{token} {self.rank} {self.name}\n".encode())
        except OSError as error:
            _log.error("%s cannot watch %s at port %s: %s", self.name, first, port, error)
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
                self._end(rest if word == "died" else name, 1)
            return

    def _hear_goodbye(self, rank: int):
        with self._lock:
            self._saying_goodbye.add(rank)
            complete = self.rank != 0 or len(self._saying_goodbye) == self.size - 1
        if complete:
            self._left.set()

    def _end(self, dead: str | None, status: int):
        """This job cannot go on; `dead` names who died, None: a rank has said itself why it ended."""
        with self._lock:
            if self.lost.is_set():
                return
            self.lost.set()
        # the first local rank speaks for its machine
        if dead and (self.rank == 0 or os.environ.get("LOCAL_RANK", "0") == "0" or dead.startswith("rank 0 ")):
            _log.error("%s has died: the job ends", dead)
        if self.rank == 0:
            self._tell(f"died {dead}" if dead else f"ended {status}")
        threading.Event().wait(GRACE_SECONDS)
        if not self._left.is_set():
            # the main thread is in a collective that nobody will answer
            os._exit(status)

    def _tell(self, line: str):
        for peer in list(self._peers.values()):
            with suppress(OSError):
                peer.sendall(f"{line}\n".encode())

    def leave(self):
        """Wait for the others' leaving, a minute at most: nobody is missed from here on."""
        if self.rank != 0:
            self._tell("bye")
        self._left.wait(_LEAVE_SECONDS)
        if self.rank == 0:
            self._tell("bye")
        self._left.set()

    def end_early(self, status: int):
        """This rank ends with `status` and reports itself why; the others cannot go on without it, and end likewise."""
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
                    peer.settimeout(_LEAVE_SECONDS)
                    while peer.recv(4096):
                        pass
