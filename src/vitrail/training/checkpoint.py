"""Checkpoints that survive anything: whole, hashed, two deep.

A checkpoint is `step-00000500.safetensors` (every tensor of the run) and, written after it,
`step-00000500.json` (everything else, the tensors' SHA-256, and its own). It exists once the
second file does; either file damaged by one bit, and the one before is used.

Where the tensors are shared out over processes, a folder `step-00000500` takes the place of the
first file: torch's distributed checkpoint, written by all processes, renamed and hashed as a
whole by the first. Both kinds are read by any number of processes. Such a folder is for one's own
files only: its index is a pickle.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, optim

from vitrail.kit.errors import Error
from vitrail.kit.files import (
    remove_leftovers,
    sha256_of,
    staging,
    sync_folder,
    write_text_whole,
    write_whole,
)
from vitrail.training.engine import Engine

FOLDER = "checkpoints"
SHARES = ".sharing"  # where a folder of shares grows


@dataclass
class Checkpoint:
    """What a run needs to go on as if nothing had happened.

    Args:
        step: steps done.
        tensors: by name; weights, averages and the optimiser's state.
        state: plain JSON values.
        shares: in place of ``tensors``, the folder of a distributed checkpoint to read.
    """

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    shares: Path | None = None


class Checkpoints:
    """The checkpoints of one run's folder.

    Args:
        out: the run's folder; with several processes, one that all of them see.
        keep: how many of the newest to keep.
        engine: with several processes, theirs.
    """

    def __init__(self, out: Path, keep: int = 2, engine: Engine | None = None):
        self.folder = out / FOLDER
        self.keep = keep
        self.engine = engine

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then remove the oldest ones; every process calls this.

        Raises:
            Error: no space or no permission; the checkpoints before it are as they were.
        """
        hashes: dict[str, Any] = {}
        if self.engine is not None and self.engine.sharded:
            hashes = {"files": self._write_shares(checkpoint, self.engine)}
        if self.engine is not None and not self.engine.first:
            return
        hashes = hashes or {"sha256": self._write(checkpoint)}
        body = {"step": checkpoint.step, **hashes, "state": checkpoint.state}
        write_text_whole(self._manifest(checkpoint.step), json.dumps({**body, "self": _hash(body)}))
        for step in self.steps()[: -self.keep]:
            # The manifest goes first: without it the tensors are no checkpoint. A folder that
            # cannot be tidied is no reason to stop training.
            with contextlib.suppress(OSError):
                self._manifest(step).unlink()
                self._tensors(step).unlink(missing_ok=True)
                shutil.rmtree(self._shares(step), ignore_errors=True)

    def _write(self, checkpoint: Checkpoint) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._tensors(checkpoint.step)
        tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
        needed = sum(tensor.nbytes for tensor in tensors.values())
        write_whole(path, lambda staged: save_file(tensors, staged), needed)
        return sha256_of(path)

    def _write_shares(self, checkpoint: Checkpoint, engine: Engine) -> dict[str, str]:
        needed = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        target = self._shares(checkpoint.step)
        grown = self.folder / SHARES

        def prepare() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with staging(self.folder):  # says in a sentence where the folder cannot be written
                shutil.rmtree(grown, ignore_errors=True)
                shutil.rmtree(target, ignore_errors=True)  # without a manifest, or it was damaged
                grown.mkdir()

        engine.agree(prepare)
        try:
            hashes = engine.save_shares(checkpoint.tensors, grown)
        except Exception as error:
            if engine.first:
                shutil.rmtree(grown, ignore_errors=True)
            with staging(self.folder, needed):  # its sentences are for this error too
                raise error

        def settle() -> None:
            sync_folder(grown)
            os.rename(grown, target)
            sync_folder(self.folder)

        engine.agree(settle)
        return hashes

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and a sentence for each newer one that is not.

        The first process looks and checks the hashes; the others open what it found.

        Raises:
            Error: there are checkpoints, and every one is damaged.
        """
        look = self._newest
        step, damaged = look() if self.engine is None else self.engine.agree(look)
        return (None if step is None else self._load(step)), damaged

    def _newest(self) -> tuple[int | None, list[str]]:
        if not self.folder.is_dir():
            return None, []
        remove_leftovers(self.folder)
        shutil.rmtree(self.folder / SHARES, ignore_errors=True)
        self._remove_strays()
        damaged = []
        for step in reversed(self.steps()):
            try:
                self._check(step)
                return step, damaged
            except Error as error:
                damaged.append(str(error))
        if damaged:
            raise Error(
                f"no checkpoint in {self.folder} is whole ({damaged[0]}); "
                "start again with --overwrite"
            )
        return None, []

    def _remove_strays(self) -> None:
        """Remove tensors whose manifest is gone or never came: a kill between the two."""
        known = set(self.steps())
        for path in self.folder.glob("step-*"):
            number = path.stem.removeprefix("step-")
            if path.suffix != ".json" and number.isdigit() and int(number) not in known:
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in ascending order."""
        names = (path.stem.removeprefix("step-") for path in self.folder.glob("step-*.json"))
        return sorted(int(name) for name in names if name.isdigit())

    def _check(self, step: int) -> dict[str, Any]:
        """A manifest whose files are whole.

        Raises:
            Error: one of them is not; it is named.
        """
        manifest, body = self._manifest(step), self._read(step)
        files = {self._tensors(step): body["sha256"]} if "sha256" in body else {}
        files |= {self._shares(step) / name: one for name, one in body.get("files", {}).items()}
        for path, expected in files.items():
            try:
                found = sha256_of(path)
            except OSError as error:
                raise Error(f"{path} cannot be read ({error.strerror})") from None
            if found != expected:
                raise Error(f"{path} is damaged: its SHA-256 is not the one in {manifest.name}")
        return body

    def _read(self, step: int) -> dict[str, Any]:
        manifest = self._manifest(step)
        try:
            body = json.loads(manifest.read_bytes())
            stated = body.pop("self")
            if stated != _hash(body) or body["step"] != step:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            raise Error(f"{manifest} is damaged") from None
        return body

    def _load(self, step: int) -> Checkpoint:
        body = self._read(step)
        if "files" in body:
            return Checkpoint(step, {}, body["state"], self._shares(step))
        return Checkpoint(step, load_file(self._tensors(step)), body["state"])

    def _shares(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _tensors(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"

    def _manifest(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.json"


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def optimizer_tensors(optimizer: optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: ``optimizer.{parameter}.{slot}``.

    Nothing else is needed: rates, decays and groups follow from the recipe.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{slot}": tensor
        for index, slots in state.items()
        for slot, tensor in slots.items()
        if isinstance(tensor, Tensor)
    }


def restore_optimizer(optimizer: optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; other names are passed over."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if head == "optimizer":
            index, slot = rest.split(".")
            state.setdefault(int(index), {})[slot] = tensor.clone()  # not the mapped file
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with ``prefix.`` before each name."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def unnamed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix.``, without it: the inverse of `named`."""
    start = len(prefix) + 1
    return {name[start:]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
