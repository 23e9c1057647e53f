"""The eight structured tasks: CLEVR (two), DMLab, KITTI, dSprites (two), smallNORB (two)."""

import itertools
import json
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from vitrail.data.vtab.archives import Store, find, gunzipped
from vitrail.data.vtab.extra import open_h5
from vitrail.data.vtab.listing import Listing, Rows, members
from vitrail.data.vtab.records import frames
from vitrail.kit.errors import Error

CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
KITTI_NO_VEHICLE = 1000.0
KITTI_VEHICLES = ("Car", "Van", "Truck")
KITTI_SEED = 123
DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64"
DSPRITES_COLUMNS = {"orientation": (3, 40), "location": (4, 32)}  # column, values
DSPRITES_CLASSES = 16
NORB = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing",
}
NORB_TYPES = {0x1E3D4C55: np.dtype("u1"), 0x1E3D4C54: np.dtype("<i4")}  # byte and int matrices


def clevr(task: str) -> Callable[[Path, str], Listing | None]:
    """``count``: how many objects, less 3; ``distance``: how near the nearest one is."""

    def read(folder: Path, split: str) -> Listing | None:
        store = find(folder, ("CLEVR_v1.0.zip",), "CLEVR_v1.0")
        if store is None:
            return None
        part = {"train": "train", "validation": "val"}[split]
        scenes = _json(store, f"CLEVR_v1.0/scenes/CLEVR_{part}_scenes.json")["scenes"]
        names = store.under(f"CLEVR_v1.0/images/{part}/", ".png")
        if len(names) != len(scenes):
            raise Error(f"{store.path}: {len(names):,} pictures of {part}, {len(scenes):,} scenes")
        if task == "count":
            labels = [len(scene["objects"]) - 3 for scene in scenes]
            classes = tuple(f"{k} objects" for k in range(3, 11))
        else:
            nearest = [min(o["pixel_coords"][2] for o in scene["objects"]) for scene in scenes]
            labels = [last_below(CLEVR_DISTANCES, distance) for distance in nearest]
            classes = _spans(CLEVR_DISTANCES)
        keys = [PurePosixPath(name).name for name in names]
        return Listing(keys, np.array(labels, np.int64), classes, members(store, names))

    return read


def dmlab(folder: Path, split: str) -> Listing | None:
    """TFRecord files of examples with ``image`` (JPEG), ``filename`` and ``label``."""
    paths = sorted(folder.rglob(f"dmlab-{split}.tfrecord*"))
    if not paths:
        if (folder / "dmlab.tar.gz").is_file():
            raise Error(f"{folder / 'dmlab.tar.gz'} has to be unpacked there first: tar -xzf it")
        return None
    found = [frame for path in paths for frame in frames(path)]
    # {close, far, very far} x {positive, negative reward}; which is which is not published.
    classes = tuple(map(str, range(6)))
    labels = np.array([frame.label for frame in found], np.int64)
    return Listing(
        [frame.key for frame in found],
        labels,
        classes,
        lambda places: _Frames([found[i] for i in places]),
    )


def kitti(folder: Path, split: str) -> Listing | None:
    """How near the nearest car, van or truck is; the splits keep videos together."""
    images = find(folder, ("data_object_image_2.zip",), "training/image_2")
    notes = find(folder, ("data_object_label_2.zip",), "training/label_2")
    kit = find(folder, ("devkit_object.zip",), "mapping")
    if images is None or notes is None or kit is None:
        return None
    wanted = kitti_splits(kit)[split]
    labels = [_nearest_vehicle(notes, f"training/label_2/{i:06d}.txt") for i in wanted]
    keys = [f"{i:06d}.png" for i in wanted]
    classes = ("closer than 8 m", "8 to 20 m", "farther than 20 m", "no vehicle")
    return Listing(
        keys,
        np.array(labels, np.int64),
        classes,
        members(images, [f"training/image_2/{key}" for key in keys]),
    )


def dsprites(factor: str) -> Callable[[Path, str], Listing | None]:
    """White sprites, 64x64; ``location`` is along x, ``orientation`` of 40 angles, both in 16."""
    column, values = DSPRITES_COLUMNS[factor]

    def read(folder: Path, split: str) -> Listing | None:
        npz, hdf5 = folder / f"{DSPRITES}.npz", folder / f"{DSPRITES}.hdf5"
        if npz.is_file():
            classes = _npz_rows(npz, "latents_classes", None)
            pictures = lambda places: Rows(_npz_rows(npz, "imgs", places) * 255)  # noqa: E731
        elif hdf5.is_file():
            with open_h5(hdf5) as file:
                classes = np.asarray(file["latents"]["classes"])
            pictures = lambda places: Rows(_h5_rows(hdf5, "imgs", places) * 255)  # noqa: E731
        else:
            return None
        labels = (classes[:, column] // (values / DSPRITES_CLASSES)).astype(np.int64)
        names = tuple(f"{factor} {k}" for k in range(DSPRITES_CLASSES))
        return Listing([str(i) for i in range(len(labels))], labels, names, pictures)

    return read


def smallnorb(factor: str) -> Callable[[Path, str], Listing | None]:
    """Toys by the first of two cameras, 96x96 grey; info: instance, elevation, azimuth, light."""

    def read(folder: Path, split: str) -> Listing | None:
        data, info = (
            _gzipped_or_not(folder, f"{NORB[split]}-{kind}.mat") for kind in ("dat", "info")
        )
        if data is None or info is None:
            return None
        about = norb_matrix(info)
        images = norb_matrix(data)
        if len(images) != len(about) or images.ndim != 4 or about.shape[1:] != (4,):
            raise Error(f"{data}: {list(images.shape)} pictures beside {list(about.shape)} labels")
        if factor == "azimuth":
            labels, classes = about[:, 2] // 2, tuple(f"{20 * k} degrees" for k in range(18))
        else:
            labels, classes = about[:, 1], tuple(f"{30 + 5 * k} degrees" for k in range(9))
        keys = [str(i) for i in range(len(labels))]
        return Listing(
            keys, labels.astype(np.int64), classes, lambda places: Rows(images[places, 0])
        )

    return read


def last_below(thresholds: tuple[float, ...], value: float) -> int:
    """The place of the last threshold that lies below a value (task_adaptation's label rule)."""
    return int(np.flatnonzero(np.array(thresholds) < value).max())


def norb_matrix(path: Path) -> np.ndarray:
    """A matrix in NORB's binary form: magic, number of dimensions, at least three sizes, data.

    Raises:
        Error: another kind of file, or one cut short.
    """
    data = gunzipped(path)
    try:
        magic, count = struct.unpack_from("<ii", data)
        shape = struct.unpack_from(f"<{count}i", data, 8)
        kind = NORB_TYPES[magic]
        start = 8 + 4 * max(3, count)
        return np.frombuffer(data, kind, int(np.prod(shape)), start).reshape(shape)
    except (struct.error, KeyError, ValueError):
        raise Error(f"{path} is cut short, or no matrix of NORB") from None


def kitti_splits(kit: Store) -> dict[str, list[int]]:
    """Image numbers by split: a tenth of the videos each for validation and test, drawn seeded.

    As tensorflow_datasets/object_detection/kitti.py, from the development kit's mapping of images
    to videos.
    """
    try:
        lines = kit.text("mapping/train_mapping.txt").splitlines()
        picks = [int(word) - 1 for word in kit.text("mapping/train_rand.txt").split(",")]
        videos: dict[str, list[int]] = defaultdict(list)
        for image, line in enumerate(picks):
            videos[lines[line].split(" ")[1]].append(image)
    except (ValueError, IndexError):
        raise Error(f"{kit.path}: its mapping of images to videos is damaged") from None
    count = max(1, len(videos) // 10)
    if len(videos) < 3:
        raise Error(f"{kit.path}: only {len(videos)} videos; is it whole?")
    generator = np.random.RandomState(KITTI_SEED)
    test = set(generator.choice(sorted(videos), count, replace=False))
    val = set(generator.choice(sorted(set(videos) - test), count, replace=False))
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for video, images in videos.items():
        splits["test" if video in test else "validation" if video in val else "train"] += images
    return splits


class _Frames:
    def __init__(self, chosen: list[Any]):
        self.chosen = chosen

    def __call__(self, k: int) -> bytes:
        return self.chosen[k].read()


def _nearest_vehicle(notes: Store, name: str) -> int:
    nearest = KITTI_NO_VEHICLE
    for line in notes.text(name).splitlines():
        words = line.split()
        if not words:
            continue
        try:
            if words[0] in KITTI_VEHICLES:
                nearest = min(nearest, float(words[13]))
        except (IndexError, ValueError):
            raise Error(f"{notes.path}: {name} is damaged") from None
    return last_below(KITTI_DISTANCES, nearest)


def _spans(thresholds: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(f"{low:g} to {high:g}" for low, high in itertools.pairwise(thresholds))


def _json(store: Store, name: str) -> Any:
    try:
        return json.loads(store.read(name))
    except ValueError:
        raise Error(f"{store.path}: {name} is damaged") from None


def _gzipped_or_not(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _npz_rows(path: Path, name: str, places: np.ndarray | None) -> np.ndarray:
    """Rows of an array of an npz, streamed: dSprites' pictures are 3 GB once unpacked."""
    try:
        with zipfile.ZipFile(path) as packed, packed.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            reader = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            shape, fortran, kind = reader(file)
            if fortran or kind.hasobject:
                raise ValueError(f"{name} is no plain array in C order")
            return _streamed(file, shape, kind, places)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, ValueError) as error:
        raise Error(f"{path} cannot be read: cut short, or no npz ({error})") from None


def _streamed(
    file: IO[bytes], shape: tuple[int, ...], kind: np.dtype, places: np.ndarray | None
) -> np.ndarray:
    chosen = np.arange(shape[0]) if places is None else places
    kept = np.empty((len(chosen), *shape[1:]), kind)
    order = np.argsort(chosen, kind="stable")
    row, block = kind.itemsize * int(np.prod(shape[1:])), 4096
    done = 0
    for start in range(0, shape[0], block):
        count = min(block, shape[0] - start)
        data = file.read(row * count)
        if len(data) < row * count:
            raise EOFError("ends too early")
        rows = np.frombuffer(data, kind).reshape(count, *shape[1:])
        while done < len(order) and chosen[order[done]] < start + count:
            kept[order[done]] = rows[chosen[order[done]] - start]
            done += 1
        if done == len(order):
            break
    return kept


def _h5_rows(path: Path, name: str, places: np.ndarray) -> np.ndarray:
    with open_h5(path) as file:
        order = np.argsort(places, kind="stable")
        kept = np.empty((len(places), *file[name].shape[1:]), file[name].dtype)
        kept[order] = file[name][places[order]]
        return kept
