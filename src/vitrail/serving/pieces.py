"""A folder of predictions in numbered pieces: whole or not there, each picture in exactly one.

A piece is a fixed range of the list of pictures. It is written beside its place, synced and
renamed, so whatever has its name is whole, and after a kill the same command makes the others.
What the folder was begun with (model, options, pictures) is written down first, and anything else
is refused. The shares of several machines may go into one folder: each has names of its own, whose
alphabetical order is that of the pictures.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from vitrail.data.keys import Keys
from vitrail.kit.errors import Error
from vitrail.kit.files import sync_folder
from vitrail.serving.forms import Tally, opened, tally_of
from vitrail.serving.images import Share, digest_of
from vitrail.serving.stream import Prediction

FORMAT = 1
SHOWN = ("temperature", "top", "form", "piece", "shards", "count")
SAID = {  # what may differ from what the folder was begun with, in the user's words
    "model": "another model",
    "merge_tokens": "a model that merges another number of tokens",
    "several": "a model that gives a picture one label, or several,",
    "labels": "a model with other labels",
    "preprocessing": "a model with another preprocessing",
    "temperature": "a model with another temperature",
    "top": "another --top",
    "form": "another --format",
    "piece": "another --piece-size",
    "shards": "another number of shards",
    "count": "another number of pictures",
}


class Pieces:
    """One share's pieces in a folder.

    Args:
        folder: where; made when it is not there.
        names: all pictures, of every share.
        share: which part of them this is.
        form: ``csv``, ``jsonl`` or ``parquet``.
        size: pictures in a piece.
        about: what else must not change while the folder is filled: JSON values by the keys of
            `SAID`.
    """

    def __init__(
        self, folder: Path, names: Keys, share: Share, form: str, size: int, about: dict[str, Any]
    ):
        self.folder, self.names, self.share, self.form = folder, names, share, form
        places = share.of(len(names))
        self.pieces = [places[at : at + size] for at in range(0, len(places), size)]
        digits = len(str(share.n))
        part = f"-{share.i:0{digits}}-of-{share.n}" if share.n > 1 else ""
        self._stem, self._record = f"predictions{part}", folder / f"_predictions{part}.json"
        self._begun_with = {
            "format": FORMAT,
            **about,
            "form": form,
            "piece": size,
            "shards": share.n,
            "count": len(names),
            "names": digest_of(names),
            "pieces": [self._digest(piece) for piece in self.pieces],
        }

    def _digest(self, piece: range) -> str:
        return digest_of(self.names, piece)[:16]

    def path(self, piece: int) -> Path:
        """Where a piece is put."""
        return self.folder / f"{self._stem}-{piece:06}.{self.form}"

    @contextmanager
    def begun(self) -> Iterator[Tally]:
        """The right to write pieces, for one process at a time; gives what is there already.

        Raises:
            Error: the folder was begun with something else, another process is at work on this
                share, a piece is damaged, or the folder cannot be written.
        """
        fresh = not self.folder.exists()
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if fresh:
                    stack.callback(self._remove_if_empty)
                made = self._write_record()
                _lock(stack.enter_context(self._record.open("rb")), self.folder)
                self._check(made)
                for left in self.folder.glob(f".{self._stem}-*.part"):  # by a killed process
                    left.unlink(missing_ok=True)
                there = self._there()
            except OSError as error:
                raise self._unwritable(error) from None
            yield there

    def missing(self) -> list[int]:
        """The numbers of the pieces that are not there, in order."""
        return [i for i in range(len(self.pieces)) if not self.path(i).exists()]

    def write(self, piece: int, rows: Iterable[Prediction]) -> Tally:
        """Put one piece in its place, on the disk when this returns.

        Raises:
            Error: it cannot be written; the pieces before are intact.
        """
        target, tally = self.path(piece), Tally()
        staged = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with opened(self.form, staged) as write:
                for row in rows:
                    write(row)
                    tally.add(row.path, row.error)
            put_in_place(staged, target)
        except OSError as error:
            raise self._unwritable(error) from None
        finally:
            staged.unlink(missing_ok=True)
        return tally

    def _unwritable(self, error: OSError) -> Error:
        reason = (error.strerror or str(error)).lower()
        return Error(
            f"{self.folder} cannot be written ({reason}); the pieces that are there are whole, "
            "and the same command goes on from them"
        )

    def _write_record(self) -> bool:
        """Write down what this is begun with, unless that was done before; whether it was now."""
        if self._record.exists():
            return False
        staged = self.folder / f".{self._record.name}.{os.getpid()}.part"
        try:
            staged.write_text(json.dumps(self._begun_with) + "\n", encoding="utf-8")
            with staged.open("rb+") as file:
                os.fsync(file.fileno())
            os.link(staged, self._record)  # fails where another process has just done it
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            os.replace(staged, self._record)
        finally:
            staged.unlink(missing_ok=True)
        sync_folder(self.folder)
        return True

    def _remove_if_empty(self) -> None:
        with suppress(OSError):
            self.folder.rmdir()

    def _check(self, made: bool) -> None:
        """Compare with this share's record and with those of the others beside it."""
        for path in sorted(self.folder.glob("_predictions*.json")):
            if path == self._record and made:
                continue
            if change := self._change(path):
                if made:
                    self._record.unlink()
                raise Error(
                    f"{self.folder} was begun with {change}: give another --out, or the command "
                    "that it was begun with"
                )

    def _change(self, path: Path) -> str | None:
        try:
            then = json.loads(path.read_text(encoding="utf-8"))
            number = then["format"]
        except (OSError, ValueError, KeyError, TypeError):
            raise Error(
                f"{path} is damaged, so nobody can tell what {self.folder} was begun with: give "
                "another --out"
            ) from None
        now, own = self._begun_with, path == self._record
        if number != FORMAT:
            return f"another version of Vitrail (format {number}, this one writes {FORMAT})"
        for key, words in SAID.items():
            if key in now and then.get(key) != now[key]:
                both = f" ({then.get(key)}, now {now[key]})" if key in SHOWN else ""
                return words + both + (self._where(then) if own and key == "count" else "")
        if then.get("names") != now["names"]:
            return f"other pictures{self._where(then) if own else ''}"
        return None

    def _where(self, then: dict[str, Any]) -> str:
        """From which picture on the list is another one."""
        for piece, theirs in zip(self.pieces, then.get("pieces", []), strict=False):
            if theirs != self._digest(piece):
                first, last = self.names[piece[0]], self.names[piece[-1]]
                return f", of which the first differs between {first} and {last}"
        return ""

    def _there(self) -> Tally:
        """Count the pieces that are there.

        Raises:
            Error: one does not hold what belongs there.
        """
        found = Tally()
        for number, piece in enumerate(self.pieces):
            path = self.path(number)
            if path.exists():
                tally = tally_of(self.form, path)
                if tally.records != len(piece):
                    raise Error(
                        f"{path} holds {tally.records:,} pictures where {len(piece):,} belong: "
                        "remove it, and it is made again"
                    )
                found += tally
        return found


def _lock(record: IO[bytes], folder: Path) -> None:
    try:
        fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Error(
            f"another process is writing this part of {folder}: wait for it, or give another --out"
        ) from None
    except OSError:  # a file system without locks; two processes then do the same work twice
        pass


def put_in_place(staged: Path, target: Path) -> None:
    """Sync a finished file and rename it over its target; on the disk when this returns."""
    with staged.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(staged, target)
    sync_folder(target.parent)
