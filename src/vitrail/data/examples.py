"""Sources of examples: pictures in files or in arrays, with labels, class names and keys.

A `Source` is indexable and cheap to copy into worker processes: keys lie in one block of bytes and
labels in one array.
"""

import copy
import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from vitrail.data.keys import Keys, Picked
from vitrail.data.labels import count_labels
from vitrail.kit.errors import Error, listing

__all__ = ["ArraySource", "Example", "FileSource", "Keys", "Source", "read_file"]

MAX_BYTES = 256 * 2**20  # of one file


@dataclass(frozen=True, slots=True)
class Example:
    """One picture with its label.

    Attributes:
        image: the encoded file (bytes), or uint8 [h w 3].
        label: index into the source's classes; -1 in a multi-label source.
        key: the picture's name: its path relative to the data.
        labels: all of its indices into the classes: one, or any number in a multi-label source.
    """

    image: bytes | np.ndarray
    label: int
    key: str
    labels: tuple[int, ...] = ()


class Source:
    """Labelled pictures by index.

    Attributes:
        name: what the user called it, for messages.
        classes: the class names; a label is an index into them.
        labels: int64 [n]; multi-hot uint8 [n k] where a picture has any number of labels.
        keys: n names.
        ignored: names of files found among the pictures that are none.
        window: how many pictures `draws.nearby_order` shuffles together.
    """

    name: str
    classes: tuple[str, ...]
    labels: np.ndarray
    keys: Sequence[str]
    ignored: tuple[str, ...] = ()
    window: int = 4096

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multi_label(self) -> bool:
        """Whether a picture has any number of labels, and `labels` is multi-hot."""
        return self.labels.ndim == 2

    def counts(self) -> np.ndarray:
        """How many pictures have each class, int64 [k]."""
        return count_labels(self.labels, len(self.classes))

    def label_names(self, i: int) -> str:
        """The name of the i-th picture's class; of several, joined by ``|``."""
        if not self.multi_label:
            return self.classes[int(self.labels[i])]
        return "|".join(self.classes[k] for k in np.flatnonzero(self.labels[i]))

    def runs(self) -> np.ndarray:
        """Which pictures are best read together: int64 [n], the number of each one's run.

        A run is a shard or a row group; where every picture is reached alone, all are one.
        """
        return np.zeros(len(self), np.int64)

    def ready(self) -> None:
        """Do now what worker processes would else do each for itself; called before they start."""

    def image(self, i: int) -> bytes | np.ndarray:
        """The i-th picture: its encoded bytes, or uint8 [h w 3].

        Raises:
            Error: why it cannot be read; the message is the reason alone, without the key.
        """
        raise NotImplementedError

    def size(self, i: int) -> int:
        """How many bytes the i-th picture takes, encoded or as an array; -1: there is no file.

        Where that is not known without reading it: of the smallest part of which it is.
        """
        raise NotImplementedError

    def arrays(self, indices: np.ndarray) -> np.ndarray | None:
        """These pictures at once, uint8 [b h w 3], if they are arrays of one size; else None."""
        return None

    def example(self, i: int) -> Example:
        """The i-th example.

        Raises:
            Error: it cannot be read; the message begins with the key.
        """
        try:
            image = self.image(i)
        except Error as error:
            raise Error(f"{self.keys[i]}: {error}") from None
        if self.multi_label:
            return Example(image, -1, self.keys[i], tuple(np.flatnonzero(self.labels[i]).tolist()))
        label = int(self.labels[i])
        return Example(image, label, self.keys[i], (label,))

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Source":
        """A view of these examples, in this order."""
        return Subset(self, np.asarray(indices, np.int64))

    def split(self, fraction: float, seed: int) -> tuple["Source", "Source"]:
        """Cut off a share of every class: (the rest, the share), each in the order of this source.

        Which examples go is decided by a hash of (seed, key): so an image added or removed later
        moves at most one other image of its class across the cut. At least one image of every
        class lands on each side.

        A picture of several labels counts as one of the rarest of them (of equally rare ones the
        first; without any, of a group of its own); a group of a single picture stays whole.

        Raises:
            Error: a class with a single image, or a fraction that is none.
        """
        if not 0 < fraction < 1:
            raise Error(f"the share to cut off lies between 0 and 1, not at {fraction}")
        groups = _rarest(self.labels) if self.multi_label else self.labels
        counts = np.bincount(groups, minlength=len(self.classes))
        single = np.flatnonzero(counts == 1)
        if len(single) and not self.multi_label:
            names = [self.classes[k] for k in single]
            raise Error(
                f"{self.name}: only one image in class {listing(names)}, so no validation share "
                "can be cut off: add images, remove the class, or give a val folder"
            )
        ranks = np.array([_rank(key, seed) for key in self.keys], np.uint64)
        by_class = np.lexsort((ranks, groups))
        starts = np.cumsum(counts) - counts
        takes = np.minimum(np.maximum(np.rint(fraction * counts), 1), counts - 1).astype(np.int64)
        taken = np.zeros(len(self), bool)
        for start, take in zip(starts[counts > 0], takes[counts > 0], strict=True):
            taken[by_class[start : start + take]] = True
        return self.subset(np.flatnonzero(~taken)), self.subset(np.flatnonzero(taken))

    def with_classes(self, classes: Sequence[str]) -> Self:
        """This source with its labels counted in another list of class names.

        Raises:
            Error: a class of this source is not in the list.
        """
        new = {name: k for k, name in enumerate(classes)}
        used = {self.classes[k] for k in np.flatnonzero(self.counts())}
        unknown = sorted(used - set(new))
        if unknown:
            raise Error(
                f"{self.name}: class {listing(unknown)} is not among the {len(classes)} known "
                f"ones ({listing(list(classes))})"
            )
        source = copy.copy(self)
        table = np.array([new.get(name, -1) for name in self.classes], np.int64)
        if self.multi_label:
            source.labels = np.zeros((len(self), len(classes)), np.uint8)
            source.labels[:, table[table >= 0]] = self.labels[:, table >= 0]
        else:
            source.labels = table[self.labels]
        source.classes = tuple(classes)
        return source


def read_file(path: str | os.PathLike[str]) -> bytes:
    """A regular file's bytes.

    Raises:
        Error: why it cannot be read: the reason alone, without the name.
    """
    try:
        # Asked before it is opened: opening a pipe would wait for ever.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise Error("not a file")
        if status.st_size > MAX_BYTES:
            raise Error(
                f"a file of {status.st_size / 2**20:.0f} MiB, over the limit of "
                f"{MAX_BYTES // 2**20} MiB"
            )
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Error((error.strerror or str(error)).lower()) from None


def as_labels(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """Labels as sources keep them: int64 [n], or multi-hot uint8 [n k]."""
    return np.asarray(labels, np.uint8 if np.ndim(labels) == 2 else np.int64)


class FileSource(Source):
    """Pictures in files.

    Args:
        name: what the user called the data.
        root: the folder that paths are relative to.
        paths: n paths.
        labels: n indices into ``classes``, or multi-hot uint8 [n k].
        classes: the class names.
        ignored: names of files beside the pictures that are none.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        paths: Iterable[str],
        labels: Sequence[int] | np.ndarray,
        classes: Sequence[str],
        ignored: Sequence[str] = (),
    ):
        self.name = name
        self.root = str(root)
        self.keys = self.files = paths if isinstance(paths, Keys) else Keys(paths)
        self.labels = as_labels(labels)
        self.classes = tuple(classes)
        self.ignored = tuple(ignored)

    def path(self, i: int) -> str:
        """Where the i-th file lies."""
        return os.path.join(self.root, self.files.path(i))

    def image(self, i: int) -> bytes:
        """The i-th file's bytes.

        Raises:
            Error: why it cannot be read.
        """
        return read_file(self.path(i))

    def size(self, i: int) -> int:
        """The i-th file's length in bytes; -1: there is no such file."""
        try:
            return os.stat(self.path(i)).st_size
        except OSError:
            return -1


class ArraySource(Source):
    """Pictures in one array, which is not copied.

    Args:
        images: uint8 [n h w 3] or [n h w] (grey); a memory-mapped one will do.
        labels: n indices into ``classes``, or n class names, or 0 and 1 [n k] where a picture has
            any number of labels.
        classes: the class names. None: from labels that are names, those names sorted by code
            point; from labels that are numbers, "0", "1", ... up to the highest.
        keys: n names; None: the positions.
        name: for messages.

    Raises:
        Error: shapes, types or labels that are not as above.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int] | Sequence[str] | np.ndarray,
        classes: Sequence[str] | None = None,
        keys: Iterable[str] | None = None,
        name: str = "the arrays",
    ):
        images, labels = np.asarray(images), np.asarray(labels)
        if images.dtype != np.uint8:
            raise Error(f"{name}: images are uint8 in 0..255, not {images.dtype}")
        if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
            raise Error(
                f"{name}: images are [n h w 3] or [n h w], not {list(images.shape)}"
                + ("; move the channels last" if images.ndim == 4 else "")
            )
        if labels.shape[:1] != (len(images),) or labels.ndim not in (1, 2):
            raise Error(f"{name}: {len(images)} images, but labels are {list(labels.shape)}")
        if len(images) == 0:
            raise Error(f"{name}: there are no images")
        self.images = images[..., 0] if images.shape[3:] == (1,) else images
        self.classes, self.labels = _classes_of(labels, classes, name)
        self.keys = Keys(map(str, range(len(images))) if keys is None else keys)
        self.name = name

    def image(self, i: int) -> np.ndarray:
        """The i-th picture, uint8 [h w 3]."""
        return _coloured(self.images[i][None])[0]

    def size(self, i: int) -> int:
        """The number of bytes of the i-th picture."""
        return self.images[i].nbytes

    def arrays(self, indices: np.ndarray) -> np.ndarray:
        """These pictures, uint8 [b h w 3]."""
        return _coloured(self.images[indices])


class Subset(Source):
    """A view of some examples of another source."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.name, self.classes, self.ignored = source.name, source.classes, source.ignored
        self.window = source.window
        self.labels = source.labels[indices]
        if isinstance(source, Subset):  # a view of a view looks at what lies under both
            source, indices = source.source, source.indices[indices]
        self.source, self.indices = source, indices
        self.keys = Picked(source.keys, indices)

    def image(self, i: int) -> bytes | np.ndarray:
        """The i-th picture of the view."""
        return self.source.image(int(self.indices[i]))

    def size(self, i: int) -> int:
        """The number of bytes of the i-th picture of the view."""
        return self.source.size(int(self.indices[i]))

    def arrays(self, indices: np.ndarray) -> np.ndarray | None:
        """These pictures of the view at once, if the source has them as arrays."""
        return self.source.arrays(self.indices[indices])

    def runs(self) -> np.ndarray:
        """The runs of the source under the view."""
        return self.source.runs()[self.indices]

    def ready(self) -> None:
        """What the source under the view does before workers start."""
        self.source.ready()


def _rank(key: str, seed: int) -> int:
    text = f"{seed}\0{key}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def _rarest(hot: np.ndarray) -> np.ndarray:
    """The rarest class of each row of multi-hot labels, int64 [n]; k where there is none."""
    counts, groups = hot.sum(axis=0, dtype=np.int64), np.full(len(hot), hot.shape[1], np.int64)
    # The commonest first, so that rarer ones write over them; of equals the first class wins.
    for k in np.lexsort((-np.arange(len(counts)), counts))[::-1]:
        groups[hot[:, k] > 0] = k
    return groups


def _coloured(images: np.ndarray) -> np.ndarray:
    """Grey [b h w] to [b h w 3]; pictures that have three channels as they are."""
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=-1)


def _classes_of(
    labels: np.ndarray, classes: Sequence[str] | None, name: str
) -> tuple[tuple[str, ...], np.ndarray]:
    if labels.dtype.kind in "US":
        names = [str(label) for label in labels]
        known = tuple(sorted(set(names)) if classes is None else classes)
        index = {name: k for k, name in enumerate(known)}
        if unknown := sorted(set(names) - set(index)):
            raise Error(f"{name}: labels that are not among the classes: {listing(unknown)}")
        return known, np.array([index[label] for label in names], np.int64)
    if labels.ndim == 2:
        return _several(labels, classes, name)
    if labels.dtype.kind not in "iu":
        raise Error(f"{name}: labels are whole numbers or class names, not {labels.dtype}")
    highest = int(labels.max())
    known = tuple(map(str, range(highest + 1)) if classes is None else classes)
    if labels.min() < 0 or highest >= len(known):
        raise Error(
            f"{name}: labels lie between 0 and {len(known) - 1} for {len(known)} classes, "
            f"not between {labels.min()} and {highest}"
        )
    return known, labels.astype(np.int64)


def _several(
    labels: np.ndarray, classes: Sequence[str] | None, name: str
) -> tuple[tuple[str, ...], np.ndarray]:
    if labels.dtype.kind not in "biu" or not ((labels == 0) | (labels == 1)).all():
        raise Error(f"{name}: labels [n k] are 0 and 1: whether picture n has class k")
    known = tuple(map(str, range(labels.shape[1])) if classes is None else classes)
    if len(known) != labels.shape[1]:
        raise Error(f"{name}: labels are {list(labels.shape)}, but there are {len(known)} classes")
    return known, labels.astype(np.uint8)
