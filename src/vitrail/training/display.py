"""What a person sees while training runs: a live line in a terminal, plain lines elsewhere.

Everything goes to stderr; stdout belongs to results.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

PLAIN_EVERY = 20  # seconds between two plain lines
ESTIMATE_AFTER = 5  # seconds of steps before the time is estimated


class Display:
    """Shows the way of a run: loss, accuracy, rate and the time still to go.

    Args:
        quiet: show nothing at all.
    """

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)
        # FORCE_COLOR makes rich take a log for a terminal, and a dumb one cannot redraw a line.
        able = self.console.is_terminal and not self.console.is_dumb_terminal
        self.live = not quiet and able and sys.stderr.isatty()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def say(self, *lines: str) -> None:
        """Lines of text, above the live line where there is one."""
        if self.quiet:
            return
        if self.live:
            self.console.print(*lines, sep="\n", markup=False, emoji=False, soft_wrap=True)
        else:
            print(*lines, sep="\n", file=sys.stderr, flush=True)

    def reply(self, line: str) -> None:
        """A line that answers what the user did just now; whatever `say` leaves out, it comes."""
        Display.say(self, line)

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """In a terminal, a line that says what takes its time, and goes when it is done."""
        with self.console.status(what) if self.live else contextlib.nullcontext():
            yield

    def start(self, done: int, total: int) -> Self:
        """Begin at step ``done`` of ``total``."""
        self.total, self.first = total, done
        self.began = self.last_line = time.monotonic()
        self.estimated = done >= total
        if self.live:
            # What matters stands first: a narrow terminal cuts off the end.
            self._bar = Progress(
                TextColumn("{task.fields[text]}"),
                BarColumn(bar_width=16),
                console=self.console,
                transient=True,
            )
            text = self.text(done, None, "")
            self._task = self._bar.add_task("training", total=total, completed=done, text=text)
            self._bar.start()
        return self

    def step(self, done: int, loss: float, accuracy: float | None, rate: float) -> None:
        """After a step: its loss, its batch's accuracy, images a second."""
        if self.quiet:
            return
        now = time.monotonic()
        spent = now - self.began
        left = spent / max(1, done - self.first) * (self.total - done)
        seen = "" if accuracy is None else f"  acc {100 * accuracy:5.1f} %"
        text = self.text(done, left, f"loss {loss:.3f}{seen}  {rate:,.0f} images/s")
        if not self.estimated and spent > ESTIMATE_AFTER and done - self.first >= 5:
            self.estimated = True
            steps = self.total - self.first
            self.say(f"estimated time: {duration(spent + left)} for {steps:,} steps")
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, text=text)
        elif now - self.last_line >= PLAIN_EVERY or done == self.total:
            self.last_line = now
            self.say(f"step {text}")

    def text(self, done: int, left: float | None, learned: str) -> str:
        """What the line says after a step, ``left`` seconds before the last one; None: unknown."""
        to_go = "" if left is None else f"  {duration(left)} to go"
        return f"{done:,}/{self.total:,}{to_go}  {learned}"

    def close(self) -> None:
        """End the live line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 2 min 5 s, 3 h 20 min, 2 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
