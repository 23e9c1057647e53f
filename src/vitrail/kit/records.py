"""Records: one JSON object a line, written once, read by everything that draws or compares.

Appending is a single write of a whole line, so a process killed in the middle leaves at most
one broken line at the end; reading passes over it, and the next write or `rewind` cuts it off.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vitrail.kit.errors import Error
from vitrail.kit.files import write_text_whole


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null, so that every reader can read the file."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


class Records:
    """An append-only JSONL file.

    Args:
        path: the file; made on the first write.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def write(self, kind: str, **fields: Any) -> None:
        """Append ``{"kind": kind, **fields}``; with the operating system when this returns.

        Raises:
            Error: the file cannot be written, because the disk is full for instance.
        """
        line = json.dumps({"kind": kind, **_plain(fields)}, ensure_ascii=False) + "\n"
        try:
            with self.path.open("a+b") as file:
                _close_last_line(file)
                file.write(line.encode())
        except OSError as error:
            raise Error(f"{self.path} cannot be written: {error.strerror}") from error

    def read(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """The records in order, of one kind or of all; a broken last line is passed over.

        Raises:
            Error: a line other than the last is no JSON object.
        """
        if not self.path.exists():
            return
        lines = self.path.read_bytes().split(b"\n")
        last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("not an object")
            except ValueError:
                if number == last:
                    return
                raise Error(f"{self.path}: line {number + 1} is not a JSON object") from None
            if kind is None or record.get("kind") == kind:
                yield record

    def rewind(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite the file with the records that ``keep`` accepts, whole or not at all."""
        if not self.path.exists():
            return
        kept = [json.dumps(record, ensure_ascii=False) for record in self.read() if keep(record)]
        write_text_whole(self.path, "".join(line + "\n" for line in kept))


def _close_last_line(file: BinaryIO) -> None:
    """Cut off a broken last line, or end a whole one that only lacks its newline."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    last = file.read().rpartition(b"\n")[2]
    try:
        json.loads(last)
        file.write(b"\n")
    except ValueError:
        file.truncate(end - len(last))
