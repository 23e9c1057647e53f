"""Which pictures are meant: files, folders and globs to one list, in an order that never changes.

A folder is walked name by name, so the list is the same on every machine that sees the same files,
whatever order the file system has; a share of it is the same too. Names lie in one block of bytes
(`data.keys.Keys`), because a million of them as objects would take more memory than the model.
"""

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrail.data.decode import SUFFIXES
from vitrail.data.keys import Keys
from vitrail.kit.errors import Error, listing


def find_images(names: Sequence[str]) -> Keys:
    """Files, folders (all pictures below them) and globs to a list of files, in order.

    Raises:
        Error: a name that is nothing, a folder that cannot be read, or nothing at all found.
    """
    found = Keys(path for name in names for path in _found(name))
    if not len(found):
        raise Error(f"no pictures were found in {listing(list(names), 3) or 'an empty list'}")
    return found


@dataclass(frozen=True)
class Share:
    """The i-th of n parts of a list: so many neighbours, so that the parts joined are the list."""

    i: int = 1
    n: int = 1

    def of(self, count: int) -> range:
        """The places of this part in a list of so many."""
        return range(count * (self.i - 1) // self.n, count * self.i // self.n)


def read_share(text: str) -> Share:
    """``i/n`` from 1/n to n/n.

    Raises:
        Error: it is no such thing.
    """
    told = re.fullmatch(r"(\d+)/(\d+)", text)
    if not told or not 1 <= int(told[1]) <= int(told[2]):
        raise Error(f"--shard is i/n and counts from 1 (1/4 to 4/4), not {text!r}")
    return Share(int(told[1]), int(told[2]))


def digest_of(names: Keys, places: range | None = None) -> str:
    """One hash of some of the names, by their places; of all by default."""
    digest = hashlib.sha256()
    for i in range(len(names)) if places is None else places:
        digest.update(names.raw(i) + b"\0")
    return digest.hexdigest()


def _found(name: str) -> Iterator[str]:
    path = Path(name)
    if path.is_dir():
        yield from _below("" if str(path) == "." else os.path.join(path, ""))
    elif path.exists():
        yield str(path)
    elif glob.has_magic(name):
        there = (item for item in map(Path, glob.glob(name, recursive=True)) if item.is_file())
        yield from map(str, sorted(there))
    else:
        raise Error(f"there is no picture or folder {name}")


def _below(folder: str) -> Iterator[str]:
    """The pictures below a folder, given with its last slash, as sorting all of them would."""
    try:
        with os.scandir(folder or ".") as entries:
            there = sorted((entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries)
    except OSError as error:
        raise Error(f"the folder {folder or '.'} cannot be read: {error.strerror}") from None
    for name, is_folder, is_link in there:
        if is_folder and not is_link:  # a link could lead in a circle
            yield from _below(f"{folder}{name}/")
        elif not is_folder and not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
            yield folder + name
