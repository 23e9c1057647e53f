"""Doing a study's runs: in this process, in several, or on several machines with one folder.

Every process takes up the next run that is neither recorded nor at work elsewhere and whose needs
are recorded, until none is left. Nothing is handed out by anybody, so any of them may be killed,
and more may join at any time.
"""

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator

from vitrail.kit.errors import Error
from vitrail.studies.data import StudyData
from vitrail.studies.definition import Definition, Point
from vitrail.studies.folder import Claim, StudyFolder
from vitrail.studies.work import perform, tidy
from vitrail.training.display import Display

WAIT = 1.0  # seconds before looking again for a run that others have not taken


class Watcher:
    """What follows a process's runs; this one says nothing."""

    def display(self, point: Point) -> Display:
        """What is to show a run, which is about to begin."""
        return Display(quiet=True)

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """While there is no run to take up, but others are at work."""
        return contextlib.nullcontext()

    def done(self, point: Point, seconds: float) -> None:
        """A run is recorded; it took so many seconds."""


def take_runs(
    definition: Definition,
    data: StudyData,
    folder: StudyFolder,
    *,
    device: str | None = None,
    keep: str = "models",
    watcher: Watcher | None = None,
    alone: Callable[[], bool] = lambda: False,
) -> int:
    """Do runs until all of them are recorded; returns how many this process did.

    Args:
        keep: of finished runs, ``models`` or ``nothing``.
        watcher: follows them.
        alone: whether whoever started this process is gone, and it should end.

    Raises:
        Error: a run cannot be done; the claim on it is given up.
        KeyboardInterrupt: asked to stop; the run that was under way is saved.
    """
    done, watcher = 0, watcher or Watcher()
    while not alone():
        recorded = folder.recorded()
        open_ones = [point for point in definition.points if point.id not in recorded]
        if not open_ones:
            break
        claim, point = _next(open_ones, recorded, folder)
        if claim is None or point is None:
            with watcher.waiting():
                time.sleep(WAIT)
            continue
        shown = watcher.display(point)
        seconds = _do(claim, point, definition, data, folder, device, shown)
        if seconds is not None:
            done += 1
            recorded = folder.recorded()
            tidy(folder, point.id, "models" if _is_needed(point.id, definition, recorded) else keep)
            if point.start is not None and not _is_needed(point.start, definition, recorded):
                tidy(folder, point.start, keep)
            watcher.done(point, seconds)
    return done


def _next(
    open_ones: list[Point], recorded: set[str], folder: StudyFolder
) -> tuple[Claim | None, Point | None]:
    for point in open_ones:
        if recorded.issuperset(point.needs) and (claim := folder.claim(point.id)) is not None:
            if point.id in folder.recorded():  # finished between the look and the claim
                continue
            return claim, point
    return None, None


def _do(
    claim: Claim,
    point: Point,
    definition: Definition,
    data: StudyData,
    folder: StudyFolder,
    device: str | None,
    display: Display,
) -> float | None:
    """A run under its claim: its seconds, or None where another process has it now."""
    began = time.monotonic()
    try:
        with claim.kept():
            record = perform(point, definition, data, folder, device, display)
    except KeyboardInterrupt:
        if not claim.holds():
            return None
        claim.release()
        raise
    except Error as error:
        if not claim.holds():
            return None
        claim.release()
        if _in_use(error):
            time.sleep(WAIT)
            return None
        raise Error(f"run {point.id}: {error}") from error
    return time.monotonic() - began if folder.write(record) else None


def _in_use(error: Error) -> bool:
    """Whether a run could not be done because its last holder is not quite dead yet."""
    return "another process is training" in str(error)


def _is_needed(id: str, definition: Definition, recorded: Collection[str]) -> bool:
    """Whether a run that is not done yet starts from this one."""
    return any(other.start == id and other.id not in recorded for other in definition.points)


@contextlib.contextmanager
def one_of_several() -> Iterator[tuple[int, int]]:
    """(rank, world) of this process under torchrun, whose runs are then ones of one process each.

    What torchrun says is hidden from the training meanwhile; on a machine with GPUs each process
    sees its own.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    found = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield int(found.get("RANK", 0)), int(found.get("WORLD_SIZE", 1))
    finally:
        os.environ.update(found)


def device_for(device: str | None, place: int) -> str | None:
    """The device of the place-th process on this machine: GPUs are shared out in turn."""
    if device not in (None, "cuda"):
        return device
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{place % count}" if count else device
