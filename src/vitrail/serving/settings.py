"""What an operator decides about a server, checked before anything is opened."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from vitrail.kit.cores import cores
from vitrail.kit.errors import Error


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and times of a server.

    Args:
        host, port: where it listens; port 0 takes any that is free.
        token: that every request but the open ones must bear, or None.
        max_bytes: of a request's body.
        max_pixels: width times height of a picture, by its header.
        max_images: pictures in one request.
        queue: pictures that are taken and not yet answered, at most; beyond, 429.
        deadline: seconds from the end of a request's body to its answer; beyond, 504.
        workers: processes that compute.
        threads: of each worker; None: the cores, shared by the workers.
        batch_size: pictures computed at once, at most.
        batch_wait: milliseconds that a batch waits for pictures that are being decoded.
        body_seconds: in which a body must come, and one more for every 16 KiB that came; 408.
        drain_seconds: after a signal, for the requests that were taken.
        notice_seconds: after a signal, in which new requests are still taken while `/readyz`
            says 503, so that who sends them goes elsewhere.
        stall_seconds: past the deadline of a picture, after which its worker is taken for dead.
        connections: open at once, at most.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_images: int = 16
    queue: int = 64
    deadline: float = 10.0
    workers: int = 1
    threads: int | None = None
    batch_size: int = 8
    batch_wait: float = 5.0
    body_seconds: float = 10.0
    drain_seconds: float = 20.0
    notice_seconds: float = 1.0
    stall_seconds: float = 60.0
    connections: int = 1000

    def __post_init__(self):
        for name, (fits, words) in _RULES.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and fits(value)):
                raise Error(f"--{name.replace('_', '-')} is {words}, not {value:g}")
        if self.max_images > self.queue:
            object.__setattr__(self, "max_images", self.queue)
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise Error("the token is empty or holds spaces or characters that no header carries")

    @property
    def held_bytes(self) -> int:
        """Of all bodies together that are in memory at once."""
        return max(4 * self.max_bytes, 128 << 20)

    @property
    def worker_threads(self) -> int:
        """Of each worker."""
        return self.threads or max(1, cores() // self.workers)

    def public(self) -> dict[str, Any]:
        """The limits that who calls should know."""
        names = ("max_bytes", "max_pixels", "max_images", "queue", "deadline", "batch_size")
        return {
            field.name: getattr(self, field.name) for field in fields(self) if field.name in names
        }


_TOKEN = re.compile(r"[!-~]+")  # visible ASCII
_AT_LEAST_1: tuple[Callable[[float], bool], str] = (lambda value: value >= 1, "at least 1")
_ABOVE_0: tuple[Callable[[float], bool], str] = (lambda value: value > 0, "above 0")
_NOT_BELOW_0: tuple[Callable[[float], bool], str] = (lambda value: value >= 0, "0 or more")
_RULES = {
    "port": (lambda value: 0 <= value <= 65535, "0 to 65535"),
    **dict.fromkeys(
        ("max_bytes", "max_pixels", "max_images", "queue", "workers", "threads", "batch_size"),
        _AT_LEAST_1,
    ),
    "connections": _AT_LEAST_1,
    "deadline": _ABOVE_0,
    "body_seconds": _ABOVE_0,
    **dict.fromkeys(
        ("batch_wait", "drain_seconds", "notice_seconds", "stall_seconds"), _NOT_BELOW_0
    ),
}
