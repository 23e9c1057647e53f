"""The four specialised tasks: Patch Camelyon, EuroSAT, RESISC45, Diabetic Retinopathy."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from vitrail.data.examples import read_file
from vitrail.data.vtab.archives import Store, find
from vitrail.data.vtab.extra import cv2, open_h5
from vitrail.data.vtab.listing import Changed, Listing, labelled, members
from vitrail.kit.errors import Error

RADIUS = 300  # pixels, of the eyeball in the pictures of Retinopathy
KEPT_RADIUS = 0.9
JPEG_QUALITY = 72


def camelyon(folder: Path, split: str) -> Listing | None:
    """HDF5: x uint8 [n 96 96 3], y [n 1 1 1]."""
    part = {"train": "train", "validation": "valid", "test": "test"}[split]
    images, labels = (folder / f"camelyonpatch_level_2_split_{part}_{letter}.h5" for letter in "xy")
    if not (images.is_file() and labels.is_file()):
        if images.with_suffix(".h5.gz").is_file():
            raise Error(f"{images}.gz has to be unpacked first: gunzip it (and the others)")
        return None
    with open_h5(labels) as file:
        values = np.asarray(file["y"]).reshape(-1).astype(np.int64)
    keys = [f"{part}_{i}" for i in range(len(values))]
    return Listing(
        keys, values, ("no tumor", "tumor"), lambda places: _HDF5Rows(images, "x", places)
    )


def eurosat(folder: Path, split: str) -> Listing | None:
    """EuroSAT's RGB pictures: ``2750/CLASS/CLASS_1.jpg``."""
    return _by_folder(find(folder, ("EuroSAT.zip", "EuroSAT_RGB.zip"), "2750"))


def resisc45(folder: Path, split: str) -> Listing | None:
    """``NWPU-RESISC45/CLASS/CLASS_001.jpg``; the publisher's RAR has to be unpacked."""
    store = find(folder, ("NWPU-RESISC45.zip",), "NWPU-RESISC45")
    if store is None and any(folder.glob("*.rar")):
        raise Error(f"{folder}: unpack the .rar of RESISC45 there first, to NWPU-RESISC45/")
    return _by_folder(store)


def retinopathy(folder: Path, split: str) -> Listing | None:
    """Kaggle's pictures and levels, processed as the winner of 2015 did (``btgraham-300``)."""
    table = folder / ("trainLabels.csv" if split == "train" else "retinopathy_solution.csv")
    store = find(folder, (), "train" if split == "train" else "test")
    if store is None or not table.is_file():
        return None
    usage = {"train": None, "validation": "Public", "test": "Private"}[split]
    found = list(_levels(table, usage))
    part = "train" if split == "train" else "test"
    fetch = members(store, [f"{part}/{name}.jpeg" for name, _ in found])
    return Listing(
        [name for name, _ in found],
        np.array([level for _, level in found], np.int64),
        ("no DR", "mild", "moderate", "severe", "proliferative DR"),
        lambda places: Changed(fetch(places), retina),
    )


def retina(data: bytes | np.ndarray) -> bytes:
    """A retina as Ben Graham's processing leaves it, JPEG.

    Scaled so that the eyeball's radius is 300 pixels, the local average subtracted, everything
    outside of 90 % of the radius grey and cut off
    (tensorflow_datasets/image_classification/diabetic_retinopathy_detection.py).

    Raises:
        Error: no picture.
    """
    tools = cv2()
    image = tools.imdecode(np.frombuffer(bytes(data), np.uint8), tools.IMREAD_COLOR)
    if image is None:
        raise Error("cannot be decoded")
    middle = image[image.shape[0] // 2].sum(axis=1)
    radius = (middle > middle.mean() / 10).sum() / 2
    scale = RADIUS / (radius if radius >= 1 else image.shape[0] / 2)
    image = tools.resize(image, None, fx=scale, fy=scale)
    blurred = tools.GaussianBlur(image, (0, 0), RADIUS / 30)
    image = tools.addWeighted(image, 4, blurred, -4, 128)
    kept, (height, width) = int(RADIUS * KEPT_RADIUS), image.shape[:2]
    mask = np.zeros(image.shape)
    tools.circle(mask, (width // 2, height // 2), kept, (1, 1, 1), thickness=-1)
    image = image * mask + (1 - mask) * 128
    top, left = max(height // 2 - kept, 0), max(width // 2 - kept, 0)
    image = image[top : min(height // 2 + kept, height), left : min(width // 2 + kept, width)]
    return tools.imencode(".jpg", image, [tools.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


class _HDF5Rows:
    """Rows of an HDF5 data set, read one at a time; each process opens the file for itself."""

    def __init__(self, path: Path, name: str, places: np.ndarray):
        self.path, self.name, self.places = path, name, places
        self._open: tuple[int, object] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": None}

    def __call__(self, k: int) -> np.ndarray:
        """The k-th chosen row."""
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), open_h5(self.path)[self.name]
        try:
            return np.asarray(self._open[1][int(self.places[k])])  # type: ignore[index]
        except OSError as error:
            raise Error(f"is damaged ({error})") from None


def _by_folder(store: Store | None) -> Listing | None:
    """A listing of ``top/CLASS/FILE.jpg``, keyed ``CLASS_FILE.jpg`` as the builders do."""
    if store is None:
        return None
    names = [name for name in store.under("", ".jpg") if len(PurePosixPath(name).parts) == 3]
    if not names:
        raise Error(f"{store.path} holds no pictures in folders of their classes")
    labels = [PurePosixPath(name).parent.name for name in names]
    keys = [
        f"{label}_{PurePosixPath(name).name}" for label, name in zip(labels, names, strict=True)
    ]
    return labelled(keys, labels, members(store, names))


def _levels(table: Path, usage: str | None) -> Iterator[tuple[str, int]]:
    for line, row in enumerate(csv.DictReader(read_file(table).decode().splitlines()), 2):
        try:
            if usage is None or row["Usage"] == usage:
                yield row["image"], int(row["level"])
        except (KeyError, TypeError, ValueError):
            raise Error(f"{table}: line {line} is not 'image,level' (with Usage)") from None
