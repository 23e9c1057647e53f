"""Loader: batches of uint8 pictures, in an order that is a function and not a state.

Training is one endless stream of samples: position p is place p % n of epoch p // n, in that
epoch's order. So the only state is the number of samples consumed; a batch may reach over the end
of an epoch, every sample is used once in every epoch, and no batch size leaves a rest. (Balanced
sampling and repeated augmentation have other epochs: see `train_batches`.) With worker
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

from vitrail.data.decode import MAX_PIXELS
from vitrail.data.draws import order, sample_generator
from vitrail.data.epochs import Epochs
from vitrail.data.examples import Source
from vitrail.data.stream import Handful, Item, Stream
from vitrail.data.transforms import Augment
from vitrail.data.views import evaluation_view, training_view
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import Preprocessing

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

__all__ = ["Batch", "eval_batches", "order", "shares", "train_batches"]


@dataclass(frozen=True)
class Batch:
    """Pictures that are ready for `Preprocessing.normalize`.

    Attributes:
        images: uint8 [b h w c].
        labels: int64 [b]; of a multi-label source float32 [b k], 0 and 1.
        keys: b names.
        indices: int64 [b], places in the source.
        skipped: (key, reason) of the samples of this batch that cannot be decoded. They are not in
            the fields above, so b is smaller then; it may be 0.
        epochs: int64 [b], the epoch of each sample; zeros in evaluation.
        repeats: int64 [b], how often each sample was used in its epoch before.
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
    repeats: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    epoch: int = 0
    position: int = 0
    before: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class _Request:
    """One batch to be made: places in the source, each with its epoch and earlier uses in it.

    ``epoch`` and ``position`` are where the global batch begins. ``handful``: of a stream, the
    samples themselves, in the order of the batch. ``before``: the samples of other processes, the
    nearest before this share first: one of them is made too, the first that can be read.
    """

    epochs: np.ndarray
    indices: np.ndarray
    epoch: int
    position: int
    repeats: np.ndarray
    handful: Handful | None = None
    before: "_Request | None" = None

    def rows(self, places: np.ndarray) -> "_Request":
        """A request for some rows of this batch."""
        return replace(
            self,
            epochs=self.epochs[places],
            indices=self.indices[places],
            repeats=self.repeats[places],
            handful=self.handful and self.handful.rows(places),
        )


def train_batches(
    source: Source | Stream,
    preprocessing: Preprocessing,
    augment: Augment | None,
    batch_size: int,
    *,
    seed: int = 0,
    start_sample: int = 0,
    stop_sample: int | None = None,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    sampling: str = "uniform",
    repeats: int = 1,
    rank: int = 0,
    world: int = 1,
    before: bool = False,
) -> Generator[Batch, None, None]:
    """The training stream, from any place on; what it costs to start does not depend on the place.

    Close it (or let it go) to end its workers.

    With ``repeats`` r > 1 (repeated augmentation: arXiv 1901.09335; RASampler of DeiT) an epoch
    still is n samples, but of n / r pictures: the first of the epoch's order, each r times with
    draws of its own. Those r lie in one batch where r divides the batch size, and as far apart
    there as can be, so that mixup does not mix a picture with itself. (DeiT also cuts its epochs
    to a multiple of 256; this does not.)

    Args:
        source: the examples, or a stream of them: then an epoch is as `Stream.epoch` has it, and
            starting late costs what `stream` says.
        preprocessing: gives the size of the pictures.
        augment: what is done to each picture; None: nothing.
        batch_size: samples a batch.
        seed: of the order and of every draw.
        start_sample: samples consumed before; n of them are an epoch.
        stop_sample: where the stream ends, with a smaller batch if need be; None: never.
        workers: processes that decode; 0: this one does.
        max_pixels: see `decode`.
        sampling: ``uniform``: every sample once an epoch; ``balanced``: every class equally often
            (`draws.balanced_order`); ``nearby``: every sample once, those that lie together near
            each other (`draws.nearby_order`), for shards and parquet too large for the memory.
        repeats: how often a picture of an epoch is used in it.
        rank, world: of how many processes that share out each batch this is which; it makes its
            own rows only. ``batch_size``, ``start_sample`` and ``stop_sample`` count all rows.
        before: whether to make `Batch.before` too, of several processes, for mixing.

    Raises:
        Error: the source is empty, the batch size is none, an unknown sampling, or balanced
            sampling of a multi-label source.
    """
    making = _Making(source, preprocessing, augment or Augment(), seed, max_pixels)
    _demand(source, batch_size)
    if isinstance(source, Stream):
        if sampling != "uniform" or repeats != 1:
            raise Error(f"{source.name}: a stream has no other sampling and no repeats")
        batches = source.batches(batch_size, seed, start_sample, stop_sample)
        requests = _of_stream(source, batches)
    else:
        epochs = Epochs(source, seed, sampling, repeats)
        requests = _stream(epochs, batch_size, start_sample, stop_sample)
    if world > 1:
        requests = (_cut(request, rank, world, before) for request in requests)
    return _made(making, requests, workers)


def eval_batches(
    source: Source | Stream,
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
    if isinstance(source, Stream):
        if world > 1:
            raise Error(f"{source.name}: a stream is evaluated by one process")
        return _made(making, _of_stream(source, source.in_turn(batch_size)), workers)
    return _made(making, _once(shares(len(source), world)[rank], batch_size), workers)


def _demand(source: Source | Stream, batch_size: int) -> None:
    if batch_size < 1:
        raise Error(f"a batch has at least one sample, not {batch_size}")
    if isinstance(source, Source) and not len(source):
        raise Error(f"{source.name}: there are no images")


def _stream(of: Epochs, batch_size: int, start: int, stop: int | None) -> Iterator[_Request]:
    n, position, epoch = of.n, start, -1
    places = again = np.empty(0, np.int64)
    while stop is None or position < stop:
        end = position + batch_size if stop is None else min(position + batch_size, stop)
        began, first = divmod(position, n)
        parts = []
        while position < end:
            if epoch != position // n:
                epoch = position // n
                places, again = of(epoch)
            part = slice(position % n, position % n + end - position)
            indices = places[part]
            parts.append(
                (
                    np.full(len(indices), epoch),
                    indices,
                    again[part],
                    np.arange(part.start, part.start + len(indices)),
                )
            )
            position += len(indices)
        epochs, indices, repeats, at = map(np.concatenate, zip(*parts, strict=True))
        request = _Request(epochs, indices, began, first, repeats)
        if of.repeats > 1:  # first all pictures of the batch once, then all of them again, ...
            request = request.rows(np.argsort(at % of.repeats, kind="stable"))
        yield request


def shares(n: int, parts: int) -> list[range]:
    """n rows in a row cut into consecutive parts whose lengths differ by at most one."""
    ends = [n * part // parts for part in range(parts + 1)]
    return [range(begin, end) for begin, end in itertools.pairwise(ends)]


def _cut(request: _Request, rank: int, world: int, before: bool) -> _Request:
    """One process's rows of a global batch."""
    total = len(request.indices)
    rows = shares(total, world)[rank]
    mine = request.rows(np.arange(rows.start, rows.stop))
    if not before:
        return mine
    others = [*range(rows.start - 1, -1, -1), *range(total - 1, rows.stop - 1, -1)]
    return replace(mine, before=request.rows(np.array(others, np.int64)))


def _once(places: range, batch_size: int) -> Iterator[_Request]:
    for begin in range(places.start, places.stop, batch_size):
        indices = np.arange(begin, min(begin + batch_size, places.stop))
        zeros = np.zeros_like(indices)
        yield _Request(zeros, indices, 0, begin, zeros)


def _of_stream(
    stream: Stream, batches: Iterable[tuple[np.ndarray, list[Item], int]]
) -> Iterator[_Request]:
    for epochs, items, position in batches:
        indices = np.array([item.index for item in items])
        yield _Request(
            epochs,
            indices,
            int(epochs[0]),
            position,
            np.zeros_like(indices),
            Handful(stream, items),
        )


class _Making(Dataset):
    """Makes a batch of what a request asks for; augment None is evaluation."""

    def __init__(
        self,
        source: Source | Stream,
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
        source, places = self._of(request)
        images = self._as_they_are(source, places)
        good, skipped = np.arange(len(request.indices)), []
        if images is None:
            pictures, kept = [], []
            wanted = (places, request.epochs, request.indices, request.repeats)
            columns = zip(*map(np.ndarray.tolist, wanted), strict=True)
            for place, (i, *drawing) in enumerate(columns):
                try:
                    pictures.append(self._picture(source.image(i), *drawing))
                    kept.append(place)
                except Error as error:
                    skipped.append((source.keys[i], str(error)))
            images = (
                np.stack(pictures)
                if pictures
                else np.zeros((0, *self.preprocessing.size, 3), np.uint8)
            )
            good = np.array(kept, np.int64)
        labels = source.labels[places[good]]
        return {
            "images": images,
            "labels": labels.astype(np.float32) if source.multi_label else labels,
            "keys": [source.keys[i] for i in places[good].tolist()],
            "indices": request.indices[good],
            "skipped": skipped,
            "epochs": request.epochs[good],
            "repeats": request.repeats[good],
            "epoch": request.epoch,
            "position": request.position,
            "before": self._before(request),
        }

    def _before(self, request: _Request) -> tuple[np.ndarray, np.ndarray] | None:
        if request.before is None:
            return None
        source, places = self._of(request.before)
        others = (places, request.before.epochs, request.before.indices, request.before.repeats)
        for place, *drawing in zip(*map(np.ndarray.tolist, others), strict=True):
            images = self._as_they_are(source, np.array([place]))
            try:
                if images is None:
                    images = self._picture(source.image(place), *drawing)[None]
            except Error:  # the process whose picture it is tells of it
                continue
            labels = source.labels[[place]]
            return images, labels.astype(np.float32) if source.multi_label else labels
        return None

    def _of(self, request: _Request) -> tuple[Source, np.ndarray]:
        """Where the samples of a request are: the source, and their places in it."""
        if isinstance(self.source, Source):
            return self.source, request.indices
        assert request.handful is not None
        return request.handful, np.arange(len(request.indices))

    def _as_they_are(self, source: Source, indices: np.ndarray) -> np.ndarray | None:
        """All pictures at once, where they need nothing: several times faster on small ones."""
        if self.augment is not None and not self.augment.nothing:
            return None
        images = source.arrays(indices)
        wanted = self.preprocessing
        if images is None or images.shape[1:3] != wanted.size or wanted.crop != 1:
            return None
        return images

    def _picture(self, image: bytes | np.ndarray, epoch: int, i: int, repeat: int) -> np.ndarray:
        if self.augment is None:
            return evaluation_view(image, self.preprocessing, self.max_pixels)
        generator = sample_generator(self.seed, epoch, i, repeat)
        return training_view(image, self.augment, self.preprocessing, generator, self.max_pixels)


def _made(
    making: _Making, requests: Iterable[_Request], workers: int
) -> Generator[Batch, None, None]:
    made = (
        map(making.__getitem__, requests) if workers < 1 else _by_workers(making, requests, workers)
    )
    for fields in made:
        for name in ("images", "labels", "indices", "epochs", "repeats"):
            fields[name] = torch.from_numpy(fields[name])
        if fields["before"] is not None:
            # A single picture may be a view of its file's own bytes, which are not to be written.
            fields["before"] = tuple(
                torch.from_numpy(np.require(array, requirements="W")) for array in fields["before"]
            )
        yield Batch(**fields)


def _by_workers(
    making: _Making, requests: Iterable[_Request], workers: int
) -> Iterator[dict[str, Any]]:
    if isinstance(making.source, Source):
        making.source.ready()
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
