"""Checkpoints that survive anything: whole, hashed, two deep.

A checkpoint is `step-00000500.safetensors` (every tensor of the run) and, written after it,
`step-00000500.json` (everything else, the tensors' SHA-256, and its own). It exists once the
second file does; either file damaged by one bit, and the one before is used.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, optim

from vitrail.kit.errors import Error
from vitrail.kit.files import remove_leftovers, sha256_of, write_text_whole, write_whole

FOLDER = "checkpoints"


@dataclass
class Checkpoint:
    """What a run needs to go on as if nothing had happened.

    Args:
        step: steps done.
        tensors: by name; weights, averages and the optimiser's state.
        state: plain JSON values.
    """

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run's folder.

    Args:
        out: the run's folder.
        keep: how many of the newest to keep.
    """

    def __init__(self, out: Path, keep: int = 2):
        self.folder = out / FOLDER
        self.keep = keep

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then remove the oldest ones.

        Raises:
            Error: no space or no permission; the checkpoints before it are as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._tensors(checkpoint.step)
        tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
        needed = sum(tensor.nbytes for tensor in tensors.values())
        write_whole(path, lambda staged: save_file(tensors, staged), needed)
        body = {"step": checkpoint.step, "sha256": sha256_of(path), "state": checkpoint.state}
        write_text_whole(self._manifest(checkpoint.step), json.dumps({**body, "self": _hash(body)}))
        for step in self.steps()[: -self.keep]:
            # The manifest goes first: without it the tensors are no checkpoint. A folder that
            # cannot be tidied is no reason to stop training.
            with contextlib.suppress(OSError):
                self._manifest(step).unlink()
                self._tensors(step).unlink()

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and a sentence for each newer one that is not.

        Raises:
            Error: there are checkpoints, and every one is damaged.
        """
        if not self.folder.is_dir():
            return None, []
        remove_leftovers(self.folder)
        damaged = []
        for step in reversed(self.steps()):
            try:
                return self._load(step), damaged
            except Error as error:
                damaged.append(str(error))
        if damaged:
            raise Error(
                f"no checkpoint in {self.folder} is whole ({damaged[0]}); "
                "start again with --overwrite"
            )
        return None, []

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in ascending order."""
        names = (path.stem.removeprefix("step-") for path in self.folder.glob("step-*.json"))
        return sorted(int(name) for name in names if name.isdigit())

    def _load(self, step: int) -> Checkpoint:
        manifest, path = self._manifest(step), self._tensors(step)
        try:
            body = json.loads(manifest.read_bytes())
            stated = body.pop("self")
            if stated != _hash(body) or body["step"] != step:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            raise Error(f"{manifest} is damaged") from None
        if not path.exists():
            raise Error(f"{path} is missing")
        if sha256_of(path) != body["sha256"]:
            raise Error(f"{path} is damaged: its SHA-256 is not the one in {manifest.name}")
        return Checkpoint(step, load_file(path), body["state"])

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
