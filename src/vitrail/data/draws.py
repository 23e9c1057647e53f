"""Draws: every random number of the data layer, as a pure function of (seed, epoch, index).

Philox is a counter: any place of its stream is reached at once. So the order of an epoch and the
augmentation of a sample do not depend on what was drawn before, on the number of workers or on
where a run was resumed. Nothing here uses a distribution of numpy whose stream may change between
versions: the order is a stable sort of raw 64-bit words.
"""

from collections.abc import Iterable
from enum import IntEnum

import numpy as np

_WORD = 2**64


class Purpose(IntEnum):
    """What numbers are drawn for; each purpose has a stream of its own."""

    ORDER = 1
    SAMPLE = 2
    MIX = 3
    DROP_PATH = 4
    MASK = 5


def _philox(seed: int, purpose: Purpose, epoch: int, index: int) -> np.random.Philox:
    # The first counter word counts the blocks drawn; the other three name the stream.
    return np.random.Philox(key=seed % _WORD, counter=[0, index, epoch, int(purpose)])


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The global order of an epoch: a permutation of 0..n-1, int64 [n].

    The same for every version of numpy, number of workers and number of processes.
    """
    words = _philox(seed, Purpose.ORDER, epoch, 0).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample's augmentation in one epoch."""
    return np.random.Generator(_philox(seed, Purpose.SAMPLE, epoch, index))


def mix_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The generator of one global batch's mixing; ``position`` is its first place in the epoch."""
    return np.random.Generator(_philox(seed, Purpose.MIX, epoch, position))


def drop_path_draws(
    seed: int, epochs: Iterable[int], indices: Iterable[int], sites: int
) -> np.ndarray:
    """What stochastic depth draws for each sample at each of its sites, float32 [b sites], 0..1.

    Args:
        seed: of the run.
        epochs, indices: of the b samples; arrays and tensors will do.
        sites: how many places of the model may drop a sample.
    """
    return _rows(seed, Purpose.DROP_PATH, epochs, indices, sites)


def mask_draws(seed: int, epochs: Iterable[int], indices: Iterable[int], count: int) -> np.ndarray:
    """What a masked objective draws for each sample, float32 [b count], 0..1.

    Args:
        seed, epochs, indices: as of `drop_path_draws`.
        count: how many numbers a sample needs.
    """
    return _rows(seed, Purpose.MASK, epochs, indices, count)


def _rows(
    seed: int, purpose: Purpose, epochs: Iterable[int], indices: Iterable[int], count: int
) -> np.ndarray:
    rows = [
        np.random.Generator(_philox(seed, purpose, int(epoch), int(i))).random(count)
        for epoch, i in zip(epochs, indices, strict=True)
    ]
    return np.array(rows, np.float32).reshape(len(rows), count)
