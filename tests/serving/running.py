"""A server as a process of its own, and what a client and an operator do with it."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.commands import QUIET

ROOT = Path(__file__).resolve().parents[2]
PNG = {"content-type": "image/png"}
ANY = {"content-type": "application/octet-stream"}


class Running:
    """A server under way; a context that ends it."""

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str] | None = None):
        self.folder, self.log_file = folder, folder / "log"
        self.process = launched(words, folder, environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"listening on (http://127\.0\.0\.1:(\d+))\n", line)
        assert found, (line, self.log_file.read_text())
        self.address, self.port = found[1], int(found[2])
        self.client = httpx.Client(base_url=self.address, timeout=60, trust_env=False)

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def classify(self, data: bytes = b"picture", **query: Any) -> httpx.Response:
        """One picture as a raw body."""
        return self.client.post("/v1/classify", content=data, headers=ANY, params=query)

    def form(self, *pictures: bytes, field: str = "image", **query: Any) -> httpx.Response:
        """Several in a form."""
        files = [(field, (f"{i}.png", data, "image/png")) for i, data in enumerate(pictures)]
        return self.client.post("/v1/classify", files=files, params=query)

    def ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/readyz").status_code == 200
        return False

    def workers(self) -> list[int]:
        """The processes that the server started."""
        return children(self.process.pid)

    def log(self) -> list[dict]:
        """What the server wrote, all of it JSON."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def metric(self, name: str, **labels: str) -> float:
        """A figure of `/metrics`; 0 where it is not there yet."""
        inside = ",".join(f'{k}="{v}"' for k, v in labels.items())
        whole = f"{name}{{{inside}}}" if inside else name
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(whole + " "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def memory(self) -> int:
        """Bytes that the server's process holds."""
        return memory(self.process.pid)

    def open(self) -> socket.socket:
        """A connection, nothing said."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def end(self, number: int = signal.SIGTERM, seconds: float = 30) -> int:
        """Send a signal and wait; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


def launched(
    words: list[str], folder: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen:
    """A Python process whose stderr goes into ``folder/log``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **QUIET, "PYTHONPATH": paths, **(environment or {})},
        )


def standin_words(
    folder: Path,
    seconds: float = 0.0,
    start: float = 0.0,
    model: str | None = None,
    write_seconds: float = 10.0,
    **settings: Any,
) -> list[str]:
    """What starts a server whose model sleeps, or is a real one."""
    options = {
        "seconds": seconds,
        "start": start,
        "trace": str(folder / "trace"),
        "connections": str(folder / "connections"),
        "write_seconds": write_seconds,
        "refuse": str(folder / "refuse"),
        "batch_size": settings.get("batch_size", 8),
    }
    if model is not None:
        fields = {"source": model, "max_pixels": 10**7, "threads": 1, "batch_size": 8}
        options |= {"model": fields, "wait": 0.005}
    words = ["-m", "tests.serving.standin", "serve"]
    return [*words, json.dumps({"port": 0, **settings}), json.dumps(options)]


def standin(folder: Path, **options: Any) -> Running:
    """A server as in `standin_words`."""
    return Running(standin_words(folder, **options), folder)


def command(folder: Path, source: Path, *words: object, **environment: str) -> Running:
    """The real command."""
    given = ["-m", "vitrail", "serve", str(source), "--port", "0", *map(str, words)]
    return Running(given, folder, environment)


def children(pid: int) -> list[int]:
    """Of a process, all that live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().rpartition(")")
            state, parent = rest.split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(name.split()[0]))
    return found


def alive(pid: int) -> bool:
    """Whether a process runs, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def memory(pid: int) -> int:
    """Bytes that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def seconds_until(true: Callable[[], bool], most: float, every: float = 0.02) -> float:
    """How long it takes until something is so."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < most, f"not within {most} s"
        time.sleep(every)
    return time.monotonic() - began


def answer_on(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one response from a raw connection: status, headers, body."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return response.status, headers, response.read()
