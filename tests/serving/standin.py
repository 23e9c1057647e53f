"""A stand-in for the model: a server whose arithmetic is a sleep, and that leaves a trace.

Run as a program it is the server (`serve SETTINGS OPTIONS`) or one of its workers (`worker OPTIONS
FD`); both with an audit hook that writes every outgoing connection into a file. What a picture of
the stand-in is, its bytes say: ``bad`` cannot be decoded, ``huge`` is too large, ``crash`` kills
the worker, ``loud`` makes it write to stderr and stdout, ``large`` takes a second to decode,
``fail`` makes the model fail, ``nan`` is answered with one; all else is a picture.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

import numpy as np

from vitrail.data.decode import TooManyPixels
from vitrail.kit.errors import Error

LABELS = ["one", "two", "three"]


class Sleeper:
    """Takes ``seconds`` for a batch and writes what it computed into ``trace``."""

    def __init__(self, seconds: float, trace: str | None, start: float = 0.0):
        time.sleep(start)
        while trace and Path(trace).with_name("hang").exists():
            time.sleep(0.1)
        self.seconds, self.trace = seconds, trace

    def describe(self) -> dict:
        name = Path(self.trace or "/nowhere").with_name("name")
        return {
            "name": name.read_text() if name.exists() else "sleeper",
            "labels": LABELS,
            "image_size": [4, 4],
            "preprocessing": {},
            "runtime": "sleep",
            "gate": None,
        }

    def is_large(self, data: bytes) -> bool:
        return data.startswith(b"large")

    def prepare(self, data: bytes) -> np.ndarray:
        if data.startswith(b"bad"):
            raise Error("not a picture")
        if data.startswith(b"huge"):
            raise TooManyPixels("too many pixels")
        if data.startswith(b"crash"):
            os.abort()
        if data.startswith(b"loud"):
            os.write(2, b"a library warns:\n\xff\n" + b"long" * 2000 + b"\n")
            print("and prints", flush=True)
        if data.startswith(b"large"):
            time.sleep(1)
        return np.frombuffer(data[:16].ljust(16, b"\0"), np.uint8)

    def notes(self, data: bytes, extras: frozenset[str]) -> dict[str, np.ndarray]:
        return {}

    def outputs(self, pixels: np.ndarray, extras: frozenset[str]) -> dict[str, np.ndarray]:
        texts = [bytes(row).rstrip(b"\0").decode("latin-1") for row in pixels]
        if self.trace:
            with open(self.trace, "a") as file:
                file.write("".join(f"{text}\n" for text in texts))
        time.sleep(self.seconds)
        if "fail" in texts:
            raise RuntimeError("the arithmetic failed")
        chances = np.tile(np.array([0.2, 0.5, 0.3], np.float32), (len(pixels), 1))
        chances[[text == "nan" for text in texts]] = np.nan
        found = {"probabilities": chances}
        return found | {name: np.ones((len(pixels), 2, 2), np.float32) for name in extras}


def watch_connections(path: str) -> None:
    """Write down every attempt to connect or to look up a name."""

    def hook(event: str, details: tuple) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
            with open(path, "a") as file:
                file.write(f"{event} {details[1:]!r}\n")

    sys.addaudithook(hook)


def main(kind: str, *rest: str) -> int:
    if kind == "serve":
        from vitrail.serving import connections
        from vitrail.serving.server import serve
        from vitrail.serving.settings import Settings

        settings, options = json.loads(rest[0]), json.loads(rest[1])
        watch_connections(options["connections"])
        connections.WRITE_SECONDS = options["write_seconds"]
        command = [sys.executable, "-m", "tests.serving.standin"]
        options["parent"] = os.getpid()
        worker = "real" if "model" in options else "worker"
        return serve(Settings(**settings), [*command, worker, json.dumps(options)])
    options = json.loads(rest[0])
    watch_connections(options["connections"])
    from vitrail.serving import worker

    if kind == "real":
        worker.main(list(rest))
        return 0
    worker.bind_to_parent(options["parent"])
    channel = socket.socket(fileno=int(rest[1]))
    if Path(options.get("refuse", "/nowhere")).exists():
        raise SystemExit(7)
    model = {k: options[k] for k in ("seconds", "trace", "start")}
    worker.work(lambda: Sleeper(**model), channel, options["batch_size"], 0.005, 2)
    return 0


if __name__ == "__main__":
    try:
        status = main(*sys.argv[1:])
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)
