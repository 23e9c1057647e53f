"""Predictions for many pictures: found, classified in batches, written as they come.

A picture that cannot be read becomes a record with the reason, never the end of the run.
"""

import contextlib
import csv
import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from vitrail.data.decode import SUFFIXES
from vitrail.data.examples import read_file
from vitrail.data.views import decode_for
from vitrail.kit.errors import Error, listing
from vitrail.kit.preprocess import Preprocessing
from vitrail.serving.classifier import Classifier


@dataclass(frozen=True)
class Prediction:
    """What one picture shows, or why nobody can tell.

    Args:
        path: as it was found.
        labels: (label, probability), likeliest first; empty where there is an error.
        error: the reason, or None.
    """

    path: str
    labels: list[tuple[str, float]]
    error: str | None = None


def find_images(names: Sequence[str]) -> list[Path]:
    """Files, folders (all pictures below them) and globs to a list of files, in order.

    Raises:
        Error: a name that is nothing, or nothing at all found.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found += _below(path)
        elif path.exists():
            found.append(path)
        elif glob.has_magic(name):
            found += sorted(
                item for item in map(Path, glob.glob(name, recursive=True)) if item.is_file()
            )
        else:
            raise Error(f"there is no picture or folder {name}")
    if not found:
        raise Error(f"no pictures were found in {listing(list(names), 3) or 'an empty list'}")
    return found


def predictions(classify: Classifier, paths: Iterable[Path], top_k: int) -> Iterator[Prediction]:
    """The predictions of files in order, a batch at a time; files that cannot be read included."""
    batch: list[tuple[Path, np.ndarray | None, str | None]] = []
    for path in paths:
        batch.append(_read(path, classify.preprocessing))
        if len(batch) == classify.batch_size:
            yield from _classified(classify, batch, top_k)
            batch = []
    if batch:
        yield from _classified(classify, batch, top_k)


def write_table(rows: Iterable[Prediction], form: str, out: Path | None) -> int:
    """Write predictions as ``table``, ``csv`` or ``jsonl`` to a file or to stdout.

    Returns:
        How many of them were errors.
    """
    failed = 0
    with _opened(out) as file:
        write = {"table": _table, "csv": _csv, "jsonl": _jsonl}[form]
        for row in write(rows, file):
            failed += row.error is not None
    return failed


def _below(folder: Path) -> list[Path]:
    return sorted(
        Path(place) / name
        for place, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    )


def _read(path: Path, preprocessing: Preprocessing) -> tuple[Path, np.ndarray | None, str | None]:
    try:
        return path, decode_for(read_file(path), preprocessing), None
    except Error as error:
        return path, None, str(error)


def _classified(
    classify: Classifier, batch: list[tuple[Path, np.ndarray | None, str | None]], top_k: int
) -> Iterator[Prediction]:
    answers = iter(classify([pixels for _, pixels, _ in batch if pixels is not None], top_k))
    for path, pixels, error in batch:
        # File names need not be UTF-8; what is printed must be.
        printable = os.fsencode(path).decode("utf-8", "backslashreplace")
        yield Prediction(printable, [] if pixels is None else next(answers), error)


@contextlib.contextmanager
def _opened(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    try:
        with out.open("w", newline="", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise Error(f"{out} cannot be written: {error.strerror}") from None


def _jsonl(rows: Iterable[Prediction], file: TextIO) -> Iterator[Prediction]:
    for row in rows:
        labels = [{"label": label, "probability": chance} for label, chance in row.labels]
        record = {"path": row.path, "predictions": labels, "error": row.error}
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        yield row


def _csv(rows: Iterable[Prediction], file: TextIO) -> Iterator[Prediction]:
    writer = csv.writer(file)
    writer.writerow(["path", "rank", "label", "probability", "error"])
    for row in rows:
        for rank, (label, chance) in enumerate(row.labels, start=1):
            writer.writerow([row.path, rank, label, f"{chance:.6f}", ""])
        if row.error is not None:
            writer.writerow([row.path, "", "", "", row.error])
        yield row


def _table(rows: Iterable[Prediction], file: TextIO) -> Iterator[Prediction]:
    for row in rows:
        file.write(f"{row.path!r}\n" if "\n" in row.path else f"{row.path}\n")
        if row.error is not None:
            file.write(f"    not read: {row.error}\n")
        for label, chance in row.labels:
            file.write(f"    {100 * chance:5.1f} %  {label}\n")
        yield row
