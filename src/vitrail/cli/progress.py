"""What a person sees while a verb works: a live line in a terminal, now and then a line elsewhere.

All of it goes to stderr; stdout belongs to results.
"""

import sys
import time
from typing import Any, Self

PLAIN_EVERY = 20.0  # seconds between two plain lines of one task


class Progress:
    """Shows what is being done: call it with words, how much is done and of how much.

    A total of 0 is work of unknown length. Use it as a context manager.
    """

    def __init__(self) -> None:
        self._what, self._began, self._told = "", 0.0, 0.0
        self._live: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console

            self._live = Console(stderr=True, highlight=False).status("")
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` of this are done now."""
        now = time.monotonic()
        fresh = what != self._what
        if fresh:
            self._what, self._began = what, now
            self._told = now
        text = what + self._far(done, total, now - self._began)
        if self._live is not None:
            self._live.update(text.replace("[", r"\["))
        elif (fresh and not total) or now - self._told >= PLAIN_EVERY or (total and done == total):
            self._told = now
            print(text, file=sys.stderr, flush=True)

    @staticmethod
    def _far(done: int, total: int, spent: float) -> str:
        if not total:
            return ""
        left = f", {spent / done * (total - done):,.0f} s to go" if 0 < done < total else ""
        return f": {done:,} of {total:,}{left}"
