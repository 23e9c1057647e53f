"""The pictures that are looked at, and the way of a heat map back onto them.

A picture is read when it is asked for and not kept, so their number costs no memory. The model
sees a resized and cropped copy; what it says of its tokens is laid over the picture itself, at its
own resolution, with every token at its true place and nothing where the model did not look.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import torch
from torch import Tensor

from vitrail.inspection.places import Places
from vitrail.kit.chart import heat_colors
from vitrail.models.base import ImageClassifier


@dataclass(frozen=True)
class Picture:
    """One picture.

    Args:
        key: its name.
        original: uint8 [h w 3], as it was read.
        seen: uint8 [h w 3], what the model sees of it.
        window: the part of the original that it sees, see `Preprocessing.window`.
        label: its class, where that is known.
        name: the shortest that tells it from the others; the key without folders by default.
    """

    key: str
    original: np.ndarray
    seen: np.ndarray
    window: tuple[float, float, float, float]
    label: str | None = None
    name: str = ""


class Pictures:
    """Pictures, each read when it is asked for.

    Args:
        model: gives the preprocessing.
        keys: their names.
        read: from a number to uint8 [h w 3].
        labels: their classes, None for one that is not known.

    Attributes:
        names: see `short_names`.
    """

    def __init__(
        self,
        model: ImageClassifier,
        keys: Sequence[str],
        read: Callable[[int], np.ndarray],
        labels: Sequence[str | None] | None = None,
    ):
        self.preprocessing = model.preprocessing
        self.keys = list(keys)
        self.names = short_names(self.keys)
        self.labels = None if labels is None else list(labels)
        self._read = read

    def seen_by(self, model: ImageClassifier) -> "Pictures":
        """The same pictures as another model sees them."""
        return Pictures(model, self.keys, self._read, self.labels)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Picture:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        original = self._read(index)
        if original.ndim == 2 or original.shape[2] == 1:
            original = np.repeat(original.reshape(*original.shape[:2], 1), 3, axis=2)
        window = self.preprocessing.window(original.shape[1], original.shape[0])
        label = None if self.labels is None else self.labels[index]
        seen = self.preprocessing.geometry(original)
        return Picture(self.keys[index], original, seen, window, label, self.names[index])

    def __iter__(self) -> Iterator[Picture]:
        return (self[index] for index in range(len(self)))


def short_names(keys: Sequence[str]) -> list[str]:
    """The keys relative to the one folder that all of them lie in: file names in one folder.

    Keys without a folder in common, absolute ones beside relative ones too, are left as they are.
    """
    paths = [PurePath(key) for key in keys]
    folders = {path.parent.parts for path in paths}
    shared = 0
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return [
        "/".join(path.parts[shared:]) if shared else key
        for path, key in zip(paths, keys, strict=True)
    ]


def told_answer(
    picture: Picture, labels: Sequence[str] | None, answer: tuple[int, float] | None
) -> list[str]:
    """What the model says of a picture, and whether that is right: a line each.

    Args:
        labels: the model's.
        answer: the likeliest class and its probability; None where that is not known.
    """
    lines, label = [], ""
    if answer is not None:
        label = labels[answer[0]] if labels else f"class {answer[0]}"
        lines.append(f"seen as {label}, {100 * answer[1]:.0f}\N{NO-BREAK SPACE}%")
    if picture.label is not None:
        # A data set may have other classes than the model: then neither right nor wrong is said.
        judged = bool(lines) and bool(labels) and picture.label in (labels or ())
        verdict = ("right: " if picture.label == label else "wrong: ") if judged else ""
        lines.append(f"{verdict}it is {picture.label}")
    return lines


def evenly(count: int, most: int) -> list[int]:
    """At most so many of ``count`` numbers from 0, evenly chosen, with the first and the last."""
    if most >= count:
        return list(range(count))
    return [round(i * (count - 1) / max(1, most - 1)) for i in range(most)]


def as_input(model: ImageClassifier, *pictures: Picture) -> Tensor:
    """Pictures as the model takes them: normalised, [b c h w], on its device, of its type."""
    weight = next(model.parameters())
    pixels = torch.from_numpy(np.stack([picture.seen for picture in pictures]))
    return model.preprocessing.normalize(pixels.to(weight.device)).to(weight.dtype)


def interpolation(centres: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Linear interpolation as a matrix: values at ``centres`` to values at ``at``, [at centres].

    Beyond the first and the last centre the value stays as it is there. Values of one place (keys
    pooled to more than there were) count by their mean.
    """
    places, which, count = np.unique(centres, return_inverse=True, return_counts=True)
    matrix = np.zeros((len(at), len(places)), np.float32)
    if len(places) == 1:
        matrix[:] = 1
    else:
        place = np.interp(at, places, np.arange(len(places)))
        below = np.minimum(place.astype(int), len(places) - 2)
        rows, share = np.arange(len(at)), place - below
        matrix[rows, below] = 1 - share
        matrix[rows, below + 1] = share
    return (matrix / count)[:, which].astype(np.float32)


def onto_picture(
    heat: np.ndarray, places: Places, picture: Picture, size: tuple[int, int] | None = None
) -> np.ndarray:
    """A map [rows columns] over the original picture, float32 [h w]; NaN where nobody looked.

    Args:
        heat: values of the places.
        size: (height, width) of the result; the original's own by default.
    """
    height, width = picture.original.shape[:2] if size is None else size
    top, left, tall, wide = picture.window
    y, x = (
        (np.arange(count) + 0.5) * full / count
        for count, full in zip((height, width), picture.original.shape[:2], strict=True)
    )
    # From the original's pixels to those of the input.
    y, x = (y - top) * picture.seen.shape[0] / tall, (x - left) * picture.seen.shape[1] / wide
    drawn = interpolation(places.y, y) @ heat.astype(np.float32) @ interpolation(places.x, x).T
    drawn[(y < 0) | (y > picture.seen.shape[0])] = np.nan
    drawn[:, (x < 0) | (x > picture.seen.shape[1])] = np.nan
    return drawn


def evened(heat: np.ndarray, places: Places, size: tuple[int, int]) -> np.ndarray:
    """Maps [... rows columns] as if their tokens cut an input of ``size`` into equal cells.

    Families whose convolutions pad have their tokens a little beside the cells' centres; each
    map's sum stays what it is.
    """
    rows, columns = places.grid
    y = (np.arange(rows) + 0.5) * size[0] / rows
    x = (np.arange(columns) + 0.5) * size[1] / columns
    if np.allclose(y, places.y) and np.allclose(x, places.x):
        return heat
    moved = interpolation(places.y, y) @ heat @ interpolation(places.x, x).T
    moved = moved.astype(heat.dtype, copy=False)
    before, after = heat.sum((-2, -1), keepdims=True), moved.sum((-2, -1), keepdims=True)
    return moved * np.divide(before, after, out=np.ones_like(after), where=after != 0)


def overlaid(picture: Picture, heat: np.ndarray, places: Places, alpha: float = 0.6) -> np.ndarray:
    """The original picture under a map in colour, uint8 [h w 3]; grey where nobody looked.

    The map's own least value is dark blue and its greatest yellow.
    """
    drawn = onto_picture(heat, places, picture)
    seen = np.isfinite(drawn)
    low, high = float(heat.min()), float(heat.max())
    scaled = (drawn - low) / (high - low) if high - low > 1e-6 * abs(high) else 0 * drawn + 0.5
    colors = heat_colors(np.nan_to_num(scaled))
    pixels = picture.original.astype(np.float32)
    mixed = (1 - alpha) * pixels + alpha * colors
    grey = 0.5 * pixels.mean(2, keepdims=True) + 64
    return np.rint(np.where(seen[..., None], mixed, grey)).astype(np.uint8)
