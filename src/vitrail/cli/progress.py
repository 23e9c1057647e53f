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

    Args:
        rate: what is counted, where it is to be said how many are done in a second; work that is
            gone on with begins with what was done before, which does not count.
    """

    def __init__(self, rate: str = "") -> None:
        self._what, self._began, self._told = "", 0.0, 0.0
        self._first, self._rate = 0, rate
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
            self._told, self._first = now, done if self._rate else 0
        text = what + self._far(done, total, now - self._began)
        if self._live is not None:
            self._live.update(text.replace("[", r"\["))
        elif (fresh and not total) or now - self._told >= PLAIN_EVERY or (total and done == total):
            self._told = now
            print(text, file=sys.stderr, flush=True)

    def _far(self, done: int, total: int, spent: float) -> str:
        if not total:
            return ""
        now = done - self._first
        rate = f", {now / spent:,.0f} {self._rate}/s" if self._rate and now > 0 and spent else ""
        left = f", {spent / now * (total - done):,.0f} s to go" if now > 0 and done < total else ""
        return f": {done:,} of {total:,}{rate}{left}"
