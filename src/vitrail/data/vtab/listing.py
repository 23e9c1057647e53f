"""A listing: one published split of a task, its pictures not yet read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vitrail.data.examples import Source
from vitrail.data.vtab.archives import Store
from vitrail.kit.errors import Error

Fetch = Callable[[int], bytes | np.ndarray]  # the k-th of the chosen pictures


@dataclass(frozen=True)
class Listing:
    """What a split holds.

    Attributes:
        keys: of the n examples, as the builder of TensorFlow Datasets names them.
        labels: int64 [n].
        classes: the class names.
        pictures: from chosen places, int64 [m], to a function from 0..m-1 to a picture (encoded
            bytes, or uint8 [h w 3]); reads ahead only what it must.
    """

    keys: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    pictures: Callable[[np.ndarray], Fetch]


class Members:
    """Pictures that are files of an archive."""

    def __init__(self, store: Store, names: Sequence[str]):
        self.store, self.names = store, list(names)

    def __call__(self, k: int) -> bytes:
        """The k-th file's bytes."""
        return self.store.read(self.names[k])


class Rows:
    """Pictures that are rows of an array, uint8 [m h w 3] or [m h w] (grey)."""

    def __init__(self, images: np.ndarray):
        self.images = images

    def __call__(self, k: int) -> np.ndarray:
        """The k-th row, uint8 [h w 3]."""
        image = self.images[k]
        return np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else image


class Changed:
    """Pictures that go through a function first."""

    def __init__(self, fetch: Fetch, change: Callable[[bytes | np.ndarray], bytes | np.ndarray]):
        self.fetch, self.change = fetch, change

    def __call__(self, k: int) -> bytes | np.ndarray:
        """The k-th picture, changed."""
        return self.change(self.fetch(k))


class TaskSource(Source):
    """The chosen examples of a task as a source."""

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        keys: Sequence[str],
        labels: np.ndarray,
        fetch: Fetch,
    ):
        self.name, self.classes, self.keys = name, tuple(classes), list(keys)
        self.labels = np.asarray(labels, np.int64)
        self.fetch = fetch

    def image(self, i: int) -> bytes | np.ndarray:
        """The i-th picture.

        Raises:
            Error: why it cannot be read.
        """
        return self.fetch(i)

    def size(self, i: int) -> int:
        """The number of bytes of the i-th picture; -1: it cannot be read."""
        try:
            image = self.image(i)
        except Error:
            return -1
        return len(image) if isinstance(image, bytes) else image.nbytes


def members(store: Store, names: Sequence[str]) -> Callable[[np.ndarray], Fetch]:
    """`Listing.pictures` of files of an archive."""
    return lambda places: Members(store, [names[i] for i in places])


def rows(images: np.ndarray) -> Callable[[np.ndarray], Fetch]:
    """`Listing.pictures` of an array."""
    return lambda places: Rows(images[places])


def labelled(
    keys: Sequence[str], names: Sequence[str], pictures: Callable[[np.ndarray], Fetch]
) -> Listing:
    """A listing whose classes are the sorted names of the classes of its examples."""
    classes = tuple(sorted(set(names)))
    index = {name: k for k, name in enumerate(classes)}
    return Listing(keys, np.array([index[name] for name in names], np.int64), classes, pictures)
