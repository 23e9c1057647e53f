"""Any number of pictures through a classifier, lazily and in order, with memory that stays flat.

Threads read, decode and resize a bounded number of pictures ahead while the model works on a batch;
libjpeg, Pillow's resize and the model all let go of the interpreter meanwhile. Processes were
measured as slower (`docs/predict.md`), and they would have to be told, fed and buried.
"""

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from vitrail.data.examples import read_file
from vitrail.kit.cores import cores
from vitrail.kit.errors import Error

if TYPE_CHECKING:
    from vitrail.serving.classifier import Classifier, Picture

T = TypeVar("T")
GROUP = 4  # pictures a thread takes at a time
MOST_WORKERS = 16  # by default: beyond, they wait for each other's Python


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one picture shows, or why nobody can tell.

    Attributes:
        path: the file's name, fit to print; None for a picture that is no file.
        labels: (label, probability), likeliest first; empty where there is an error.
        error: the reason, or None.
    """

    path: str | None
    labels: list[tuple[str, float]]
    error: str | None = None


def default_workers() -> int:
    """As many threads as there are cores for this process, up to `MOST_WORKERS`."""
    return min(MOST_WORKERS, cores())


def stream(
    classify: "Classifier", images: "Iterable[Picture]", top_k: int = 5, workers: int | None = None
) -> Iterator[Prediction]:
    """Predictions in the order of the pictures; see `Classifier.stream`.

    Raises:
        Error: ``top_k`` or ``workers`` out of range; at once, not at the first picture.
    """
    if top_k < 1:
        raise Error(f"top_k must be at least 1, not {top_k}")
    workers = default_workers() if workers is None else workers
    if workers < 0:
        raise Error(f"workers is a number of threads from 0, not {workers}")
    return _predictions(classify, images, top_k, workers)


@dataclass(frozen=True, slots=True)
class _Read:
    """A picture ready for the model, or why it is not."""

    path: str | None
    pixels: np.ndarray | None
    error: str | None = None


def _predictions(
    classify: "Classifier", images: "Iterable[Picture]", top_k: int, workers: int
) -> Iterator[Prediction]:
    with contextlib.closing(_read(classify, images, workers)) as pictures:
        for batch in _batched(pictures, classify.batch_size):
            pixels = [picture.pixels for picture in batch if picture.pixels is not None]
            rows = classify.answers(classify.forward(np.stack(pixels)), top_k) if pixels else []
            answers = iter(rows)
            for picture in batch:
                labels = [] if picture.pixels is None else next(answers)
                yield Prediction(picture.path, labels, picture.error)


def _read(
    classify: "Classifier", images: "Iterable[Picture]", workers: int
) -> Generator[_Read, None, None]:
    """The pictures in order, read by so many threads, two batches ahead at the most."""
    if not workers:
        yield from (_read_one(classify, image) for image in images)
        return
    ahead = 2 * classify.batch_size + GROUP * workers
    waiting: deque[Future[list[_Read]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for group in _batched(images, GROUP):
            waiting.append(pool.submit(_read_all, classify, group))
            if len(waiting) * GROUP >= ahead:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_all(classify: "Classifier", images: "list[Picture]") -> list[_Read]:
    return [_read_one(classify, image) for image in images]


def _read_one(classify: "Classifier", image: "Picture") -> _Read:
    path = None
    try:
        if isinstance(image, str | Path):
            # File names need not be UTF-8; what is printed must be.
            path = os.fsencode(image).decode("utf-8", "backslashreplace")
            image = read_file(image)
        return _Read(path, classify.prepare(image))
    except Error as error:
        return _Read(path, None, str(error))


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch
