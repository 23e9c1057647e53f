"""Pieces: data that lie in several large files (tar shards, parquet), and which split each is.

A piece's split is said by its folder (``train/0001.tar``) or by a word of its name
(``train-00000-of-00005.parquet``, ``flowers_val_3.tar``); where none says so, all is train.
"""

import glob
import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

from vitrail.data.decode import SUFFIXES as PICTURES
from vitrail.data.folder import SPLITS, entries
from vitrail.kit.errors import Error

MOST = 100_000  # files that one pattern may stand for
CLASS_FILES = ("classes.json", "classes.txt")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WORD = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLITS)})(?![a-z])")


@dataclass
class Pieces:
    """The files of each split, in order.

    Attributes:
        root: the folder that they lie in or below.
        splits: split to files.
        ignored: other files there, relative to root.
    """

    root: Path
    splits: dict[str, list[Path]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    @property
    def class_file(self) -> Path | None:
        """A list of class names beside the pieces, where there is one."""
        found = [self.root / name for name in CLASS_FILES if (self.root / name).is_file()]
        if len(found) > 1:
            raise Error(f"{self.root}: both {' and '.join(CLASS_FILES)} are there: keep one")
        return found[0] if found else None

    def name(self, file: Path) -> str:
        """A file's path relative to the root."""
        return file.relative_to(self.root).as_posix()


def is_pattern(name: str) -> bool:
    """Whether a name stands for several files."""
    return any(sign in name for sign in "*?[{")


def of_pattern(pattern: str) -> Pieces:
    """The files that a pattern stands for: ``*``, ``?``, ``[ab]``, ``{0000..0012}``, ``{a,b}``.

    Raises:
        Error: it stands for none, for too many, or for one that is not there.
    """
    files: list[Path] = []
    for one in _expanded(pattern):
        if not any(sign in one for sign in "*?["):
            if not Path(one).expanduser().is_file():
                raise Error(f"{pattern}: there is no file {one}")
            files.append(Path(one).expanduser())
            continue
        files += map(Path, sorted(glob.glob(str(Path(one).expanduser()), recursive=True)))
    files = [file for file in dict.fromkeys(files) if file.is_file()]
    if any(file.is_absolute() for file in files):
        files = [file.absolute() for file in files]
    if not files:
        raise Error(f"{pattern}: no file is called so")
    return _by_split(Pieces(_shared(files)), files)


def of_file(file: Path) -> Pieces:
    """A single file, which is train whatever it is called."""
    return Pieces(file.parent, {"train": [file]})


def of_folder(root: Path, suffix: str) -> Pieces | None:
    """The files of a folder that end in ``suffix``; None: it has none, or is a class folder."""
    folders, files = entries(root)
    wanted = [root / name for name in files if name.lower().endswith(suffix)]
    if not wanted and not any(name.lower() in (*SPLITS, "data") for name in folders):
        return None  # before a million pictures are listed in vain
    inner: list[Path] = []
    others = [name for name in files if not name.lower().endswith(suffix)]
    for name in folders:
        deeper, inside = entries(root / name)
        found = [root / name / file for file in inside if file.lower().endswith(suffix)]
        pictures = any(Path(file).suffix.lower() in PICTURES for file in inside)
        if pictures or (deeper and name.lower() in SPLITS):
            return None
        if found and (name.lower() in SPLITS or name == "data"):
            inner += found
        else:
            others.append(f"{name}/")
    chosen = wanted or inner
    if not chosen:
        return None
    others = [name for name in others if name not in CLASS_FILES]
    return _by_split(Pieces(root, ignored=sorted(others)), chosen)


def _by_split(pieces: Pieces, files: list[Path]) -> Pieces:
    splits = {file: _split_of(file, pieces.root) for file in files}
    told = any(splits.values())
    for file, split in splits.items():
        if told and split is None:
            pieces.ignored.append(pieces.name(file))
        else:
            pieces.splits.setdefault(split or "train", []).append(file)
    pieces.splits = {
        split: pieces.splits[split] for split in ("train", "val", "test") if split in pieces.splits
    }
    return pieces


def _split_of(file: Path, root: Path) -> str | None:
    for part in reversed(file.relative_to(root).parts):
        # The last word counts: "train-ticket-test-3.tar" is a test.
        words = _WORD.findall(part.lower())
        if words:
            return SPLITS[words[-1]]
    return None


def _expanded(pattern: str) -> list[str]:
    """``{a,b}`` and ``{00..12}`` written out, as shells do; the width of the first number stays."""
    pieces = _BRACES.split(pattern)
    choices = [_choices(piece) if k % 2 else [piece] for k, piece in enumerate(pieces)]
    count = 1
    for several in choices:
        count *= len(several)
        if count > MOST:
            raise Error(f"{pattern}: stands for more than {MOST:,} files")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    between = _RANGE.fullmatch(inside)
    if between is None:
        return inside.split(",")
    first, last = between.groups()
    if abs(int(last) - int(first)) >= MOST:
        raise Error(f"{{{inside}}}: stands for more than {MOST:,} files")
    step = 1 if int(last) >= int(first) else -1
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    return [str(k).zfill(width) for k in range(int(first), int(last) + step, step)]


def _shared(files: list[Path]) -> Path:
    """The deepest folder that all lie below."""
    shared = files[0].parent
    while not all(file.is_relative_to(shared) for file in files):
        shared = shared.parent
    return shared
