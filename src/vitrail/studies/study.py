"""A study from words to its page: define, open the folder, estimate, do the runs, show."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vitrail.data.sources import Spec
from vitrail.kit.cores import cores
from vitrail.kit.errors import Error, listing
from vitrail.recipes.opening import check_place
from vitrail.studies.data import StudyData, open_data
from vitrail.studies.definition import Ask, Definition, Kind
from vitrail.studies.estimate import Estimate, estimate
from vitrail.studies.folder import StudyFolder
from vitrail.studies.kinds import find_kind
from vitrail.studies.page import write_report
from vitrail.studies.progress import Outlook, StudyWatcher
from vitrail.studies.runner import Watcher, device_for, one_of_several, take_runs
from vitrail.studies.statistics import check_intervals
from vitrail.studies.work import shot_pool
from vitrail.training.display import Display
from vitrail.training.display import duration as in_words
from vitrail.training.recipe import Recipe, with_settings

HELD_OUT = 0.1
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class How:
    """How a study is run; of a record it changes the seconds and threads, and what hangs on those.

    Args:
        device: ``cpu``, ``cuda``, or None for the best there is.
        jobs: processes on this machine.
        keep: of finished runs, ``models`` or ``nothing``.
        dry_run: estimate, and stop.
        intervals: see `page.write_report`.
        live: show the run under way, where stderr is a terminal.
    """

    device: str | None = None
    jobs: int = 1
    keep: str = "models"
    dry_run: bool = False
    intervals: bool | None = None
    live: bool = False

    def __post_init__(self):
        if self.jobs < 1:
            raise Error(f"--jobs is at least 1, not {self.jobs}")
        if self.keep not in ("models", "nothing"):
            raise Error(f"--keep is models or nothing, not {self.keep!r}")


def study(
    kind: str | Kind,
    data: Spec,
    out: Path | str,
    ask: Ask,
    *,
    how: How | None = None,
    held_out: float = HELD_OUT,
    most_test: int | None = None,
    columns: Mapping[str, Any] | None = None,
    say: Say = lambda line: None,
    command: str = "",
) -> dict[str, Any]:
    """Do a study, or go on with it; returns its summary (of a dry run, the estimate).

    Args:
        kind: the name of one of `flags.KINDS`, or a kind of one's own.
        data: as of `open_splits`; several processes need a name or a path.
        out: the study's folder.
        ask: what is to be compared.
        held_out, most_test: see `Definition`.
        columns: ``image_column`` and ``label_column``, where they are needed.
        say: is told what a person wants to know meanwhile.
        command: the page gives it as the way to the same study.

    Raises:
        Error: anything that the user can mend.
    """
    how = how or How()
    if ask.seeds < 1:
        raise Error(f"--seeds is at least 1, not {ask.seeds}")
    if how.intervals:
        check_intervals(ask.seeds)
    if how.jobs > 1 and not isinstance(data, str | Path):
        raise Error("several processes each open the data: give them by a name or a path")
    found = kind if isinstance(kind, Kind) else find_kind(kind)
    ask = ask.replace(durations=tuple(length_of(text) for text in ask.durations))
    folder = StudyFolder(out)
    check_place(data, folder.path)
    with one_of_several() as (rank, world):
        device = device_for(how.device, rank) if world > 1 else how.device
        display = Display(quiet=rank > 0 or not how.live)
        with display.busy("looking at the data"):
            opened = open_data(data, held_out, most_test, **(columns or {}))
        definition = replace(
            found.define(_known(ask, opened)), held_out=held_out, most_test=most_test
        )
        records = folder.records() if folder.held() and not how.dry_run else []
        if rank == 0 and not how.dry_run and folder.held():
            folder.open(definition, opened.identity)  # refuse before anything is measured
        with display.busy("measuring the speed"):
            costs = estimate(definition, opened, records, device)
        left = [p.id for p in definition.points if p.id not in {r["id"] for r in records}]
        jobs = how.jobs * world
        if rank == 0:
            for line in _told(definition, costs, left, jobs):
                say(line)
        if how.dry_run:
            return _costs(definition, costs, jobs)
        folder.open(definition, opened.identity)
        outlook = Outlook(definition, folder, costs, jobs)
        watcher = None if rank else StudyWatcher(outlook, folder, say, how.live)
        _do(definition, opened, folder, how, data, columns or {}, device, watcher)
        if rank:
            return {}
        folder.compose()
    return write_report(folder, found, intervals=how.intervals, command=command)


def figures_only(
    kind: str, out: Path | str, *, intervals: bool | None = None, command: str = ""
) -> dict[str, Any]:
    """Draw a study's figures again from its records.

    Raises:
        Error: the folder holds no such study, or no records.
    """
    folder = StudyFolder(out)
    held = folder.definition().kind
    if held != kind:
        raise Error(f"{out} holds a study of {held}, not of {kind}")
    return write_report(folder, find_kind(kind), intervals=intervals, command=command)


def _known(ask: Ask, data: StudyData) -> Ask:
    """What was asked for, with what the data say."""
    return ask.replace(
        train_images=len(data.train),
        classes=int((data.train.counts() > 0).sum()),
        validation=0 if data.val is None else len(data.val),
        test=0 if data.test is None else len(data.test),
        side=data.side,
    )


LENGTHS = ("steps", "epochs", "examples")


def length_of(text: str) -> str:
    """A length of runs in one way of writing: ``500 steps``.

    A recipe takes a bare number for steps; a study compares lengths, and has it said.

    Raises:
        Error: it is none, or has no unit.
    """
    length = None
    if text.strip().endswith(LENGTHS):
        with contextlib.suppress(Error):
            length = with_settings(Recipe(), {"duration": text}).duration
    if length is None:
        raise Error(
            f"--durations {text} is no length of a run: write it as 500steps, 3epochs or "
            "20000examples"
        )
    return str(length)


def _do(
    definition: Definition,
    opened: StudyData,
    folder: StudyFolder,
    how: How,
    data: Spec,
    columns: Mapping[str, Any],
    device: str | None,
    watcher: Watcher | None,
) -> None:
    ids = {point.id for point in definition.points}
    if ids <= folder.recorded():
        return
    others = []
    own = device
    if how.jobs > 1:
        asked = {
            "out": str(folder.path.resolve()),
            "data": str(data),
            "columns": dict(columns),
            "keep": how.keep,
            "device": how.device,
        }
        own = device_for(how.device, 0)
        others = [_helper({**asked, "place": place}, how.jobs) for place in range(1, how.jobs)]
    try:
        with _own_share(how.jobs):
            take_runs(
                definition,
                decoded(opened, definition),
                folder,
                device=own,
                keep=how.keep,
                watcher=watcher,
            )
    except BaseException:
        for other in others:
            other.terminate()  # it saves where it stands
        raise
    finally:
        for other in others:
            _end(other)
    failed = [other.returncode for other in others if other.returncode not in (0, 130, -15)]
    if failed and not ids <= folder.recorded():
        raise Error(f"a process of the study failed with status {failed[0]}; see its lines above")


def decoded(opened: StudyData, definition: Definition) -> StudyData:
    """The data with the pictures that a study's runs use in memory, if they are small."""
    sizes = [None if point.rest else point.images for point in definition.points]
    shots = definition.shots
    whole = None in sizes or (shots and shot_pool(opened, shots)[1] == "train")
    largest = None if whole else max(size or 0 for size in sizes)
    return opened.decoded(largest, sorted({point.seed for point in definition.points}))


def threads_of(jobs: int) -> int:
    """The threads of each of several processes on this machine: their share of its cores.

    Where ``OMP_NUM_THREADS`` says how many, all of them have so many.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) else max(1, cores() // jobs)


@contextlib.contextmanager
def _own_share(jobs: int) -> Iterator[None]:
    """This process with no more threads than each of its helpers has."""
    before = torch.get_num_threads()
    if jobs > 1:
        torch.set_num_threads(threads_of(jobs))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _helper(asked: Mapping[str, Any], jobs: int) -> subprocess.Popen[str]:
    """Another process of this study on this machine, which ends when this one does."""
    threads = {"OMP_NUM_THREADS": str(threads_of(jobs))}
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, **threads}
    started = subprocess.Popen(
        [sys.executable, "-m", "vitrail.studies.worker"],
        stdin=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert started.stdin is not None
    started.stdin.write(json.dumps(asked) + "\n")
    started.stdin.flush()  # and left open: its end says that this process is gone
    return started


def _end(other: subprocess.Popen[str]) -> None:
    """Let a helper end: there is nothing left to do, or it has been told to stop."""
    if other.stdin is not None:
        other.stdin.close()
    try:
        other.wait(60)
    except subprocess.TimeoutExpired:
        other.terminate()
        other.wait()


def _told(definition: Definition, costs: Estimate, left: list[str], jobs: int) -> list[str]:
    trials = sum(point.role != "run" for point in definition.points)
    what = f"{len(definition.points)} runs" + (f", {trials} of them trials" if trials else "")
    done = len(definition.points) - len(left)
    lines = [
        f"study: {definition.kind}, {what}, {operations(costs.exaflops)} of training in all",
        *_plan(definition),
    ]
    if done:
        lines.append(f"done:  {done} of them already")
    by = f" on {jobs} processes" if jobs > 1 else ""
    lines.append(
        f"left:  {len(left)} runs, {in_words(costs.total(left, jobs))}{by} at the most, roughly"
    )
    return lines


def operations(exaflops: float) -> str:
    """Compute in the unit that suits it."""
    for unit, size in (("exaFLOPs", 1.0), ("petaFLOPs", 1e-3), ("teraFLOPs", 1e-6)):
        if exaflops >= size:
            return f"{exaflops / size:.3g} {unit}"
    return f"{exaflops / 1e-9:.3g} gigaFLOPs"


def _plan(definition: Definition) -> list[str]:
    """What will be trained: models, sizes, durations and seeds, in lines."""
    runs = [point for point in definition.points if point.role == "run"] or definition.points
    lines = listing(list(dict.fromkeys(point.line for point in runs)), 6)
    sizes = dict.fromkeys(point.images for point in runs)
    pictures = listing(["all" if size is None else f"{size:,}" for size in sizes], 6)
    lengths = listing(list(dict.fromkeys(str(point.duration) for point in runs)), 6)
    seeds = len({point.seed for point in runs})
    return [
        f"runs:  {lines}",
        f"       on {pictures} pictures, for {lengths}, with {seeds} seed{'s' * (seeds != 1)}",
    ]


def _costs(definition: Definition, costs: Estimate, jobs: int) -> dict[str, Any]:
    ids = [point.id for point in definition.points]
    return {
        "kind": definition.kind,
        "runs": len(ids),
        "exaflops": costs.exaflops,
        "seconds": costs.total(ids, jobs),
        "sha256": definition.sha256,
        "points": [
            {
                "id": point.id,
                "model": point.model,
                "needs": list(point.needs),
                "exaflops": costs.runs[point.id].flops / 1e18,
                "images": costs.runs[point.id].images,
                "seconds": costs.seconds(point.id),
            }
            for point in definition.points
        ],
    }
