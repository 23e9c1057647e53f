"""The output folder: who may write into it, and what a run leaves there.

A folder belongs to one recipe on one data set. The same command again continues or, after the
end, does nothing; another command is refused with the settings that differ, so that no run is
ever overwritten or continued as something else by accident.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.metrics = Records(self.path / "metrics.jsonl")
        self.keys = Records(self.path / "keys.jsonl")

    def continues(
        self,
        settings: Mapping[str, Any],
        data: Mapping[str, Fingerprint],
        overwrite: bool = False,
    ) -> bool:
        """Whether a run with these settings (plain JSON values) on these data goes on here.

        Nothing is written. With ``overwrite`` another run gives way, and so does this very one
        once it is finished; one that was interrupted goes on.

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
                self._refuse_other(settings, data)
            except Error:
                if overwrite:
                    return False
                raise
            return not overwrite or self.finished() is None
        if overwrite:
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
        settings = {**settings, "data": {split: one.to_json() for split, one in data.items()}}
        write_text_whole(self._run_file, json.dumps(settings, indent=1, sort_keys=True))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep other processes out of it, for as long as this one lives.

        The lock is on the folder itself and goes with the process, also with one that is killed.

        Raises:
            Error: another process is training here, or the folder cannot be made.
        """
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

    def rewind(self, step: int) -> None:
        """Forget what was recorded after a step, because it is about to be done again."""
        for records in (self.metrics, self.keys):
            records.rewind(lambda record: record.get("step", 0) <= step)

    @property
    def _run_file(self) -> Path:
        return self.path / FOLDER / "run.json"

    def _listing(self, split: str) -> Path:
        return self.path / FOLDER / f"data-{split}.gz"

    def _refuse_other(self, settings: Mapping[str, Any], data: Mapping[str, Fingerprint]) -> None:
        try:
            before = json.loads(self._run_file.read_bytes())
            held_data = before.pop("data")
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
        if changes:
            raise Error(
                f"{self.path} holds a run with {what} ({listing(changes, 3)}); "
                "repeat its command to continue it, give another --out, or --overwrite"
            )

    def _clear(self) -> None:
        remove_leftovers(self.path)
        for name in OURS:
            item = self.path / name
            if item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink(missing_ok=True)


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
