"""The server's log: one JSON object a line, written by a thread of its own.

At a terminal, where a person reads it, the same is said in words.

Whoever reads the log may stop reading: a full pipe must hold up the log and never the server. So
lines wait in a bounded queue; what does not fit is dropped, counted, and said once lines go again.
"""

import datetime
import json
import logging
import queue
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

WAITING = 10_000  # lines


class Log:
    """See the module's head; ``file`` is stderr by default."""

    def __init__(self, file: TextIO | None = None):
        self._file = file
        self._form = in_words if (file or sys.stderr).isatty() else in_json
        self._lines: queue.Queue[str | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self.dropped = 0
        self._said = 0

    def say(self, event: str, level: str = "info", **fields: Any) -> None:
        """Write an event; fields that are None are left out."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="log", daemon=True)
                self._thread.start()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        entry = {"time": now.replace("+00:00", "Z"), "level": level, "event": event}
        entry |= {name: value for name, value in fields.items() if value is not None}
        try:
            self._lines.put_nowait(self._form(entry))
        except queue.Full:
            self.dropped += 1

    def close(self, seconds: float = 2.0) -> None:
        """Write what waits, as far as it goes in so many seconds."""
        if self._thread is not None:
            try:
                self._lines.put(None, timeout=seconds)
            except queue.Full:
                return
            self._thread.join(seconds)
            self._thread = None

    def take_over(self) -> None:
        """Let what libraries say through `logging` come here, as JSON too."""
        logging.basicConfig(level=logging.WARNING, handlers=[_Handler(self)], force=True)
        for name in ("uvicorn.error", "python_multipart"):  # of requests that are no such thing
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def _write(self) -> None:
        file = self._file or sys.stderr
        while (line := self._lines.get()) is not None:
            try:
                file.write(line + "\n")
                if self.dropped > self._said:
                    file.write(self._form({"event": "log_dropped", "lines": self.dropped}) + "\n")
                    self._said = self.dropped
                file.flush()
            except (OSError, ValueError):  # nobody reads any more, or the disk is full
                self.dropped += 1


class _Handler(logging.Handler):
    """To a `Log`."""

    def __init__(self, log: Log):
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging` has it."""
        text = self.format(record)
        self._log.say("library", level=record.levelname.lower(), logger=record.name, message=text)


def in_json(entry: Mapping[str, Any]) -> str:
    """An entry as one JSON object, in ASCII."""
    return json.dumps(entry, ensure_ascii=True, default=str)


def in_words(entry: Mapping[str, Any]) -> str:
    """An entry for a person: the time of day here, what happened, and what belongs to it.

    What clients sent cannot steer the terminal: all but printable characters are escaped.
    """
    rest = {name: value for name, value in entry.items() if name not in ("level", "traceback")}
    time, event = rest.pop("time", None), str(rest.pop("event")).replace("_", " ")
    said = [f"{datetime.datetime.fromisoformat(time).astimezone():%H:%M:%S}"] if time else []
    if entry["event"] == "request":
        said += _request(rest)
    else:
        said.append(event if entry.get("level", "info") == "info" else f"{entry['level']}: {event}")
        said.append(", ".join(f"{name} {value}" for name, value in rest.items()))
    lines = ["  ".join(part for part in said if part)]
    lines += [f"    {line}" for line in str(entry.get("traceback", "")).splitlines()]
    return "\n".join("".join(map(_printable, line)) for line in lines)


def _request(entry: Mapping[str, Any]) -> list[str]:
    """What became of a request; with its id where the server failed, whose fault bears it too."""
    said = [str(entry["status"])]
    if "path" in entry:
        said.append(f"{entry['method']} {entry['path']}")
    if count := entry.get("pictures"):
        said.append(f"{count} picture{'s' * (count != 1)}")
    if "ms" in entry:
        said.append(f"{entry['ms']:,.0f} ms")
    if "client" in entry:
        said.append(f"from {entry['client']}")
    return [*said, entry["request_id"]] if entry["status"] >= 500 else said


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else repr(letter)[1:-1]
