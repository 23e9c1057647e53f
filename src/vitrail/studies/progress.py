"""What a person sees while a study is at work: a line for each run that is done, and in a terminal
one that is redrawn, of the run under way.

Both say how long the rest takes, by what the runs were expected to cost and by how long those that
are done really took.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from vitrail.studies.definition import Definition, Point
from vitrail.studies.estimate import Estimate
from vitrail.studies.folder import StudyFolder
from vitrail.studies.runner import Watcher
from vitrail.training.display import Display
from vitrail.training.display import duration as in_words

LOOK_EVERY = 2.0  # seconds between two looks at what other processes have done
LEAST_NAME = 12  # characters of a run's id that stay when the terminal is narrow


class Outlook:
    """How far a study is, and how long the rest takes, roughly.

    Args:
        costs: what each run is expected to take.
        jobs: how many processes are at work.
    """

    def __init__(self, definition: Definition, folder: StudyFolder, costs: Estimate, jobs: int):
        self._expected = {point.id: costs.seconds(point.id) for point in definition.points}
        self._steps = {id: costs.step_seconds(id) for id in self._expected}
        self._folder, self._jobs = folder, max(1, jobs)
        self._began = self._looked = time.monotonic()
        self._before = self.recorded = folder.recorded()
        self._pace: float | None = None  # seconds for one that was expected

    def look(self) -> None:
        """See which runs are done by now, by any process."""
        recorded, self._looked = self._folder.recorded(), time.monotonic()
        if recorded == self.recorded:
            return
        self.recorded = recorded
        ours = sum(self._expected.get(id, 0.0) for id in recorded - self._before)
        if ours:
            self._pace = (self._looked - self._began) / ours

    @property
    def done(self) -> str:
        """How many runs of how many are recorded."""
        return f"{len(self.recorded)} of {len(self._expected)} runs"

    def left(self, id: str = "", share: float = 0.0, own: float = 0.0) -> float:
        """Seconds that the rest takes.

        Args:
            id: a run that is under way.
            share: of its steps that are done.
            own: seconds that its other steps take; 0 where nobody knows.
        """
        if time.monotonic() - self._looked > LOOK_EVERY:
            self.look()
        expected = sum(s for other, s in self._expected.items() if other not in self.recorded)
        pace = self._pace or 1.0 / self._jobs
        if id in self._expected and id not in self.recorded:
            expected -= share * self._steps[id]
            if self._pace is None and own and share < 1:  # the first run tells before it is done
                pace = own / ((1 - share) * self._steps[id]) / self._jobs
        return max(expected * pace, own)


class RunLine(Display):
    """A run of a study in one line of a terminal, with what is left of the study.

    Elsewhere it shows nothing.

    Args:
        id: the run's, or nothing.
        outlook: the study's.
    """

    def __init__(self, id: str, outlook: Outlook):
        super().__init__()
        self.quiet = not self.live
        self._id, self._outlook, self._share = id, outlook, 0.0

    def say(self, *lines: str) -> None:
        """What a run says of itself would drown what the study says."""

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """As `Display.busy`, of this run."""
        with super().busy(self._line(what, "")):
            yield

    def text(self, done: int, left: float | None, learned: str) -> str:
        """As `Display.text`, of this run, and what is left of the study."""
        self._share = done / max(1, self.total)
        return self._line(super().text(done, left, ""), learned, left or 0.0)

    def _line(self, what: str, learned: str, own: float = 0.0) -> str:
        """The line; in a narrow terminal with less of the run's name, and without ``learned``."""
        left = self._outlook.left(self._id, self._share, own)
        rest = f"{what.rstrip()}  study: {self._outlook.done}, {in_words(left)} to go"
        room = self.console.width - len(rest) - 4  # two spaces, and a spinner or the bar's end
        name = shortened(self._id, max(room, LEAST_NAME))
        line = f"{name}  {rest}" if name else rest
        return f"{line}  {learned}" if len(learned) + 2 + len(name) <= room else line


def shortened(name: str, room: int) -> str:
    """A name in so many characters: its begin and its end, which tell it apart from others."""
    if len(name) <= room:
        return name
    head = room // 2
    return f"{name[:head]}\N{HORIZONTAL ELLIPSIS}{name[len(name) - (room - head - 1) :]}"


class StudyWatcher(Watcher):
    """Says how each run went and how long the rest takes; in a terminal also how it is going.

    Args:
        outlook: the study's.
        say: is told of runs that are done.
        live: whether a terminal shows the run under way.
    """

    def __init__(
        self, outlook: Outlook, folder: StudyFolder, say: Callable[[str], None], live: bool
    ):
        self._outlook, self._folder, self._say, self._live = outlook, folder, say, live

    def display(self, point: Point) -> Display:
        """See `Watcher`."""
        self._outlook.look()
        return RunLine(point.id, self._outlook) if self._live else super().display(point)

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """See `Watcher`."""
        if not self._live:
            return super().waiting()
        return RunLine("", self._outlook).busy("waiting for runs at work elsewhere")

    def done(self, point: Point, seconds: float) -> None:
        """See `Watcher`."""
        self._outlook.look()
        top1 = self._folder.record(point.id)["metrics"].get("top1")
        score = "" if top1 is None else f", {100 * top1:.2f} % on test"
        self._say(
            f"{self._outlook.done}: {point.id} in {in_words(seconds)}{score}; "
            f"{in_words(self._outlook.left())} to go"
        )
