"""The forms that predictions are written in: table, csv, jsonl and parquet, and read back again.

A JSONL record is ``{"path", "predictions": [{"label", "probability"}], "error"}``; a row of parquet
has the same three columns, and CSV has a row for each label. Every form is written as the
predictions come, and read back for what a run that goes on must know: how many there are, and
which of them failed.
"""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from vitrail.kit.errors import Error
from vitrail.kit.extras import needed
from vitrail.serving.stream import Prediction

FORMS = ("table", "csv", "jsonl", "parquet")
ENDINGS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
CSV_HEAD = ("path", "rank", "label", "probability", "error")
ROW_GROUP = 4096  # of parquet: held in memory until it is full
NAMED = 5  # failures that are named; of the others only the number is kept

Write = Callable[[Prediction], None]


@dataclass
class Tally:
    """How many predictions there are, and how many pictures could not be read.

    Attributes:
        records: all of them.
        failed: those with an error.
        named: (path, reason) of the first `NAMED` of these.
    """

    records: int = 0
    failed: int = 0
    named: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: str | None, error: str | None) -> None:
        """Count one prediction."""
        self.records += 1
        if error is not None:
            self.failed += 1
            if len(self.named) < NAMED:
                self.named.append((path or "", error))

    def __iadd__(self, other: "Tally") -> "Tally":
        self.records += other.records
        self.failed += other.failed
        self.named = (self.named + other.named)[:NAMED]
        return self


def record_of(row: Prediction) -> dict[str, Any]:
    """A prediction as the JSONL record that the contract names."""
    labels = [{"label": label, "probability": chance} for label, chance in row.labels]
    return {"path": row.path, "predictions": labels, "error": row.error}


def schema() -> Any:
    """The columns of a parquet file, as a `pyarrow.Schema`.

    Raises:
        Error: pyarrow is not installed.
    """
    needed("hf", "pyarrow")
    import pyarrow

    one = pyarrow.struct([("label", pyarrow.string()), ("probability", pyarrow.float32())])
    columns = [
        ("path", pyarrow.string()),
        ("predictions", pyarrow.list_(one)),
        ("error", pyarrow.string()),
    ]
    return pyarrow.schema(columns)


@contextmanager
def opened(form: str, target: Path | TextIO) -> Iterator[Write]:
    """What writes predictions in a form, to a new file or to what is open.

    Raises:
        Error: the file cannot be written; parquet without pyarrow, or to what is open.
    """
    if form == "parquet":
        if not isinstance(target, Path):
            raise Error("parquet is written to a file or a folder: give --out")
        with _parquet(target) as write:
            yield write
    elif isinstance(target, Path):
        with target.open("w", newline="", encoding="utf-8") as file:
            yield _TEXT[form](file)
    else:
        yield _TEXT[form](target)


def tally_of(form: str, path: Path) -> Tally:
    """Count what a finished file holds.

    Raises:
        Error: it is not such a file.
    """
    tally = Tally()
    try:
        for name, error in _READ[form](path):
            tally.add(name, error)
    except OSError as error:
        raise Error(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, IndexError) as error:
        raise Error(f"{path} is damaged ({error}): remove it, and it is made again") from None
    return tally


# Writing


def _table(file: TextIO) -> Write:
    def write(row: Prediction) -> None:
        path = row.path or ""
        file.write(f"{path!r}\n" if "\n" in path else f"{path}\n")
        if row.error is not None:
            file.write(f"    not read: {row.error}\n")
        for label, chance in row.labels:
            file.write(f"    {100 * chance:5.1f} %  {label}\n")

    return write


def _csv(file: TextIO) -> Write:
    writer = csv.writer(file)
    writer.writerow(CSV_HEAD)

    def write(row: Prediction) -> None:
        for rank, (label, chance) in enumerate(row.labels, start=1):
            writer.writerow([row.path, rank, label, f"{chance:.6f}", ""])
        if row.error is not None:
            writer.writerow([row.path, "", "", "", row.error])

    return write


def _jsonl(file: TextIO) -> Write:
    def write(row: Prediction) -> None:
        file.write(json.dumps(record_of(row), ensure_ascii=False) + "\n")

    return write


_TEXT = {"table": _table, "csv": _csv, "jsonl": _jsonl}


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    columns = schema()
    import pyarrow
    from pyarrow import parquet

    rows: list[dict[str, Any]] = []
    with parquet.ParquetWriter(path, columns, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=columns))
            rows.clear()

        def write(row: Prediction) -> None:
            rows.append(record_of(row))
            if len(rows) == ROW_GROUP:
                flush()

        yield write
        if rows:
            flush()


# Reading back


def _read_jsonl(path: Path) -> Iterator[tuple[str | None, str | None]]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b'"error": null}\n'):  # the last field: so it is no part of a text
                yield None, None
            else:
                record = json.loads(line)
                yield record["path"], record["error"]


def _read_csv(path: Path) -> Iterator[tuple[str | None, str | None]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if tuple(next(rows, ())) != CSV_HEAD:
            raise ValueError("it has other columns")
        for name, rank, _, _, error in rows:
            if rank in ("", "1"):  # a picture's first row
                yield name, error if rank == "" else None


def _read_parquet(path: Path) -> Iterator[tuple[str | None, str | None]]:
    needed("hf", "pyarrow")
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["path", "error"]):
            yield from zip(*(batch.column(i).to_pylist() for i in range(2)), strict=True)


_READ = {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet}
