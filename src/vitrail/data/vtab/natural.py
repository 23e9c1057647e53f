"""The seven natural tasks: Caltech101, CIFAR-100, DTD, Flowers102, Pets, SUN397, SVHN.

Keys, splits and labels as tensorflow_datasets/image_classification/*.py has them.
"""

import hashlib
from pathlib import Path, PurePosixPath

import numpy as np

from vitrail.data.decode import decode
from vitrail.data.vtab.archives import Store, Tar, Zip, find
from vitrail.data.vtab.extra import cv2, loadmat
from vitrail.data.vtab.listing import Changed, Listing, labelled, members, rows
from vitrail.kit.errors import Error

TRAIN_IMAGES_A_CLASS = 30  # Caltech101
CALTECH_SEED = 1234
SUN_PIXELS = 120_000
SUN_BROKEN = "/c/church/outdoor/sun_bhenjvsvrtumjuri.jpg"  # decoders disagree: left out there too
CIFAR_RECORD = 2 + 3 * 32 * 32


def caltech101(folder: Path, split: str) -> Listing | None:
    """30 images of each class for train, drawn with a seed, the rest for test."""
    top = "101_ObjectCategories"
    store = find(folder, ("101_ObjectCategories.tar.gz", "101_ObjectCategories.tar"), top)
    if store is None and (folder / "caltech-101.zip").is_file():
        outer = Zip(folder / "caltech-101.zip")
        inner = [name for name in outer.names if name.endswith(f"{top}.tar.gz")]
        if not inner:
            raise Error(f"{outer.path} has no {top}.tar.gz")
        store = Tar(outer.path, outer.read(inner[0]))
    if store is None:
        return None
    by_class: dict[str, list[str]] = {}
    for name in store.under(f"{top}/", ".jpg"):
        path = PurePosixPath(name)
        if not path.name.startswith("."):
            by_class.setdefault(path.parent.name, []).append(path.name)
    generator = np.random.RandomState(CALTECH_SEED)
    chosen: list[tuple[str, str]] = []
    for label in sorted(by_class):
        files = sorted(by_class[label])
        if len(files) < TRAIN_IMAGES_A_CLASS:
            raise Error(f"{store.path}: only {len(files)} images of {label}; is it whole?")
        train = set(generator.choice(files, TRAIN_IMAGES_A_CLASS, replace=False).tolist())
        chosen += [(label, file) for file in files if (file in train) == (split == "train")]
    names = [f"{top}/{label}/{file}" for label, file in chosen]
    keys = [f"{label}/{file}" for label, file in chosen]
    return labelled(keys, [label.lower() for label, _ in chosen], members(store, names))


def cifar100(folder: Path, split: str) -> Listing | None:
    """Records of two label bytes (coarse, fine) and 3,072 bytes of picture, planes R, G, B."""
    store = find(folder, ("cifar-100-binary.tar.gz", "cifar-100-binary.tar"), "cifar-100-binary")
    if store is None:
        if any(folder.glob("cifar-100-python*")):
            raise Error(f"{folder} holds CIFAR-100 as pickles: take cifar-100-binary.tar.gz")
        return None
    data = np.frombuffer(store.read(f"cifar-100-binary/{split}.bin"), np.uint8)
    if len(data) == 0 or len(data) % CIFAR_RECORD:
        raise Error(f"{store.path}: {split}.bin is cut short")
    records = data.reshape(-1, CIFAR_RECORD)
    images = records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    names = store.text("cifar-100-binary/fine_label_names.txt").split()
    labels = _within(store, records[:, 1].astype(np.int64), len(names))
    return Listing([str(i) for i in range(len(records))], labels, tuple(names), rows(images))


def dtd(folder: Path, split: str) -> Listing | None:
    """The first of the ten published partitions."""
    store = find(folder, ("dtd-r1.0.1.tar.gz", "dtd-r1.0.1.tar", "dtd.tar.gz"), "dtd")
    if store is None:
        return None
    part = {"train": "train1", "validation": "val1", "test": "test1"}[split]
    keys = store.text(f"dtd/labels/{part}.txt").split()
    names = [key.split("/")[0] for key in keys]
    return labelled(keys, names, members(store, [f"dtd/images/{key}" for key in keys]))


def flowers102(folder: Path, split: str) -> Listing | None:
    """Labels 1..102 in a MATLAB file; the class names are not part of what is published there."""
    store = find(folder, ("102flowers.tgz", "102flowers.tar"), "jpg")
    paths = folder / "imagelabels.mat", folder / "setid.mat"
    if store is None or not all(path.is_file() for path in paths):
        return None
    field = {"train": "trnid", "validation": "valid", "test": "tstid"}[split]
    labels, ids = loadmat(paths[0])["labels"].ravel(), loadmat(paths[1])[field].ravel()
    keys = [f"image_{i:05d}.jpg" for i in ids.tolist()]
    chosen = labels[ids.astype(np.int64) - 1].astype(np.int64) - 1
    classes = tuple(str(k + 1) for k in range(102))
    return Listing(
        keys, _within(store, chosen, 102), classes, members(store, [f"jpg/{key}" for key in keys])
    )


def pets(folder: Path, split: str) -> Listing | None:
    """Lines of ``name class species breed`` in annotations/trainval.txt and test.txt."""
    images = find(folder, ("images.tar.gz", "images.tar"), "images")
    notes = find(folder, ("annotations.tar.gz", "annotations.tar"), "annotations")
    if images is None or notes is None:
        return None
    names: dict[int, str] = {}
    keys, labels = [], []
    part = {"train": "trainval", "test": "test"}
    for name in part.values():
        for line in notes.text(f"annotations/{name}.txt").splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            image, label = line.split()[:2]
            names[int(label) - 1] = image.rpartition("_")[0]
            if name == part[split]:
                keys.append(f"{image}.jpg")
                labels.append(int(label) - 1)
    classes = tuple(names[k] for k in sorted(names))
    return Listing(
        keys,
        _within(notes, np.array(labels, np.int64), len(classes)),
        classes,
        members(images, [f"images/{key}" for key in keys]),
    )


def sun397(folder: Path, split: str) -> Listing | None:
    """Pictures of at most 120,000 pixels, as the builder ``sun397/tfds`` makes them."""
    store = find(folder, ("SUN397.tar", "SUN397.tar.gz"), "SUN397")
    if store is None:
        return None
    everything = [name.removeprefix("SUN397") for name in store.under("SUN397/", ".jpg")]
    published = {"train": "tr", "validation": "va", "test": "te"}
    path = folder / f"sun397_tfds_{published[split]}.txt"
    if path.is_file():
        wanted = set(path.read_text().split())
        lost = sorted(wanted - set(everything))
        if lost:
            raise Error(f"{store.path} lacks {len(lost):,} images of {path.name}, first {lost[0]}")
        keys = [key for key in everything if key in wanted]
    else:
        keys = _seeded_share([key for key in everything if key != SUN_BROKEN], split)
    classes = tuple(sorted({key.rpartition("/")[0] for key in everything}))
    index = {name: k for k, name in enumerate(classes)}
    labels = np.array([index[key.rpartition("/")[0]] for key in keys], np.int64)
    fetch = members(store, [f"SUN397{key}" for key in keys])
    return Listing(keys, labels, classes, lambda places: Changed(fetch(places), _sun_picture))


def svhn(folder: Path, split: str) -> Listing | None:
    """MATLAB files: X uint8 [32 32 3 n], y [n 1] with 10 for the digit 0."""
    path = folder / f"{split}_32x32.mat"
    if not path.is_file():
        return None
    data = loadmat(path)
    images = np.moveaxis(data["X"], -1, 0)
    labels = data["y"].ravel().astype(np.int64) % 10
    classes = tuple(map(str, range(10)))
    return Listing([str(i) for i in range(len(labels))], labels, classes, rows(images))


def _sun_picture(data: bytes | np.ndarray) -> bytes:
    """As tensorflow_datasets' sun.py: scaled down by OpenCV, JPEG at its default quality."""
    tools = cv2()
    image = decode(bytes(data))[..., ::-1]
    pixels = image.shape[0] * image.shape[1]
    if pixels > SUN_PIXELS:
        factor = (SUN_PIXELS / pixels) ** 0.5
        image = tools.resize(np.ascontiguousarray(image), None, fx=factor, fy=factor)
    return tools.imencode(".jpg", np.ascontiguousarray(image))[1].tobytes()


def _seeded_share(keys: list[str], split: str) -> list[str]:
    """70, 10 or 20 % of the keys, in an order that is a hash of each."""
    mixed = sorted(keys, key=lambda key: hashlib.sha256(f"vitrail{key}".encode()).digest())
    train, val = 70 * len(keys) // 100, 80 * len(keys) // 100
    return {"train": mixed[:train], "validation": mixed[train:val], "test": mixed[val:]}[split]


def _within(store: Store, labels: np.ndarray, classes: int) -> np.ndarray:
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise Error(f"{store.path}: labels outside of the {classes} classes")
    return labels
