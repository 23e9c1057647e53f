"""Tables: CSV or JSONL files of ``path,label``, with an optional ``split`` column.

With a column ``labels`` in place of ``label`` a picture has any number of labels: a list in JSONL,
and in CSV words separated by ``|`` or ``;``; an empty one is a picture without labels.

Paths are relative to the table's own folder (or absolute). Without a ``split`` column everything
is "train". Commas, semicolons and tabs are understood, and a byte-order mark is passed over:
that is what spreadsheets write.
"""

import csv
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitrail.data.folder import SPLITS, Listing
from vitrail.kit.errors import Error, did_you_mean, listing

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")


def list_table(
    table: Path, image_column: str | None = None, label_column: str | None = None
) -> dict[str, Listing]:
    """The splits of a table.

    Args:
        table: the file.
        image_column, label_column: other names for ``path`` and ``label`` (or ``labels``). Under
            another name, lists are several labels, and a text is one.

    Raises:
        Error: a column is missing, a path does not exist, a label is empty, or a line is broken.
    """
    path_name, label_name = image_column or "path", label_column
    read = _read_csv if table.suffix.lower() in (".csv", ".tsv") else _read_jsonl
    found: dict[str, Listing] = {}
    missing: list[str] = []
    try:
        for line, row in read(table, path_name, label_name):
            where = f"{table}: line {line}"
            path = _text(row, path_name, where)
            label_name = label_name or ("label" if "label" in row else "labels")
            several = label_name == "labels" or (
                label_name != "label" and isinstance(row.get(label_name), list)
            )
            label = (_texts if several else _text)(row, label_name, where)
            split = "train"
            if "split" in row:
                given = str(row["split"]).strip()
                if given.lower() not in SPLITS:
                    raise Error(f"{where}: split is train, val or test, not {given!r}")
                split = SPLITS[given.lower()]
            if not os.path.exists(os.path.join(table.parent, path)):
                missing.append(path)
            part = found.setdefault(split, Listing(several=several))
            if part.several != several:
                raise Error(f"{where}: {label_name} is a list in some rows and one value in others")
            part.paths.append(path)
            part.names.append(label)
    except UnicodeDecodeError:
        raise Error(f"{table}: not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise Error(f"{table}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    total = sum(len(part.paths) for part in found.values())
    if not total:
        raise Error(f"{table}: no rows; it needs columns {path_name} and {label_name or 'label'}")
    if missing:
        verb = "does" if len(missing) == 1 else "do"
        raise Error(
            f"{table}: {len(missing)} of {total} paths {verb} not exist ({listing(missing, 3)}); "
            f"paths are relative to {table.parent}"
        )
    return found


def _texts(row: dict[str, Any], column: str, where: str) -> tuple[str, ...]:
    """Several labels of one row, each once."""
    value = row.get(column)
    if isinstance(value, dict) or (value is not None and not isinstance(value, list | str)):
        raise Error(f"{where}: {column} is a list of labels, not {value!r:.40}")
    words = re.split(r"[|;]", value) if isinstance(value, str) else value or []
    if any(isinstance(word, list | dict) for word in words):
        raise Error(f"{where}: {column} is a list of labels, not of lists")
    texts = [str(word).strip() for word in words if word is not None]
    return tuple(dict.fromkeys(sys.intern(text) for text in texts if text))


def _text(row: dict[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if isinstance(value, (list, dict)):
        raise Error(
            f"{where}: {column} is one value, not a {type(value).__name__}; for any number of "
            "labels call the column labels"
        )
    text = "" if value is None else str(value).strip()
    if not text or "\0" in text:
        raise Error(f"{where}: the {column} is {'broken' if text else 'empty'}")
    return sys.intern(text)


def _read_csv(table: Path, image: str, label: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        # The separator is the one that brings out the most of the columns that are needed.
        needed = {image, "label", "labels"} if label is None else {image, label}
        separator = max(",;\t", key=lambda one: len(needed & set(_columns(header, one))))
        rows = csv.DictReader(
            file, delimiter=separator, restval="", skipinitialspace=True, strict=True
        )
        try:
            rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
            _demand(table, rows.fieldnames, image, label)
            for row in rows:
                yield rows.line_num, row
        except csv.Error as error:
            raise Error(f"{table}: line {rows.reader.line_num} is no CSV ({error})") from None


def _columns(header: str, separator: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
    except csv.Error:
        return []


def _read_jsonl(table: Path, image: str, label: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise Error(f"{table}: line {line} is not a JSON object")
            _demand(f"{table}: line {line}", list(row), image, label)
            yield line, row


def _demand(where: object, columns: list[str], image: str, label: str | None) -> None:
    """The columns that are needed are there; without a name, ``label`` or ``labels`` will do."""
    needed = [image, label or ("labels" if "labels" in columns else "label")]
    for name in needed:
        if name not in columns:
            raise Error(
                f"{where}: no column {name!r} (there are {listing(columns) or 'none'})"
                + did_you_mean(name, columns)
            )
