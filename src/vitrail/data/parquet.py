"""Parquet: pictures in columns, by index.

A row group is what parquet can read at once, and an epoch goes through the rows in a random order.
So a split whose pictures take at most `HELD` bytes is read into memory once, before workers are
forked, and shared by them. Of a larger one each process keeps the row groups that it used last;
in a uniform order it pays for a whole row group at almost every picture, in a nearby one
(``sampling="nearby"``) for each row group once an epoch. docs/data.md has figures.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.columns import Columns, arrow, choose, features_of, same, written
from vitrail.data.examples import MAX_BYTES, Source, as_labels
from vitrail.data.keys import Keys
from vitrail.data.labels import Part, Parts
from vitrail.data.pieces import Pieces
from vitrail.kit.errors import Error, listing

HELD = 2**30  # bytes
RECENT = 128 * 2**20  # bytes of row groups that a process keeps of a larger split
MAX_GROUP = 2 * 2**30  # bytes of pictures in a row group
_MOST_OPEN = 32


def list_parquet(
    name: str, pieces: Pieces, image_column: str | None = None, label_column: str | None = None
) -> Parts:
    """The rows of parquet files, split by split.

    Args:
        name: what the user called the data.
        pieces: the files.
        image_column, label_column: the columns; None: the ones that hold such a thing.

    Raises:
        Error: a file is damaged, or its columns hold no pictures and labels.
    """
    arrow(f"{name}: reading parquet")
    found, first = Parts(name, numbers=True), None
    for split, files in pieces.splits.items():
        texts, names, groups = [], [], []
        for number, file in enumerate(files):
            parquet = _open(file)
            columns = choose(
                str(file), parquet.schema_arrow, features_of(parquet.schema_arrow),
                image_column, label_column,
            )  # fmt: skip
            first = first or columns
            same(str(file), first, columns)
            texts += written(str(file), columns, _column(file, parquet, columns.label))
            names += _names(file, pieces.name(file), parquet, columns)
            groups += _row_groups(number, parquet, columns)
        if not texts or first is None:
            raise Error(f"{name}: no rows in {listing([file.name for file in files], 3)}")
        ignored = pieces.ignored if split == next(iter(pieces.splits)) else []
        found.splits[split] = Part(
            texts, _maker(name, files, np.array(groups, np.int64), first, Keys(names), ignored)
        )
    if first is not None:
        found.classes, found.several = first.classes, first.several
    return found


def _maker(
    name: str,
    files: list[Path],
    groups: np.ndarray,
    columns: Columns,
    keys: Keys,
    ignored: Sequence[str],
) -> Any:
    return lambda labels, classes: ParquetSource(
        name, files, groups, columns, keys, labels, classes, ignored
    )


class ParquetSource(Source):
    """Pictures in parquet files.

    Args:
        name: what the user called the data.
        files: the files.
        groups: int64 [g 4] of each row group: number of its file, its number there, rows, and
            bytes of the pictures' column.
        columns: where pictures and labels are.
        keys, labels, classes, ignored: as in `Source`.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        groups: np.ndarray,
        columns: Columns,
        keys: Keys,
        labels: np.ndarray,
        classes: Sequence[str],
        ignored: Sequence[str] = (),
    ):
        self.name, self.files, self.columns = name, [str(file) for file in files], columns
        self.groups, self.ends = groups, np.cumsum(groups[:, 2])
        self.keys, self.labels, self.classes = keys, as_labels(labels), tuple(classes)
        self.ignored = tuple(ignored)
        total = int(groups[:, 3].sum())
        self.held = total <= HELD
        # Half of what is kept: the row groups at both ends of a window are needed as well.
        self.window = max(1, RECENT // 2 * len(self.labels) // max(1, total))
        self._forget()

    def _forget(self) -> None:
        self._opened: dict[str, Any] = {}
        self._opener = os.getpid()
        self._recent: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}, "_recent": OrderedDict()}

    def image(self, i: int) -> bytes:
        """The i-th picture's bytes.

        Raises:
            Error: why it cannot be read.
        """
        group = int(np.searchsorted(self.ends, i, side="right"))
        pictures = self._group(group)
        value = pictures[int(i - self.ends[group] + self.groups[group, 2])]
        if not value.is_valid:
            raise Error(f"column {self.columns.image} holds no bytes there")
        data = value.as_py()
        if len(data) > MAX_BYTES:
            raise Error(f"{len(data) / 2**20:.0f} MiB, over the limit of {MAX_BYTES // 2**20} MiB")
        return data

    def runs(self) -> np.ndarray:
        """The row group of each picture."""
        return np.repeat(np.arange(len(self.groups)), self.groups[:, 2])

    def size(self, i: int) -> int:
        """The length of the i-th picture in bytes; in a split too large to be held, the length of
        its row group's pictures: parquet does not say more without being read.
        """
        if not self.held:
            return int(self.groups[np.searchsorted(self.ends, i, side="right"), 3])
        try:
            return len(self.image(i))
        except Error:
            return -1

    def ready(self) -> None:
        """Read all pictures, where they are to be held."""
        if self.held:
            for group in range(len(self.groups)):
                try:
                    self._group(group)
                except Error:  # a damaged part: its pictures are named when they are asked for
                    continue

    def _group(self, group: int) -> Any:
        """The pictures of a row group, an array of Arrow's."""
        found = self._recent.get(group)
        if found is None:
            file, number, _, size = self.groups[group].tolist()
            if size > MAX_GROUP:
                raise Error(
                    f"a row group of {size / 2**30:.1f} GiB: write the file in smaller ones"
                )
            found = self._recent[group] = self._read(self.files[file], number)
            while not self.held and len(self._recent) > 1 and self._bytes() > RECENT:
                self._recent.popitem(last=False)
        else:
            self._recent.move_to_end(group)
        return found

    def _bytes(self) -> int:
        return int(self.groups[list(self._recent), 3].sum())

    def _read(self, file: str, number: int) -> Any:
        if self._opener != os.getpid():  # a file opened before a fork is not shared
            self._opened, self._opener = {}, os.getpid()
        if file not in self._opened:
            if len(self._opened) >= _MOST_OPEN:
                self._opened.clear()
            self._opened[file] = _open(Path(file))
        column = self.columns.image + (".bytes" if self.columns.nested else "")
        try:
            table = self._opened[file].read_row_group(number, columns=[column], use_threads=False)
            values = table.column(0).combine_chunks()
            return values.flatten()[0] if self.columns.nested else values
        except Exception as error:  # whatever a damaged file makes of it
            raise Error(f"its row group cannot be read ({_said(error)})") from None


def _open(file: Path) -> Any:
    """A parquet file, its footer read.

    Raises:
        Error: it is none, or damaged.
    """
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file, memory_map=True)
    except Exception as error:
        raise Error(f"{file}: no parquet file that can be read ({_said(error)})") from None


def _column(file: Path, parquet: Any, name: str) -> Any:
    try:
        return parquet.read(columns=[name], use_threads=False).column(0)
    except Exception as error:
        raise Error(f"{file}: column {name} cannot be read ({_said(error)})") from None


def _names(file: Path, piece: str, parquet: Any, columns: Columns) -> list[str]:
    rows = parquet.metadata.num_rows
    if not columns.has_path:
        return [f"{piece}/{row:06d}" for row in range(rows)]
    paths = _column(file, parquet, f"{columns.image}.path").combine_chunks().flatten()[0]
    return [
        f"{piece}/{path}" if path else f"{piece}/{row:06d}"
        for row, path in enumerate(paths.to_pylist())
    ]


def _row_groups(number: int, parquet: Any, columns: Columns) -> list[tuple[int, int, int, int]]:
    wanted = columns.image + (".bytes" if columns.nested else "")
    rows = []
    for k in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(k)
        sizes = [
            column.total_uncompressed_size
            for column in map(group.column, range(group.num_columns))
            if column.path_in_schema == wanted
        ]
        if group.num_rows:
            rows.append((number, k, group.num_rows, sum(sizes)))
    return rows


def _said(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
