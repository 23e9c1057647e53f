"""Which examples: VTAB's slices of the order in which TensorFlow Datasets writes a split.

A split is written in the order of the md5 of (name of the split, key of the example)
(tensorflow_datasets/core/hashing.py, writer.py); ``train[:800]`` are its first 800. So the key that
a data set's builder gives to an example decides, and nothing that needs TensorFlow.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from vitrail.kit.errors import Error

_SLICE = re.compile(r"(?P<split>\w+)(\[(?P<low>\d+%?)?:((?P<plus>\+)?(?P<high>\d+%?))?\])?")


def published_order(keys: Sequence[str], split: str) -> np.ndarray:
    """The order of a split's examples, int64 [n]: places in ``keys``.

    Args:
        keys: of the examples, as the data set's builder names them.
        split: its name, which salts the hash.
    """
    start = hashlib.md5(split.encode(), usedforsecurity=False)
    hashes = []
    for key in keys:
        one = start.copy()
        one.update(key.encode())
        hashes.append(one.digest())
    return np.array(sorted(range(len(keys)), key=hashes.__getitem__), np.int64)


def split_of(spec: str) -> str:
    """The name of the split that a slice is of: ``train`` for ``train[90%:+200]``."""
    return _parsed(spec)["split"]


def cut(spec: str, order: np.ndarray) -> np.ndarray:
    """The part of an order that a slice names.

    Args:
        spec: ``test``, ``train[:800]``, ``train[80%:]``, or ``train[90%:+200]`` for the 200 after
            the first 90 %. Percentages are floored, as task_adaptation does.
        order: int64 [n].

    Raises:
        Error: the split has too few examples for it.
    """
    parts, n = _parsed(spec), len(order)
    low = _place(parts["low"] or "0", n)
    high = n if parts["high"] is None else _place(parts["high"], n)
    if parts["plus"]:
        high += low
    if high > n or low >= high:
        raise Error(f"{spec} needs more than the {n:,} examples that there are")
    return order[low:high]


def _parsed(spec: str) -> dict[str, str]:
    found = _SLICE.fullmatch(spec)
    if found is None:
        raise ValueError(f"no slice of a split: {spec}")
    return found.groupdict()


def _place(text: str, n: int) -> int:
    return int(text[:-1]) * n // 100 if text.endswith("%") else int(text)
