"""What the verbs share in saying their results: JSON or a table on stdout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


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


def _cell(value: Any, form: str) -> str:
    if isinstance(value, list | tuple):  # a shape, or names
        return ("x" if all(isinstance(item, int) for item in value) else " ").join(map(str, value))
    return format(value, form) if form else str(value).replace("\n", "\\n")
