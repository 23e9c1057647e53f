"""What is inside of a checkpoint, once the wrappers of trainers and compilers are off."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.kit.errors import Error, WeightsError, listing

KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")
PREFIXES = ("module.", "_orig_mod.", "model.", "teacher.", "backbone.")


@dataclass
class Checkpoint:
    """Tensors and what is known about them.

    Attributes:
        name: the file or folder, for messages.
        tensors: by the file's names, wrappers taken off.
        wrappers: the keys and prefixes that were taken off, outermost first.
        unread: other things in the file, by name.
        about: the ``vitrail`` section of a model folder or file: family, config, preprocessing,
            labels.
        timm: what timm's or transformers' `config.json` beside the weights says (their
            `read_config`).
        live: tensors handed over in memory, which no publisher stands behind.
    """

    name: str
    tensors: dict[str, Tensor]
    wrappers: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    timm: dict[str, Any] = field(default_factory=dict)
    live: bool = False


def unwrapped(checkpoint: Checkpoint, content: Mapping[str, Any]) -> Checkpoint:
    """Take off what trainers and wrappers put around a state dict, and say so."""
    while not any(isinstance(value, (Tensor, np.ndarray)) for value in content.values()):
        key = next((k for k in KEYS if isinstance(content.get(k), Mapping) and content[k]), None)
        if key is None:
            raise WeightsError(
                f"{checkpoint.name} holds no tensors"
                + (f", only {listing([str(name) for name in content])}" if content else "")
            )
        checkpoint.wrappers.append(key)
        checkpoint.unread += [str(name) for name in content if name != key]
        content = content[key]
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(value, np.ndarray):
            value = to_tensor(value, f"{checkpoint.name}: {key}")
        if not isinstance(value, Tensor):
            checkpoint.unread.append(str(key))
        elif _is_ordinary(value, checkpoint.live):
            tensors[str(key)] = value
        else:
            raise WeightsError(
                f"{checkpoint.name}: {key} is not an ordinary tensor with all of its values",
                mismatched=[str(key)],
            )
    while prefix := next((p for p in PREFIXES if _all_behind(p, tensors)), None):
        checkpoint.wrappers.append(prefix)
        checkpoint.unread += [name for name in tensors if name.startswith("student.")]
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if not name.startswith("student.")
        }
    checkpoint.tensors = tensors
    return checkpoint


def _is_ordinary(tensor: Tensor, live: bool) -> bool:
    """Whether a tensor has values of its own: not sparse, not quantized, not on `meta`.

    A file can also declare a tensor that repeats a few stored values without end.
    """
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        return False
    return live or tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()


def _all_behind(prefix: str, names: Mapping[str, Tensor]) -> bool:
    """Whether a prefix is a wrapper: on every name, but for what may stand beside it."""
    behind = {name for name in names if name.startswith(prefix)}
    beside = set(names) - behind
    if prefix == "teacher.":  # self-distillation saves both
        beside = {name for name in beside if not name.startswith("student.")}
    if prefix == "backbone.":  # the head stands outside of it
        beside &= {name.removeprefix(prefix) for name in behind}
    return bool(behind) and not beside


def to_tensor(array: np.ndarray, where: str) -> Tensor:
    """A numpy array as a tensor of its own memory, bfloat16 included.

    Raises:
        Error: it does not hold numbers.
    """
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bfloat16, as numpy keeps it
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype.kind not in "fiub":
        raise Error(f"{where} holds {array.dtype}, not numbers")
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
    return torch.from_numpy(native)
