"""Loader: batches of uint8 pictures, in an order that is a function and not a state.

Training is one endless stream of samples: position p is place p % n of epoch p // n, in that
epoch's order. So the only state is the number of samples consumed; a batch may reach over the end
of an epoch, every sample is used once in every epoch, and no batch size leaves a rest. With worker
processes each batch is made whole by one of them, from the same functions: the batches are the
same whatever the number of workers.
"""

import ctypes
import functools
import itertools
import os
import signal
import sys
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitrail.data.decode import MAX_PIXELS, decode, read_size
from vitrail.data.draws import order, sample_generator
from vitrail.data.examples import Source
from vitrail.data.transforms import Augment, needed_size
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import Preprocessing

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

__all__ = ["Batch", "eval_batches", "order", "shares", "train_batches"]


@dataclass(frozen=True)
class Batch:
    """Pictures that are ready for `Preprocessing.normalize`.

    Attributes:
        images: uint8 [b h w c].
        labels: int64 [b].
        keys: b names.
        indices: int64 [b], places in the source.
        skipped: (key, reason) of the samples of this batch that cannot be decoded. They are not in
            the fields above, so b is smaller then; it may be 0.
        epochs: int64 [b], the epoch of each sample; zeros in evaluation.
        epoch, position: where the global batch begins: place ``position`` of that epoch's order.
        before: where it was asked for, the picture before the first one in the global batch, uint8
            [1 h w c], and its label, int64 [1]; the first of all has the last of all before it.
            None where no other process has a picture of this batch.
    """

    images: Tensor
    labels: Tensor
    keys: list[str]
    indices: Tensor
    skipped: list[tuple[str, str]] = field(default_factory=list)
    epochs: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    epoch: int = 0
    position: int = 0
    before: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class _Request:
    """One batch to be made: places in the source, each with its epoch.

    `epoch` and `position` are where the global batch begins. `before` are the samples of other
    processes, the nearest before this share first: one of them is made too, the first that can be
    read.
    """

    epochs: np.ndarray
    indices: np.ndarray
    epoch: int
    position: int
    before: list[tuple[int, int]] = field(default_factory=list)


def train_batches(
    source: Source,
    preprocessing: Preprocessing,
    augment: Augment | None,
    batch_size: int,
    *,
    seed: int = 0,
    start_sample: int = 0,
    stop_sample: int | None = None,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    rank: int = 0,
    world: int = 1,
    before: bool = False,
) -> Generator[Batch, None, None]:
    """The training stream, from any place on; what it costs to start does not depend on the place.

    Close it (or let it go) to end its workers.

    Args:
        source: the examples.
        preprocessing: gives the size of the pictures.
        augment: what is done to each picture; None: nothing.
        batch_size: samples a batch.
        seed: of the order and of every draw.
        start_sample: samples consumed before; n of them are an epoch.
        stop_sample: where the stream ends, with a smaller batch if need be; None: never.
        workers: processes that decode; 0: this one does.
        max_pixels: see `decode`.
        rank, world: of how many processes that share out each batch this is which; it makes its
            own rows only. ``batch_size``, ``start_sample`` and ``stop_sample`` count all rows.
        before: whether to make `Batch.before` too, of several processes, for mixing.

    Raises:
        Error: the source is empty, or the batch size is none.
    """
    _demand(source, batch_size)
    making = _Making(source, preprocessing, augment or Augment(), seed, max_pixels)
    requests = _stream(len(source), batch_size, seed, start_sample, stop_sample)
    if world > 1:
        requests = (_cut(request, rank, world, before) for request in requests)
    return _made(making, requests, workers)


def eval_batches(
    source: Source,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    rank: int = 0,
    world: int = 1,
) -> Generator[Batch, None, None]:
    """Every example once, in order, exactly as `preprocessing` has it; the last batch is smaller.

    With several processes each gets a row of consecutive examples, the first one the first ones.

    Raises:
        Error: the source is empty, or the batch size is none.
    """
    _demand(source, batch_size)
    making = _Making(source, preprocessing, None, 0, max_pixels)
    return _made(making, _once(shares(len(source), world)[rank], batch_size), workers)


def _demand(source: Source, batch_size: int) -> None:
    if batch_size < 1:
        raise Error(f"a batch has at least one sample, not {batch_size}")
    if not len(source):
        raise Error(f"{source.name}: there are no images")


def _stream(n: int, batch_size: int, seed: int, start: int, stop: int | None) -> Iterator[_Request]:
    position, epoch, places = start, -1, np.empty(0, np.int64)
    while stop is None or position < stop:
        end = position + batch_size if stop is None else min(position + batch_size, stop)
        first, epochs, indices = position % n, [], []
        while position < end:
            if epoch != position // n:
                epoch = position // n
                places = order(seed, epoch, n)
            part = places[position % n : position % n + end - position]
            indices.append(part)
            epochs.append(np.full(len(part), epoch))
            position += len(part)
        yield _Request(np.concatenate(epochs), np.concatenate(indices), int(epochs[0][0]), first)


def shares(n: int, parts: int) -> list[range]:
    """n rows in a row cut into consecutive parts whose lengths differ by at most one."""
    ends = [n * part // parts for part in range(parts + 1)]
    return [range(begin, end) for begin, end in itertools.pairwise(ends)]


def _cut(request: _Request, rank: int, world: int, before: bool) -> _Request:
    """One process's rows of a global batch."""
    rows = shares(len(request.indices), world)[rank]
    others = [*range(rows.start - 1, -1, -1), *range(len(request.indices) - 1, rows.stop - 1, -1)]
    return replace(
        request,
        epochs=request.epochs[rows.start : rows.stop],
        indices=request.indices[rows.start : rows.stop],
        before=[(int(request.epochs[i]), int(request.indices[i])) for i in others if before],
    )


def _once(places: range, batch_size: int) -> Iterator[_Request]:
    for begin in range(places.start, places.stop, batch_size):
        indices = np.arange(begin, min(begin + batch_size, places.stop))
        yield _Request(np.zeros_like(indices), indices, 0, begin)


class _Making(Dataset):
    """Makes a batch of what a request asks for; augment None is evaluation."""

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        augment: Augment | None,
        seed: int,
        max_pixels: int,
    ):
        self.source, self.preprocessing, self.augment = source, preprocessing, augment
        self.seed, self.max_pixels = seed, max_pixels

    def __getitem__(self, index: _Request) -> dict[str, Any]:
        """The fields of a `Batch`, tensors as arrays: those cross between processes by a pipe."""
        request = index
        images = self._as_they_are(request.indices)
        good, skipped = np.arange(len(request.indices)), []
        if images is None:
            pictures, kept = [], []
            for place, (epoch, i) in enumerate(zip(request.epochs, request.indices, strict=True)):
                try:
                    pictures.append(self._picture(int(epoch), int(i)))
                    kept.append(place)
                except Error as error:
                    skipped.append((self.source.keys[int(i)], str(error)))
            images = (
                np.stack(pictures)
                if pictures
                else np.zeros((0, *self.preprocessing.size, 3), np.uint8)
            )
            good = np.array(kept, np.int64)
        indices = request.indices[good]
        return {
            "images": images,
            "labels": self.source.labels[indices],
            "keys": [self.source.keys[i] for i in indices.tolist()],
            "indices": indices,
            "skipped": skipped,
            "epochs": request.epochs[good],
            "epoch": request.epoch,
            "position": request.position,
            "before": self._before(request),
        }

    def _before(self, request: _Request) -> tuple[np.ndarray, np.ndarray] | None:
        for epoch, i in request.before:
            images = self._as_they_are(np.array([i]))
            try:
                images = self._picture(epoch, i)[None] if images is None else images
            except Error:  # the process whose picture it is tells of it
                continue
            return images, self.source.labels[[i]]
        return None

    def _as_they_are(self, indices: np.ndarray) -> np.ndarray | None:
        """All pictures at once, where they need nothing: several times faster on small ones."""
        if self.augment is not None and not self.augment.nothing:
            return None
        images = self.source.arrays(indices)
        wanted = self.preprocessing
        if images is None or images.shape[1:3] != wanted.size or wanted.crop != 1:
            return None
        return images

    def _picture(self, epoch: int, i: int) -> np.ndarray:
        image = self.source.image(i)
        if self.augment is None:
            # Full decode: the same pixels as anybody gets who uses `Preprocessing` on the file.
            return self.preprocessing.geometry(self._decoded(image, None))
        generator = sample_generator(self.seed, epoch, i)
        if isinstance(image, bytes) and self.augment.crop == "inception":
            full = read_size(image)[:2]
        elif isinstance(image, bytes):
            return self.augment(self._decoded(image, None), self.preprocessing, generator)
        else:
            full = (image.shape[1], image.shape[0])
        box = self.augment.box(*full, generator)
        small = needed_size(box, full, self.preprocessing.size)
        return self.augment.view(
            self._decoded(image, small), box, full, self.preprocessing, generator
        )

    def _decoded(self, image: bytes | np.ndarray, min_size: int | None) -> np.ndarray:
        if isinstance(image, np.ndarray):
            return image
        return decode(image, min_size, self.max_pixels)


def _made(
    making: _Making, requests: Iterable[_Request], workers: int
) -> Generator[Batch, None, None]:
    made = (
        map(making.__getitem__, requests) if workers < 1 else _by_workers(making, requests, workers)
    )
    for fields in made:
        for name in ("images", "labels", "indices", "epochs"):
            fields[name] = torch.from_numpy(fields[name])
        if fields["before"] is not None:
            image, label = fields["before"]
            fields["before"] = torch.from_numpy(image), torch.from_numpy(label)
        yield Batch(**fields)


def _by_workers(
    making: _Making, requests: Iterable[_Request], workers: int
) -> Iterator[dict[str, Any]]:
    loader = DataLoader(
        making,
        sampler=requests,
        batch_size=None,  # a request is a batch already
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=functools.partial(_prepare_worker, os.getpid()),
        # Its own generator: by default a loader draws its workers' seeds from torch's global one,
        # and a run with workers would then differ from one without.
        generator=torch.Generator(),
        # Forked workers share the source's memory and need no importable main module.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )
    # Workers are born with Ctrl-C held back, or one that comes before `_prepare_worker` ends them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unchanged(fields: Any) -> Any:
    return fields


def _prepare_worker(parent: int, _worker: int) -> None:
    # Ctrl-C goes to the whole process group; the parent saves first and ends its workers itself.
    # (DataLoader has set one thread already.)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # A parent that is killed takes its workers with it. torch's own watch over the parent can
        # leave a worker waiting for ever to hand over a batch that nobody will read.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before this line
            os._exit(1)
