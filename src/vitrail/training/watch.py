"""The watch of processes over each other: when one dies, the others end, and say which one did.

Collectives cannot be relied on for this: some of their transports wait for a dead peer until a
time-out that must be longer than the slowest save. So every process keeps one idle connection to
the first one. The kernel closes it when its process dies, however it dies; a machine that vanishes
is found by keep-alive probes within 40 seconds.
"""

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable

GRACE = 5.0  # seconds that the main thread has to end by itself before it is ended
BYE = b"bye\n"
HELLO = 64  # bytes of a greeting: a token and the process's number


class Watch:
    """One process's watch over the others; it begins at once, in a thread of its own.

    Args:
        rank, world: which process of how many this is.
        host: where the first process can be reached.
        share: gives every process the value that the first one calls it with.

    Attributes:
        lost: the process that ended too early, once that is known.
        calm: whether no run is under way, so that processes may end.
    """

    def __init__(
        self, rank: int, world: int, host: str, share: Callable[[tuple[int, str]], tuple[int, str]]
    ):
        self.rank, self.world = rank, world
        self.lost: int | None = None
        self.calm = False
        self._found = threading.Event()
        self._peers: dict[int, socket.socket] = {}
        if rank == 0:
            listener = socket.create_server(("", 0), backlog=world)
            _, token = share((listener.getsockname()[1], os.urandom(16).hex()))
            self._accept(listener, token)
        else:
            port, token = share((0, ""))
            peer = socket.create_connection((host, port), timeout=60)
            peer.sendall(f"{token} {rank}".ljust(HELLO).encode())
            self._keep(0, peer)
        threading.Thread(target=self._run, daemon=True, name="vitrail watch").start()

    def who(self, patience: float = GRACE) -> int | None:
        """Which process was lost, once it is known; None when nobody is found missing in time."""
        self._found.wait(patience)
        return self.lost

    def leave(self) -> None:
        """Tell the others that this process ends, and that it should."""
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(BYE)

    def _accept(self, listener: socket.socket, token: str) -> None:
        listener.settimeout(60)
        with listener:
            while len(self._peers) < self.world - 1:
                peer, _ = listener.accept()
                peer.settimeout(10)
                with contextlib.suppress(OSError, ValueError):  # a stranger's
                    said, _, number = _greeting(peer).partition(" ")
                    if said == token:
                        self._keep(int(number), peer)
                        continue
                peer.close()

    def _keep(self, rank: int, peer: socket.socket) -> None:
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6)):
            if hasattr(socket, name):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._peers[rank] = peer

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    peer = self._peers[key.data]
                    try:
                        said = peer.recv(HELLO)
                    except OSError:
                        said = b""
                    if said.startswith(BYE) or self.calm:
                        selector.unregister(peer)
                        continue
                    self._tell(int(said) if said.strip().isdigit() else key.data)
                    return

    def _tell(self, rank: int) -> None:
        self.lost = rank
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(f"{rank}\n".encode())
        self._found.set()
        time.sleep(GRACE)
        if not self.calm:  # the main thread waits in a collective for the dead
            print(f"error: {lost_process(rank, self.world)}", file=sys.stderr, flush=True)
            os._exit(2)


def lost_process(rank: int | None, world: int) -> str:
    """What to say when a process of a run has ended too early."""
    which = "another process" if rank is None else f"process {rank} of {world} (counted from 0)"
    return (
        f"{which} of this run ended too early, and so this one ends; what was saved is intact, "
        "and the same command goes on from there (torchrun --max-restarts gives it again by itself)"
    )


def _greeting(peer: socket.socket) -> str:
    said = b""
    while len(said) < HELLO:
        part = peer.recv(HELLO - len(said))
        if not part:
            break
        said += part
    return said.decode().strip()
