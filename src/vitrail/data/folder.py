"""Class folders: which files belong to which split and which class.

``DATA/train/<class>/**/x.jpg`` with ``val`` (or ``valid``, ``validation``) and ``test`` beside it,
or ``DATA/<class>/**/x.jpg``. A folder is a split only if it holds folders itself: a class may well
be called "train". Links are followed, and a folder that was seen is not entered again.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vitrail.data.decode import SUFFIXES
from vitrail.kit.errors import Error, listing

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
# What operating systems and archivers leave behind; hidden files are passed over likewise.
_LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"})


@dataclass
class Listing:
    """The pictures of one split, in order.

    Attributes:
        paths: relative to the data.
        names: each picture's class name; or, with ``several``, a tuple of any number of them.
        ignored: files that are no pictures, as paths relative to the data.
        several: whether a picture has any number of classes.
    """

    paths: list[str] = field(default_factory=list)
    names: list = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    several: bool = False


def list_folder(root: Path) -> dict[str, Listing]:
    """The splits of a class folder; one that has none is all "train".

    Raises:
        Error: there is nothing here to train on or to evaluate; the message says what to change.
    """
    folders, files = entries(root)
    splits = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
    split_folders = {name: split for name, split in splits.items() if entries(root / name)[0]}
    if "train" in split_folders.values() or (split_folders and len(splits) == len(folders)):
        return _list_splits(root, split_folders, folders, files)
    if splits and len(splits) == len(folders):
        example = f"{next(iter(splits))}/<class>/"
        raise Error(
            f"{root}: no class folders in {listing(list(splits))}: put images into {example}"
        )
    pictures = [name for name in files if Path(name).suffix.lower() in SUFFIXES]
    if not folders:
        if pictures:
            raise Error(
                f"{root}: {len(pictures)} images ({listing(pictures, 2)}) but no class folders: "
                "put each image into a folder named after its class"
            )
        raise Error(_why_empty(root, files))
    found = _list_classes(root, "", folders)
    found.ignored += files
    if not found.paths:
        raise Error(f"{root}: no images in its folders ({listing(folders)})")
    _refuse_empty(root, folders, found)
    return {"train": found}


def _list_splits(
    root: Path, split_folders: dict[str, str], folders: list[str], files: list[str]
) -> dict[str, Listing]:
    found: dict[str, Listing] = {}
    for name, split in split_folders.items():
        if split in found:
            same = [other for other in split_folders if split_folders[other] == split]
            raise Error(f"{root}: {' and '.join(same)} are the same split: keep one of them")
        classes, loose = entries(root / name)
        found[split] = _list_classes(root, name, classes)
        found[split].ignored += [f"{name}/{file}" for file in loose]
        if not found[split].paths:
            raise Error(f"{root / name}: no images in its class folders ({listing(classes)})")
        if split == "train":
            _refuse_empty(root / name, classes, found[split])
    others = [f"{name}/" for name in folders if name not in split_folders]
    first = found.get("train") or next(iter(found.values()))
    first.ignored += others + files
    return found


def _refuse_empty(folder: Path, classes: list[str], found: Listing) -> None:
    empty = sorted(set(classes) - set(found.names))
    if empty:
        raise Error(
            f"{folder}: no images in class folder {listing(empty)}: add some, or remove the folder"
        )


def _why_empty(root: Path, files: list[str]) -> str:
    what = f"no images, only {listing(files, 3)}" if files else "the folder is empty"
    return f"{root}: {what}; DATA is a folder with one folder of images for each class"


def _list_classes(root: Path, inside: str, classes: list[str]) -> Listing:
    found = Listing()
    for name in classes:
        prefix = f"{inside}/{name}" if inside else name
        paths, ignored = _walk(root, inside, prefix)
        found.paths += paths
        found.names += [name] * len(paths)
        found.ignored += ignored
    return found


def _walk(root: Path, inside: str, prefix: str) -> tuple[list[str], list[str]]:
    """All pictures and all other files below a class folder, sorted; links followed once."""
    pictures: list[str] = []
    others: list[str] = []
    # A link back to where the class folders lie must not bring the other classes into this one.
    seen = {_identity(root), _identity(root / inside)}
    waiting = [prefix]
    while waiting:
        here = waiting.pop()
        identity = _identity(root / here)
        if identity in seen:
            continue
        seen.add(identity)
        folders, files = entries(root / here)
        waiting += [f"{here}/{name}" for name in reversed(folders)]
        for name in files:
            is_picture = os.path.splitext(name)[1].lower() in SUFFIXES
            (pictures if is_picture else others).append(f"{here}/{name}")
    return sorted(pictures), sorted(others)


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def entries(folder: Path) -> tuple[list[str], list[str]]:
    """(names of folders, names of files) in code-point order, without hidden ones and litter.

    A broken link counts as a file, so that its absence is noticed; pipes and devices do not count.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.name.startswith(".") or entry.name.lower() in _LITTER:
                    continue
                if _is(entry.is_dir):
                    folders.append(entry.name)
                elif entry.is_symlink() or _is(entry.is_file):
                    files.append(entry.name)
    except OSError as error:
        raise Error(
            f"{folder}: cannot be read ({(error.strerror or str(error)).lower()})"
        ) from None
    return sorted(folders), sorted(files)


def _is(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link that leads to itself
        return False
