"""Keys: the names of many examples, without an object for each.

A list of a million strings is copied page by page as soon as a forked worker counts references in
it; one block of bytes is not.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Keys(Sequence[str]):
    """Many names in one block of bytes.

    File names need not be UTF-8: `__getitem__` gives a name fit to print and to write as JSON,
    `path` the exact one.
    """

    def __init__(self, names: Iterable[str]):
        block, self._ends = bytearray(), array("q", [0])
        for name in names:  # one by one: they may come from a walk that never holds them all
            block += name.encode("utf-8", "surrogateescape")
            self._ends.append(len(block))
        self._block = bytes(block)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def raw(self, i: int) -> bytes:
        """The i-th name's bytes."""
        if i < 0:
            i += len(self)
        if i < 0:
            raise IndexError(i)
        return self._block[self._ends[i] : self._ends[i + 1]]

    def path(self, i: int) -> str:
        """The i-th name as the file system has it."""
        return self.raw(i).decode("utf-8", "surrogateescape")

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self.raw(i).decode("utf-8", "backslashreplace")


class Picked(Sequence[str]):
    """Some of another sequence's names, by their places int64 [n]."""

    def __init__(self, names: Sequence[str], indices: np.ndarray):
        self.names, self.indices = names, indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self.names[j] for j in self.indices[i]]
        return self.names[self.indices[i]]
