"""Nested subsets with as many pictures of every class: the smaller ones lie within the larger.

A subset is a function of the seed and of the pictures' keys alone: every class is put into an order
of its own by a hash of (seed, key), and a subset takes the first of each. So a picture more or less
in the data changes little of a subset, and the order of files on a disk nothing.
"""

import hashlib

import numpy as np

from vitrail.data.sources import Source
from vitrail.kit.errors import Error


def subset_rows(source: Source, images: int, seed: int) -> np.ndarray:
    """Which pictures a subset holds: int64 [images], ascending.

    Where the number is no multiple of the number of classes, the first classes of an order that
    the seed draws have one picture more. A class that has too few pictures gives all of them, and
    the others give more in its place.

    Args:
        source: with one label a picture.
        images: from 1 up to all.
        seed: another one draws other pictures.

    Raises:
        Error: more pictures than there are, fewer than classes, or several labels a picture.
    """
    if source.multi_label:
        raise Error(f"{source.name}: subsets with as many of every class take one label a picture")
    counts = source.counts()
    classes = np.flatnonzero(counts)
    if images > len(source):
        raise Error(
            f"a subset of {images:,} pictures was asked for, and {source.name} has "
            f"{len(source):,} to learn from, validation apart"
        )
    if images < len(classes):
        raise Error(
            f"a subset of {images:,} pictures cannot hold one of each of {len(classes)} classes"
        )
    takes = _takes(counts, images, seed)
    ranks = np.array([_rank(key, seed) for key in source.keys], np.uint64)
    order = np.lexsort((ranks, source.labels))
    starts = np.cumsum(counts) - counts
    rows = [order[start : start + take] for start, take in zip(starts, takes, strict=True)]
    return np.sort(np.concatenate(rows)).astype(np.int64)


def _takes(counts: np.ndarray, images: int, seed: int) -> np.ndarray:
    """How many pictures each class gives: filled evenly, so that more never means fewer of one."""
    level = 0
    while level < counts.max() and np.minimum(counts, level + 1).sum() <= images:
        level += 1
    takes = np.minimum(counts, level)
    left = images - takes.sum()
    draw = np.argsort([_rank(str(k), seed) for k in range(len(counts))], kind="stable")
    more = [k for k in draw if counts[k] > level][:left]
    takes[more] += 1
    return takes


def _rank(key: str, seed: int) -> int:
    text = f"subset\0{seed}\0{key}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
