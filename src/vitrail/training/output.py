"""The output folder: who may write into it, and what a run leaves there.

A folder belongs to one recipe on one data set. The same command again continues or, after the
end, does nothing; another command is refused with the settings that differ, so that no run is
ever overwritten or continued as something else by accident.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vitrail.data.fingerprint import Fingerprint
from vitrail.kit.errors import Error, listing
from vitrail.kit.files import remove_leftovers, write_text_whole
from vitrail.kit.records import Records
from vitrail.training.checkpoint import FOLDER
from vitrail.weights.read import BEST_FILE, MODEL_FILE

OURS = (
    "config.json",
    MODEL_FILE,
    BEST_FILE,
    "metrics.jsonl",
    "keys.jsonl",
    "report.html",
    "tensorboard",
    FOLDER,
)
# What may lie in a run's folder besides and is left alone: the runs that its rate was picked by.
BESIDE = ("rates",)


class Output:
    """The folder of one run.

    Args:
        path: the folder; made by `claim`.
        writes: whether this process is the one that writes; the others' records go nowhere.
    """

    def __init__(self, path: Path | str, writes: bool = True):
        self.path = Path(path)
        self.writes = writes
        records = Records if writes else _Nowhere
        self.metrics = records(self.path / "metrics.jsonl")
        self.keys = records(self.path / "keys.jsonl")

    def continues(
        self,
        settings: Mapping[str, Any],
        data: Mapping[str, Fingerprint],
        overwrite: bool = False,
        accept_other_data: bool = False,
    ) -> bool:
        """Whether a run with these settings (plain JSON values) on these data goes on here.

        With ``overwrite`` another run gives way, and so does this very one once it is finished;
        one that was interrupted goes on. Nothing is written, but for ``accept_other_data``, which
        takes changed data for the run's own from here on and records what changed.

        Raises:
            Error: the folder holds another run or other people's files, or is none.
        """
        if self.path.exists() and not self.path.is_dir():
            raise Error(f"{self.path} is a file; --out needs a folder")
        held = sorted(item.name for item in self.path.iterdir()) if self.path.exists() else []
        strangers = [
            name for name in held if name not in (*OURS, *BESIDE) and not name.startswith(".")
        ]
        if strangers:
            raise Error(
                f"{self.path} holds other files ({listing(strangers, 3)}); give an --out of its own"
            )
        if self._run_file.exists():
            try:
                self._refuse_other(settings, data, accept_other_data)
            except Error:
                if overwrite:
                    return False
                raise
            return not overwrite or self.finished() is None
        if overwrite or self._barely_begun(held):
            return False
        if any(name in OURS for name in held):
            raise Error(
                f"{self.path} holds a model that no run of this kind can continue; "
                "give another --out, or --overwrite to replace it"
            )
        return False

    def claim(self, settings: Mapping[str, Any], data: Mapping[str, Fingerprint]) -> None:
        """Empty the folder of an earlier run and take it for a new one; it is `locked`.

        Raises:
            Error: it cannot be made or written.
        """
        try:
            self._clear()
            (self.path / FOLDER).mkdir()
            for split, one in data.items():
                one.write(self._listing(split))
        except OSError as error:
            raise Error(f"{self.path} cannot be used as --out: {error.strerror}") from None
        self._write_run(settings, data, [])

    def _barely_begun(self, held: Iterable[str]) -> bool:
        """Whether a process was killed in `claim`, so that nothing of a run is there yet."""
        checkpoints = self.path / FOLDER
        alone = {name for name in held if name in OURS} == {FOLDER} and checkpoints.is_dir()
        return alone and not any(checkpoints.glob("step-*"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep other processes out of it, for as long as this one lives.

        The lock is on the folder itself and goes with the process, also with one that is killed.
        Of several processes of one run only the one that writes takes it.

        Raises:
            Error: another process is training here, or the folder cannot be made.
        """
        if not self.writes:
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise Error(f"{self.path} cannot be used as --out: {error.strerror}") from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Error(
                    f"another process is training in {self.path}; wait for it, "
                    "or give another --out"
                ) from None
            except OSError:
                pass  # a file system without locks
            yield
        finally:
            os.close(handle)

    def finished(self) -> dict[str, Any] | None:
        """The record of the end of the run, if it came to its end."""
        ends = list(self.metrics.read("done"))
        whole = all((self.path / name).exists() for name in ("config.json", MODEL_FILE))
        return ends[-1] if ends and whole else None

    def rewind(self, step: int, keep: tuple[str, ...] = ()) -> None:
        """Forget what was recorded after a step, because it is about to be done again.

        Args:
            step: the last one that stays.
            keep: kinds of records that stay whatever their step.
        """
        for records in (self.metrics, self.keys):
            records.rewind(lambda r: r.get("step", 0) <= step or r.get("kind") in keep)

    def ask_for(self, rank: int, accumulate: int) -> None:
        """Note for the next start that a process has no memory for fewer micro-batches a step."""
        with suppress(OSError):
            self._memory(rank).write_text(str(accumulate))

    def asked_for(self) -> int:
        """The most micro-batches that any process has asked for; 0 where none did."""
        found = [0]
        for path in (self.path / FOLDER).glob(self._memory("*").name):
            with suppress(OSError, ValueError):
                found.append(int(path.read_text()))
        return max(found)

    def _memory(self, rank: int | str) -> Path:
        return self.path / FOLDER / f"memory-{rank}"

    @property
    def _run_file(self) -> Path:
        return self.path / FOLDER / "run.json"

    def _listing(self, split: str) -> Path:
        return self.path / FOLDER / f"data-{split}.gz"

    def _refuse_other(
        self, settings: Mapping[str, Any], data: Mapping[str, Fingerprint], accept: bool
    ) -> None:
        try:
            before = json.loads(self._run_file.read_bytes())
            held_data, accepted = before.pop("data"), before.pop("accepted", [])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Error(f"{self._run_file} is damaged; start again with --overwrite") from None
        changes = differences(before, json.loads(json.dumps(settings)))
        what = "other settings"
        if not changes:
            what = "other data"
            for split in sorted({*held_data, *data}):
                if split not in data or split not in held_data:
                    changes.append(f"there {'is a' if split in data else 'is no'} {split} split")
                elif held_data[split] != data[split].to_json():
                    changes += [
                        f"in {split} {change}"
                        for change in Fingerprint.read(self._listing(split)).changes(data[split])
                    ]
        if changes and accept and what == "other data":
            self._accept(settings, data, [*accepted, changes])
        elif changes:
            way = ", --accept-other-data" if what == "other data" else ""
            raise Error(
                f"{self.path} holds a run with {what} ({listing(changes, 3)}); "
                f"repeat its command to continue it, give another --out{way}, or --overwrite"
            )

    def _accept(
        self,
        settings: Mapping[str, Any],
        data: Mapping[str, Fingerprint],
        accepted: list[list[str]],
    ) -> None:
        self._write_run(settings, data, accepted)
        for split, one in data.items():
            one.write(self._listing(split))
        self.metrics.write("data", changes=accepted[-1])

    def _write_run(
        self,
        settings: Mapping[str, Any],
        data: Mapping[str, Fingerprint],
        accepted: list[list[str]],
    ) -> None:
        """What the run is, and which changes of its data were accepted on the way."""
        body = {**settings, "data": {split: one.to_json() for split, one in data.items()}}
        body |= {"accepted": accepted} if accepted else {}
        write_text_whole(self._run_file, json.dumps(body, indent=1, sort_keys=True))

    def _clear(self) -> None:
        remove_leftovers(self.path)
        for name in OURS:
            item = self.path / name
            if item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink(missing_ok=True)


class _Nowhere(Records):
    """Records of a process that does not write."""

    def write(self, kind: str, **fields: Any) -> None:
        """Nothing."""

    def rewind(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Nothing."""


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two trees of JSON values, as phrases: ``optim.lr was 0.1 and is 1``."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            phrase
            for key in sorted({*before, *now})
            for phrase in differences(
                before.get(key), now.get(key), f"{name}.{key}" if name else str(key)
            )
        ]
    return [] if before == now else [f"{name} was {_short(before)} and is {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
