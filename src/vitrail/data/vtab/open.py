"""Opening a task: the reader of each, the published lists where the user has them, the sources."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitrail.data.examples import FileSource, Source
from vitrail.data.vtab import natural, specialised, structured
from vitrail.data.vtab.listing import Listing, TaskSource
from vitrail.data.vtab.selection import cut, published_order, split_of
from vitrail.data.vtab.tasks import TASKS, Task, find_task
from vitrail.kit.errors import Error

PARTS = ("train800", "val200", "train800val200", "test")

_READERS: dict[str, Callable[[Path, str], Listing | None]] = {
    "caltech101": natural.caltech101,
    "cifar100": natural.cifar100,
    "dtd": natural.dtd,
    "flowers102": natural.flowers102,
    "pets": natural.pets,
    "sun397": natural.sun397,
    "svhn": natural.svhn,
    "camelyon": specialised.camelyon,
    "eurosat": specialised.eurosat,
    "resisc45": specialised.resisc45,
    "retinopathy": specialised.retinopathy,
    "clevr_count": structured.clevr("count"),
    "clevr_distance": structured.clevr("distance"),
    "dmlab": structured.dmlab,
    "kitti_distance": structured.kitti,
    "dsprites_location": structured.dsprites("location"),
    "dsprites_orientation": structured.dsprites("orientation"),
    "smallnorb_azimuth": structured.smallnorb("azimuth"),
    "smallnorb_elevation": structured.smallnorb("elevation"),
}


@dataclass(frozen=True)
class Missing:
    """A task whose files are not there: which, and where they are published."""

    task: Task
    folder: Path

    def __str__(self) -> str:
        return (
            f"{self.task.name}: put {self.task.files} into {self.folder} "
            f"(published at {self.task.published})"
        )


def where(root: str | Path) -> tuple[list[Task], list[Missing]]:
    """Which tasks have a folder with something in it under ``root``, and which have not.

    Raises:
        Error: there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise Error(f"{root} is no folder; --vtab takes one with a folder for each task")
    there, missing = [], []
    for task in TASKS:
        folder = root / task.folder
        if folder.is_dir() and any(folder.iterdir()):
            there.append(task)
        else:
            missing.append(Missing(task, folder))
    return there, missing


def open_task(root: str | Path, name: str) -> dict[str, Source]:
    """The four parts of a task: ``train800 val200 train800val200 test``.

    Where the task's folder holds lists of these names with ``.txt`` (lines of ``path label``, as
    PyTorch copies of VTAB-1k are handed around), they are the selection and its files the pictures.

    Raises:
        Error: files are missing (which, and where they are published) or damaged.
    """
    task = find_task(name)
    folder = Path(root) / task.folder
    if all((folder / f"{part}.txt").is_file() for part in ("train800val200", "test")):
        return _listed(task, folder)
    read = _READERS[name]
    listings: dict[str, Listing] = {}
    orders: dict[str, np.ndarray] = {}
    for spec in (task.train, task.val, task.test):
        split = split_of(spec)
        if split not in listings:
            listing = read(folder, split)
            if listing is None:
                raise Error(str(Missing(task, folder)))
            listings[split] = listing
            orders[split] = published_order(listing.keys, split)
    classes = listings[split_of(task.train)].classes
    for split, listing in listings.items():
        if listing.classes != classes:
            raise Error(f"{folder}: train and {split} have other classes; are the files whole?")
    if len(classes) != task.classes:
        raise Error(
            f"{folder}: {len(classes)} classes, where {task.name} has {task.classes}; "
            "are the files whole?"
        )
    pieces = {}
    for part, spec in zip(("train800", "val200", "test"), _specs(task), strict=True):
        split = split_of(spec)
        try:
            places = cut(spec, orders[split])
        except Error as error:
            raise Error(f"{folder}: {error}; are the files whole?") from None
        pieces[part] = (listings[split], places)
    both = [pieces["train800"], pieces["val200"]]
    return {
        "train800": _source(task, classes, [pieces["train800"]]),
        "val200": _source(task, classes, [pieces["val200"]]),
        "train800val200": _source(task, classes, both),
        "test": _source(task, classes, [pieces["test"]]),
    }


def _specs(task: Task) -> tuple[str, str, str]:
    return task.train, task.val, task.test


def _source(
    task: Task, classes: tuple[str, ...], pieces: list[tuple[Listing, np.ndarray]]
) -> TaskSource:
    keys = [listing.keys[i] for listing, places in pieces for i in places.tolist()]
    labels = np.concatenate([listing.labels[places] for listing, places in pieces])
    fetches = [listing.pictures(places) for listing, places in pieces]
    lengths = [len(places) for _, places in pieces]
    fetch = fetches[0] if len(fetches) == 1 else _Chained(fetches, lengths)
    return TaskSource(f"vtab:{task.name}", classes, keys, labels, fetch)


class _Chained:
    """Several fetches, one behind the other."""

    def __init__(self, fetches: list, lengths: list[int]):
        self.fetches, self.ends = fetches, np.cumsum(lengths)

    def __call__(self, k: int) -> bytes | np.ndarray:
        """The k-th picture of all."""
        which = int(np.searchsorted(self.ends, k, side="right"))
        return self.fetches[which](k - (int(self.ends[which - 1]) if which else 0))


def _listed(task: Task, folder: Path) -> dict[str, Source]:
    """The parts by lists of ``path label`` in the task's folder."""
    found = {
        part: _lines(folder / f"{part}.txt", task.classes)
        for part in PARTS
        if (folder / f"{part}.txt").is_file()
    }
    classes = tuple(str(k) for k in range(task.classes))
    sources: dict[str, Source] = {
        part: FileSource(
            f"vtab:{task.name}", folder, [p for p, _ in lines], [k for _, k in lines], classes
        )
        for part, lines in found.items()
    }
    # A copy without the shorter lists: its 1,000 are 800 and 200, in this order.
    sources.setdefault("train800", sources["train800val200"].subset(range(800)))
    sources.setdefault("val200", sources["train800val200"].subset(range(800, 1000)))
    return sources


def _lines(path: Path, classes: int) -> list[tuple[str, int]]:
    lines = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal() or int(label) >= classes:
            raise Error(f"{path}: line {number} is not 'path label' with a label below {classes}")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise Error(f"{path}: line {number} names a file outside of {path.parent}: refused")
        lines.append((name, int(label)))
    return lines
