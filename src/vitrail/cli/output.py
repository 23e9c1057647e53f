"""What the verbs share in giving their results: JSON or a table on stdout, a folder of pages."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vitrail.kit.errors import Error


def print_json(value: Any) -> None:
    """One JSON value on stdout; what is not ASCII stays readable."""
    print(json.dumps(value, ensure_ascii=False))


def print_rows(columns: dict[str, str], rows: Sequence[dict[str, Any]]) -> None:
    """Rows as a table: ``columns`` from field to format, numbers right-aligned."""
    cells = [[_cell(row[name], form) for name, form in columns.items()] for row in rows]
    table = [list(columns), *cells]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    for row in table:
        padded = [
            cell.rjust(width) if form.endswith(("d", "f")) else cell.ljust(width)
            for cell, width, form in zip(row, widths, columns.values(), strict=True)
        ]
        print("  ".join(padded).rstrip())


def check_out(out: Path | None, data: str | None = None) -> None:
    """Refuse, before any work, a folder that a page cannot go into; nothing is left behind.

    Raises:
        Error: it is a file, holds a model, lies inside the data, or cannot be written into.
    """
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise Error(f"{out} is a file; --out needs a folder")
    if (out / "config.json").exists() or (out / "checkpoints").exists():
        raise Error(f"{out} holds a model with a report of its own: give another --out")
    inside = data is not None and Path(data).is_dir()
    if inside and out.resolve().is_relative_to(Path(str(data)).resolve()):
        raise Error(f"--out {out} lies inside the data, which stay as they are: give another")
    _try(out, out)


def check_out_file(out: Path | None, inputs: Iterable[Path]) -> None:
    """Refuse, before any work, a file that cannot be written, or that is one of the inputs.

    Raises:
        Error: it is a folder, one of the pictures, or cannot be written.
    """
    if out is None:
        return
    if out.is_dir():
        raise Error(f"{out} is a folder; --out needs a file")
    if out.exists() and any(path.exists() and path.samefile(out) for path in inputs):
        raise Error(f"--out {out} is one of the pictures, which stay as they are: give another")
    _try(out.parent, out)


def _try(folder: Path, out: Path) -> None:
    """See that a folder can be made and written into, without making it.

    Another process may be about to fill it, so nothing is made that would have to be removed.
    """
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise Error(f"{out} cannot be used as --out: {error.strerror}") from None


def say_report(out: Path | None) -> None:
    """Where the page is, as a verb's last line."""
    if out is not None:
        print(f"report {out / 'report.html'}")


def _cell(value: Any, form: str) -> str:
    if isinstance(value, list | tuple):  # a shape, or names
        return ("x" if all(isinstance(item, int) for item in value) else " ").join(map(str, value))
    return format(value, form) if form else str(value).replace("\n", "\\n")
