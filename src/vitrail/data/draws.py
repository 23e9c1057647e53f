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
    BALANCE = 6
    NEARBY = 7
    WINDOW = 8


def _philox(
    seed: int, purpose: Purpose, epoch: int, index: int, repeat: int = 0
) -> np.random.Philox:
    # The first counter word counts the blocks drawn; the other three name the stream. A repeat is
    # further down the stream than any sample draws: 2**40 blocks of four words.
    counter = [repeat << 40, index, epoch, int(purpose)]
    return np.random.Philox(key=seed % _WORD, counter=counter)


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The global order of an epoch: a permutation of 0..n-1, int64 [n].

    The same for every version of numpy, number of workers and number of processes.
    """
    words = _philox(seed, Purpose.ORDER, epoch, 0).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def balanced_order(seed: int, epoch: int, labels: np.ndarray) -> np.ndarray:
    """An epoch of n samples in which every class is equally frequent, int64 [n].

    Each class that occurs gets n // k places, the rest of n goes to as many classes, drawn anew
    in each epoch. A class fills its places with its samples in a random order, again and again: so
    within an epoch the samples of a class differ in use by one at most, those of a small class
    come several times, and of a large one a part is used. Then all places are shuffled.

    Args:
        seed: of the run.
        epoch: whose order.
        labels: int64 [n], one a sample.
    """
    n, kinds = len(labels), np.unique(labels)
    words = _philox(seed, Purpose.BALANCE, epoch, 0)
    places = np.full(len(kinds), n // max(1, len(kinds)))
    places[np.argsort(words.random_raw(len(kinds)), kind="stable")[: n - places.sum()]] += 1
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)[kinds]
    picked, start = [np.empty(0, np.int64)], 0
    for count, wanted in zip(counts.tolist(), places.tolist(), strict=True):
        members, start = by_class[start : start + count], start + count
        rounds = -(-wanted // count)
        ranks = words.random_raw(rounds * count).reshape(rounds, count)
        picked.append(members[np.argsort(ranks, axis=1, kind="stable").reshape(-1)[:wanted]])
    return np.concatenate(picked)[order(seed, epoch, n)]


def nearby_order(seed: int, epoch: int, runs: np.ndarray, window: int) -> np.ndarray:
    """An order of an epoch that reads what lies together together: a permutation, int64 [n].

    Runs of samples (a shard, a row group) follow each other in a random order, each as it lies;
    that sequence is cut into windows, and each window is shuffled. So a sample moves within its
    window, and at any time a reader needs the runs of one window alone.

    Args:
        seed: of the run.
        epoch: whose order.
        runs: int64 [n], the number of the run of each sample; a run's samples lie together.
        window: how many samples are shuffled together.
    """
    n = len(runs)
    starts = np.flatnonzero(np.r_[True, runs[1:] != runs[:-1]][:n])
    lengths = np.diff(np.r_[starts, n])
    words = _philox(seed, Purpose.NEARBY, epoch, 0)
    turn = np.argsort(words.random_raw(len(starts)), kind="stable")
    ends = np.cumsum(lengths[turn])
    sequence = np.arange(n) + np.repeat(starts[turn] - (ends - lengths[turn]), lengths[turn])
    return sequence[np.lexsort((words.random_raw(n), np.arange(n) // window))]


def window_order(seed: int, epoch: int, window: int, n: int) -> np.ndarray:
    """The order within the ``window``-th window of a stream: a permutation of 0..n-1, int64 [n]."""
    words = _philox(seed, Purpose.WINDOW, epoch, window).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def occurrences(indices: np.ndarray) -> np.ndarray:
    """How often each of these indices came before it, int64 [n]: 0 at its first place."""
    by_index = np.argsort(indices, kind="stable")
    ordered = indices[by_index]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    within = np.arange(len(indices)) - np.repeat(first, np.diff(np.r_[first, len(indices)]))
    counted = np.empty(len(indices), np.int64)
    counted[by_index] = within
    return counted


def sample_generator(seed: int, epoch: int, index: int, repeat: int = 0) -> np.random.Generator:
    """The generator of one sample's augmentation at its ``repeat``-th use in one epoch."""
    return np.random.Generator(_philox(seed, Purpose.SAMPLE, epoch, index, repeat))


def mix_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The generator of one global batch's mixing; ``position`` is its first place in the epoch."""
    return np.random.Generator(_philox(seed, Purpose.MIX, epoch, position))


def drop_path_draws(
    seed: int,
    epochs: Iterable[int],
    indices: Iterable[int],
    sites: int,
    repeats: Iterable[int] | None = None,
) -> np.ndarray:
    """What stochastic depth draws for each sample at each of its sites, float32 [b sites], 0..1.

    Args:
        seed: of the run.
        epochs, indices: of the b samples; arrays and tensors will do.
        sites: how many places of the model may drop a sample.
        repeats: how often each came before in its epoch (`Batch.repeats`); None: never.
    """
    return _rows(seed, Purpose.DROP_PATH, epochs, indices, sites, repeats)


def mask_draws(
    seed: int,
    epochs: Iterable[int],
    indices: Iterable[int],
    count: int,
    repeats: Iterable[int] | None = None,
) -> np.ndarray:
    """What a masked objective draws for each sample, float32 [b count], 0..1.

    Args:
        seed, epochs, indices, repeats: as of `drop_path_draws`.
        count: how many numbers a sample needs.
    """
    return _rows(seed, Purpose.MASK, epochs, indices, count, repeats)


def _rows(
    seed: int,
    purpose: Purpose,
    epochs: Iterable[int],
    indices: Iterable[int],
    count: int,
    repeats: Iterable[int] | None,
) -> np.ndarray:
    """Float32 [b count], each row from the stream of its sample."""
    places = list(zip(epochs, indices, strict=True))
    again = [0] * len(places) if repeats is None else list(repeats)
    rows = [
        np.random.Generator(_philox(seed, purpose, int(epoch), int(i), int(repeat))).random(count)
        for (epoch, i), repeat in zip(places, again, strict=True)
    ]
    return np.array(rows, np.float32).reshape(len(rows), count)
