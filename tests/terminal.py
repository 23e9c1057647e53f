"""A terminal for tests: what is written to it is kept as a person's screen would get it."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Iterator


class Terminal:
    """A terminal of so many columns.

    Attributes:
        end: the file descriptor that a program writes to.
    """

    def __init__(self, columns: int = 80):
        self._ours, self.end = pty.openpty()
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self._seen = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(self._ours, 4096):
                self._seen += data

    @property
    def written(self) -> str:
        """All that was written so far, control characters too."""
        return self._seen.decode(errors="replace")

    @property
    def text(self) -> str:
        """The same without them: what stood on the screen at some time, a line each."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.written).replace("\r", "\n")


@contextlib.contextmanager
def terminal(columns: int = 80) -> Iterator[Terminal]:
    """A terminal, read to its end when the context is left."""
    made = Terminal(columns)
    try:
        yield made
    finally:
        os.close(made.end)
        made._reader.join(10)
        os.close(made._ours)
