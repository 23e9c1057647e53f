"""The server's log: one JSON object a line, written by a thread of its own.

Whoever reads the log may stop reading: a full pipe must hold up the log and never the server. So
lines wait in a bounded queue; what does not fit is dropped, counted, and said once lines go again.
"""

import datetime
import json
import logging
import queue
import sys
import threading
from typing import Any, TextIO

WAITING = 10_000  # lines


class Log:
    """See the module's head; ``file`` is stderr by default."""

    def __init__(self, file: TextIO | None = None):
        self._file = file
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
            self._lines.put_nowait(json.dumps(entry, ensure_ascii=True, default=str))
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
                    file.write(json.dumps({"event": "log_dropped", "lines": self.dropped}) + "\n")
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
