"""A study's folder, which several processes on several machines share.

    study.json        the definition, its hash, and which data it is on
    records/ID.json   one finished run each; linked into place, so it is there once and whole
    records.jsonl     the same, composed in the definition's order
    claims/ID.N       who is at work on a run: the N-th that took it up
    runs/ID/          the run's own folder, as `vitrail train` leaves it

A claim is made by creating a file that must not be there yet, which file systems do atomically, on
the network too. Its holder touches it every few seconds. One whose holder has died is taken over by
creating the next number: that can only succeed for one process, and nothing is ever removed, so
there is no moment at which two could believe that a run is theirs. A holder that was only asleep
finds a higher number when it wakes, and leaves the run to the other.

A holder on this machine counts as dead once its process is gone, and not before; one elsewhere,
when its claim has not been touched for `STALE` seconds by the clock of the folder's file system.
"""

import contextlib
import functools
import json
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.kit.errors import Error, listing
from vitrail.kit.files import sync_folder
from vitrail.studies.definition import Definition, Record, from_json
from vitrail.training.output import differences

BEAT = 5.0  # seconds between two touches of a claim
STALE = 120.0
RECORDS = "records.jsonl"


@dataclass(frozen=True)
class Claim:
    """A run that this process has taken up."""

    folder: "StudyFolder"
    id: str
    number: int

    @property
    def path(self) -> Path:
        """The claim's file."""
        return self.folder.claims / f"{self.id}.{self.number}"

    def holds(self) -> bool:
        """Whether nobody has taken the run over."""
        return self.folder.newest_claim(self.id) == self.number

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Touch the claim every few seconds meanwhile.

        Where the run has been taken over, because this process slept for long, it is interrupted
        as by Ctrl-C: two must not write into one run's folder.
        """
        end = threading.Event()

        def beat() -> None:
            while not end.wait(BEAT):
                with contextlib.suppress(OSError):
                    os.utime(self.path)
                    if not self.holds():
                        os.kill(os.getpid(), signal.SIGINT)
                        return

        thread = threading.Thread(target=beat, daemon=True, name="claim")
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def release(self) -> None:
        """Say that the run is free again: it was not finished."""
        replace_whole(self.path, json.dumps({"free": True}))


class StudyFolder:
    """A study's folder.

    Args:
        path: the folder; made by `open`.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.claims, self.runs = self.path / "claims", self.path / "runs"
        self.parts = self.path / "records"

    def definition(self) -> Definition:
        """What the study is.

        Raises:
            Error: there is none, or it cannot be read.
        """
        try:
            return from_json(self._read()["definition"])
        except (KeyError, TypeError):
            raise Error(
                f"{self.path / 'study.json'} is of no study that this version knows: give another "
                "--out"
            ) from None

    def held(self) -> bool:
        """Whether the folder holds a study."""
        return (self.path / "study.json").exists()

    def open(self, definition: Definition, data: Mapping[str, Any]) -> None:
        """Take the folder for a study, or go on with this very one.

        Args:
            data: what tells the data from others, plain JSON values.

        Raises:
            Error: the folder holds another study or something else, or cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise Error(f"{self.path} is a file; --out needs a folder")
        names = _strangers(self.path) if self.path.exists() else []
        # Asked after the look: the study is there before anything else of it (below).
        if names and not self.held():
            raise Error(
                f"{self.path} holds other files ({listing(names, 3)}) and no study: give an --out "
                "of its own"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.held():
                body = {"sha256": definition.sha256, "data": data}
                body["definition"] = definition.to_json()
                _link_whole(self.path / "study.json", json.dumps(body, indent=1))
            self._refuse_other(definition, data)  # another process may have been quicker
            for folder in (self.claims, self.runs, self.parts):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise Error(f"{self.path} cannot be used as --out: {error.strerror}") from None

    def records(self) -> list[Record]:
        """The finished runs, in the definition's order.

        Raises:
            Error: a record that cannot be read.
        """
        found = {}
        for path in sorted(self.parts.glob("*.json")):
            try:
                record = json.loads(path.read_bytes())
                found[record["id"]] = record
            except (ValueError, KeyError, TypeError):
                raise Error(
                    f"{path} is no record of a run: remove it, and the study does that run again"
                ) from None
        order = [point.id for point in self.definition().points]
        return [found[id] for id in order if id in found]

    def recorded(self) -> set[str]:
        """The ids of the finished runs."""
        return {path.stem for path in self.parts.glob("*.json")}

    def record(self, id: str) -> Record:
        """The record of one finished run."""
        return json.loads((self.parts / f"{id}.json").read_bytes())

    def write(self, record: Record) -> bool:
        """Put a run's record in its place, on the disk when this returns; False: it has one."""
        return _link_whole(self.parts / f"{record['id']}.json", json.dumps(record))

    def compose(self) -> list[Record]:
        """Write `records.jsonl` from the parts, and return them."""
        records = self.records()
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        replace_whole(self.path / RECORDS, lines)
        return records

    def claim(self, id: str) -> Claim | None:
        """Take a run up; None where somebody else is at it."""
        number = self.newest_claim(id)
        if number and self._alive(self.claims / f"{id}.{number}"):
            return None
        claim = Claim(self, id, number + 1)
        return claim if _link_whole(claim.path, json.dumps(_self())) else None

    def newest_claim(self, id: str) -> int:
        """The number of the newest claim on a run; 0 where there is none."""
        found = (path.name.removeprefix(f"{id}.") for path in self.claims.glob(f"{id}.*"))
        return max((int(number) for number in found if number.isdigit()), default=0)

    def _alive(self, path: Path) -> bool:
        """Whether a claim's holder is still at work."""
        try:
            held, touched = json.loads(path.read_bytes()), path.stat().st_mtime
        except (OSError, ValueError):
            return False
        if held.get("free"):
            return False
        mine = _self()
        if held.get("machine") == mine["machine"]:
            started = _started(held.get("pid", 0))
            return started is not None and started == held.get("started")
        return self._now() - touched < STALE

    def _now(self) -> float:
        """The time by the file system's clock, which claims are touched by."""
        path = self.claims / f".now-{secrets.token_hex(8)}"
        try:
            path.touch()
            return path.stat().st_mtime
        except OSError:
            return time.time()
        finally:
            path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        path = self.path / "study.json"
        try:
            return json.loads(path.read_bytes())
        except OSError:
            raise Error(f"{self.path} holds no study: there is no study.json in it") from None
        except ValueError:
            raise Error(f"{path} is damaged: give another --out") from None

    def _refuse_other(self, definition: Definition, data: Mapping[str, Any]) -> None:
        before, what = self._read(), "another study"
        held = self.definition()  # with what later versions have added at its default
        if before.get("data") != (now := json.loads(json.dumps(data))):
            changes, what = differences(before.get("data"), now), "a study on other data"
        elif held.sha256 != definition.sha256:
            changes = _changes(held.to_json(), definition.to_json())
        else:
            return
        raise Error(
            f"{self.path} holds {what} ({listing(changes, 3)}): repeat its command to go on with "
            "it, or give another --out"
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two definitions: which runs there are, else what of them."""
    old, new = ({p["id"]: p for p in one.get("points", [])} for one in (before, now))
    changes = differences(
        {key: value for key, value in before.items() if key not in ("points", "facts")},
        {key: value for key, value in now.items() if key not in ("points", "facts")},
    )
    for what, names in (("more", new.keys() - old.keys()), ("fewer", old.keys() - new.keys())):
        if names:
            ordered = [id for id in (*new, *old) if id in names]
            plural = "s" if len(ordered) > 1 else ""
            changes.append(f"{len(ordered)} run{plural} {what}, {ordered[0]} for instance")
    for id in old.keys() & new.keys():
        changes += [f"in {id} {phrase}" for phrase in differences(old[id], new[id])][:1]
    return changes or differences(before.get("facts"), now.get("facts")) or ["in its order"]


def replace_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, whoever else is writing it. Synced."""
    _settle(path, text, os.replace)


def _link_whole(path: Path, text: str) -> bool:
    """Put a whole file where there must be none yet; False: there is one. Synced."""
    try:
        _settle(path, text, os.link)
    except FileExistsError:
        return False
    return True


def _settle(path: Path, text: str, put: Callable[[Path, Path], None]) -> None:
    # Staged under a name of its own: several processes write into this folder at a time.
    staged = path.parent / f".{path.name}-{secrets.token_hex(8)}"
    try:
        with staged.open("wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        put(staged, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise Error(f"{path} cannot be written: {error.strerror}") from error
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(path.parent)


@functools.cache
def _self() -> dict[str, Any]:
    """Who this process is."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return {
        "machine": f"{socket.gethostname()} {boot} {space}".strip(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _started(pid: int) -> str | None:
    """When a process of this machine began, which tells it from a later one of its number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if Path("/proc/self").exists():
            return None
        try:  # a system without /proc
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return "running"
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _strangers(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if not item.name.startswith("."))


def safe_id(*parts: Any) -> str:
    """An id for a run from what it is, fit for a folder's name."""
    words = [re.sub(r"[^A-Za-z0-9.+-]+", "_", str(part)).strip("_") for part in parts]
    return "-".join(word for word in words if word)
