"""Every task, read from a small archive in its publisher's own layout."""

import csv
import gzip
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.vtab import publishers as made
from vitrail.data.decode import decode
from vitrail.data.examples import Source
from vitrail.data.vtab import TASKS, open_task, where
from vitrail.data.vtab.selection import published_order
from vitrail.data.vtab.specialised import retina
from vitrail.kit.errors import Error

pytest.importorskip("scipy", reason="the extra [vtab] is not installed")
pytest.importorskip("h5py", reason="the extra [vtab] is not installed")


def pixel(source: Source, i: int) -> tuple[int, ...]:
    """The middle pixel of an example."""
    image = source.image(i)
    array = decode(image) if isinstance(image, bytes) else image
    assert array.dtype == np.uint8
    assert array.shape[2] == 3
    return tuple(array[array.shape[0] // 2, array.shape[1] // 2].tolist())


def near(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 12  # JPEG


def check(
    root: Path, task: str, truth: dict[str, dict[str, tuple[int, int]]], test: int | None = None
) -> dict[str, Source]:
    """The sizes, the published selection, and for every example its label and its picture.

    `truth` has, by split and key, (number of the picture, label).
    """
    parts = open_task(root, task)
    assert len(parts["train800"]) == 800
    assert len(parts["val200"]) == 200
    assert parts["train800val200"].keys == [*parts["train800"].keys, *parts["val200"].keys]
    if test is not None:
        assert len(parts["test"]) == test
    everything = {key: value for split in truth.values() for key, value in split.items()}
    first = published_order(list(truth["train"]), "train")[:800]
    assert parts["train800"].keys == [list(truth["train"])[i] for i in first]
    for name, source in parts.items():
        table = truth["train"] if name == "train800" and len(truth) > 1 else everything
        assert source.labels.tolist() == [table[key][1] for key in source.keys], name
        for i in range(0, len(source), max(1, len(source) // 20)):
            number, _ = table[source.keys[i]]
            assert near(pixel(source, i), made.colour(number)), (name, source.keys[i])
    return parts


def test_caltech101(tmp_path):
    files, by_class = {}, {}
    for k in range(102):
        label = "BACKGROUND_Google" if k == 0 else f"Thing_{k:03d}"
        by_class[label] = [f"image_{i:04d}.jpg" for i in range(31 + k % 3)]
        for i, file in enumerate(by_class[label]):
            files[f"101_ObjectCategories/{label}/{file}"] = made.PICTURES[(k * 31 + i) % 216]
        files[f"101_ObjectCategories/{label}/._image_0001.jpg"] = b"left by a Mac"
    made.write_tar(tmp_path / "caltech101/101_ObjectCategories.tar.gz", files)
    parts = open_task(tmp_path, "caltech101")
    assert parts["test"].classes[0] == "background_google"
    # numpy's legacy generator is frozen: the same 30 of each class, drawn class by class.
    generator = np.random.RandomState(1234)
    train = {
        f"{label}/{file}"
        for label in sorted(by_class)
        for file in generator.choice(by_class[label], 30, replace=False)
    }
    assert set(parts["train800val200"].keys) <= train
    assert len(parts["test"]) == sum(map(len, by_class.values())) - len(train)
    assert not set(parts["test"].keys) & train
    # The same from the zip that the tar is published in, and unpacked.
    inner = (tmp_path / "caltech101/101_ObjectCategories.tar.gz").read_bytes()
    zipped = {"caltech-101/101_ObjectCategories.tar.gz": inner}
    made.write_zip(tmp_path / "zipped/caltech101/caltech-101.zip", zipped)
    made.write_files(tmp_path / "unpacked/caltech101", files)
    for other in ("zipped", "unpacked"):
        again = open_task(tmp_path / other, "caltech101")
        for name, source in parts.items():
            assert again[name].keys == source.keys
            assert again[name].image(5) == source.image(5)


def cifar100_archive(folder: Path) -> tuple[dict, dict]:
    names = "\n".join(f"fine{k}" for k in range(100)) + "\n"
    labels = {"train": [(7 * i) % 100 for i in range(2050)], "test": [i % 100 for i in range(120)]}
    files = {"cifar-100-binary/fine_label_names.txt": names.encode()}
    for split, values in labels.items():
        files[f"cifar-100-binary/{split}.bin"] = made.cifar100_records(values)
    made.write_tar(folder / "cifar-100-binary.tar.gz", files)
    truth = {s: {str(i): (i, k) for i, k in enumerate(v)} for s, v in labels.items()}
    return truth["train"], truth["test"]


def test_cifar100(tmp_path):
    train, test = cifar100_archive(tmp_path / "cifar100")
    parts = open_task(tmp_path, "cifar100")
    assert parts["test"].classes[3] == "fine3"
    for name, truth in (("train800", train), ("val200", train), ("test", test)):
        source = parts[name]
        assert source.labels.tolist() == [truth[key][1] for key in source.keys]
        for i in range(0, len(source), 7):
            assert pixel(source, i) == made.colour(truth[source.keys[i]][0])
    order = published_order([str(i) for i in range(2050)], "train")
    assert parts["val200"].keys == [str(i) for i in order[1845:2045]]


def test_dtd(tmp_path):
    files, truth, number = {}, {}, 0
    for split, part, count in (
        ("train", "train1", 18),
        ("validation", "val1", 5),
        ("test", "test1", 2),
    ):
        truth[split], lines = {}, []
        for k in range(47):
            for i in range(count):
                key = f"texture{k:02d}/texture{k:02d}_{part}{i:04d}.jpg"
                files[f"dtd/images/{key}"] = made.PICTURES[number % 216]
                truth[split][key] = (number % 216, k)
                lines.append(key)
                number += 1
        files[f"dtd/labels/{part}.txt"] = ("\n".join(lines) + "\n").encode()
    made.write_tar(tmp_path / "dtd/dtd-r1.0.1.tar.gz", files, "w")  # plain, despite its name
    check(tmp_path, "dtd", truth, test=94)


def test_flowers102(tmp_path):
    from scipy.io import savemat

    folder = tmp_path / "flowers102"
    count = 1020 + 204 + 102
    labels = np.arange(count) % 102 + 1
    ids = np.random.default_rng(0).permutation(count) + 1
    parts = {"trnid": ids[:1020], "valid": ids[1020:1224], "tstid": ids[1224:]}
    made.write_tar(
        folder / "102flowers.tgz",
        {f"jpg/image_{i:05d}.jpg": made.PICTURES[i % 216] for i in range(1, count + 1)},
    )
    savemat(folder / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    savemat(folder / "setid.mat", {k: v[None].astype(np.uint16) for k, v in parts.items()})
    truth = {
        split: {f"image_{i:05d}.jpg": (i % 216, int(labels[i - 1]) - 1) for i in parts[name]}
        for split, name in (("train", "trnid"), ("validation", "valid"), ("test", "tstid"))
    }
    check(tmp_path, "flowers102", truth, test=102)


def test_pets(tmp_path):
    files, truth, lines = (
        {},
        {"train": {}, "test": {}},
        {"trainval": ["#Image CLASS-ID"], "test": []},
    )
    for k in range(37):
        breed = f"{'Cat' if k % 2 else 'dog'}_breed_{k}"
        for i in range(30):
            part, split = ("test", "test") if i == 29 else ("trainval", "train")
            image = f"{breed}_{i}"
            number = (k * 30 + i) % 216
            files[f"images/{image}.jpg"] = made.PICTURES[number]
            lines[part].append(f"{image} {k + 1} {1 + k % 2} 1")
            truth[split][f"{image}.jpg"] = (number, k)
    made.write_tar(tmp_path / "pets/images.tar.gz", files)
    notes = {f"annotations/{n}.txt": ("\n".join(v) + "\n").encode() for n, v in lines.items()}
    made.write_tar(tmp_path / "pets/annotations.tar.gz", notes)
    parts = check(tmp_path, "pets", truth, test=37)
    assert parts["test"].classes[:2] == ("dog_breed_0", "Cat_breed_1")


def test_sun397(tmp_path):
    pytest.importorskip("cv2")
    folder = tmp_path / "sun397"
    classes = [f"/{chr(97 + k % 26)}/place{k:03d}" for k in range(397)]
    truth: dict[str, dict[str, tuple[int, int]]] = {}
    number = 0
    for split, part, count in (("train", "tr", 4), ("validation", "va", 1), ("test", "te", 1)):
        truth[split] = {}
        for name in classes:
            for i in range(count):
                key = f"{name}/sun_{part}{i}.jpg"
                truth[split][key] = (number % 216, sorted(classes).index(name))
                number += 1
        (folder / "SUN397").mkdir(parents=True, exist_ok=True)
        (folder / f"sun397_tfds_{part}.txt").write_text("\n".join(truth[split]) + "\n")
    files = {
        f"SUN397{key}": made.PICTURES[n]
        for split in truth.values()
        for key, (n, _) in split.items()
    }
    made.write_files(folder, files)
    parts = check(tmp_path, "sun397", truth, test=397)
    assert parts["test"].image(0)[:2] == b"\xff\xd8"  # made a JPEG, as the published pictures are
    # A large picture is scaled to 120,000 pixels.
    large = io.BytesIO()
    Image.new("RGB", (1200, 400)).save(large, "JPEG")
    key = parts["test"].keys[0]
    (folder / f"SUN397{key}").write_bytes(large.getvalue())
    image = decode(open_task(tmp_path, "sun397")["test"].image(0))
    assert image.shape[:2] == (200, 600)
    # Without the lists: 70/10/20 %, each image in one part.
    for path in folder.glob("*.txt"):
        path.unlink()
    parts = open_task(tmp_path, "sun397")
    assert len(parts["test"]) == 397 * 6 - 80 * 397 * 6 // 100
    assert not set(parts["test"].keys) & set(parts["train800val200"].keys)


def test_svhn(tmp_path):
    from scipy.io import savemat

    folder = tmp_path / "svhn"
    folder.mkdir()
    truth = {}
    for split, n in (("train", 2050), ("test", 60)):
        digits = np.arange(n) % 10 + 1  # 10 is the digit 0
        colours = np.array([made.colour(i) for i in range(n)], np.uint8)
        images = np.broadcast_to(colours.T[None, None], (32, 32, 3, n))
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": digits[:, None].astype(np.uint8)})
        truth[split] = {str(i): (i, int(d) % 10) for i, d in enumerate(digits)}
    parts = open_task(tmp_path, "svhn")
    for name, split in (("train800", "train"), ("val200", "train"), ("test", "test")):
        source = parts[name]
        assert source.labels.tolist() == [truth[split][key][1] for key in source.keys]
        assert all(pixel(source, i) == made.colour(int(source.keys[i])) for i in range(0, 60, 7))


def test_camelyon(tmp_path):
    import h5py

    folder = tmp_path / "camelyon"
    folder.mkdir()
    truth = {}
    for split, part, n in (
        ("train", "train", 820),
        ("validation", "valid", 210),
        ("test", "test", 50),
    ):
        images = np.zeros((n, 96, 96, 3), np.uint8)
        images[:] = np.array([made.colour(i) for i in range(n)], np.uint8)[:, None, None]
        start = folder / f"camelyonpatch_level_2_split_{part}"
        with h5py.File(f"{start}_x.h5", "w") as file:
            file.create_dataset("x", data=images, chunks=(10, 96, 96, 3), compression="lzf")
        with h5py.File(f"{start}_y.h5", "w") as file:
            file["y"] = (np.arange(n) % 2).astype(np.uint8).reshape(n, 1, 1, 1)
        truth[split] = {f"{part}_{i}": (i, i % 2) for i in range(n)}
    check(tmp_path, "camelyon", truth, test=50)


@pytest.mark.parametrize(
    ("task", "archive", "top", "classes", "each"),
    [("eurosat", "EuroSAT.zip", "2750", 10, 105), ("resisc45", None, "NWPU-RESISC45", 45, 24)],
)
def test_folders_of_classes(tmp_path, task, archive, top, classes, each):
    names = [f"Class{chr(65 + k // 26)}{chr(65 + k % 26)}" for k in range(classes)]
    files, truth = {}, {"train": {}}
    for k, name in enumerate(names):
        for i in range(each):
            number = (k * each + i) % 216
            files[f"{top}/{name}/{name}_{i + 1}.jpg"] = made.PICTURES[number]
            truth["train"][f"{name}_{name}_{i + 1}.jpg"] = (number, k)
    if archive:
        made.write_zip(tmp_path / task / archive, files)
    else:
        made.write_files(tmp_path / task, files)
    n = classes * each
    parts = check(tmp_path, task, truth, test=n - 80 * n // 100)
    order = published_order(list(truth["train"]), "train")
    keys = list(truth["train"])
    assert parts["test"].keys == [keys[i] for i in order[80 * n // 100 :]]


def test_retinopathy(tmp_path):
    pytest.importorskip("cv2")
    folder = tmp_path / "retinopathy"
    (folder / "train").mkdir(parents=True)
    (folder / "test").mkdir()
    eye = Image.new("RGB", (90, 60))
    disc = np.hypot(*np.mgrid[-30:30, -45:45]) < 25
    eye = Image.fromarray(np.where(disc[..., None], 150, 0).astype(np.uint8).repeat(3, 2))
    eye.save(folder / "eye.jpeg", quality=95)
    with open(folder / "trainLabels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "level"])
        for i in range(820):
            writer.writerow([f"{i}_left", i % 5])
            (folder / f"train/{i}_left.jpeg").hardlink_to(folder / "eye.jpeg")
    with open(folder / "retinopathy_solution.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "level", "Usage"])
        for i in range(260):
            writer.writerow([f"{i}_right", (i + 1) % 5, "Public" if i < 210 else "Private"])
            (folder / f"test/{i}_right.jpeg").hardlink_to(folder / "eye.jpeg")
    parts = open_task(tmp_path, "retinopathy")
    assert len(parts["test"]) == 50
    assert all(key.endswith("_right") for key in parts["val200"].keys)
    assert [int(k.split("_")[0]) % 5 for k in parts["train800"].keys] == parts[
        "train800"
    ].labels.tolist()
    picture = decode(parts["test"].image(0))
    # 90 % of a radius of 300 on each side; grey outside of it and where nothing varies.
    assert picture.shape[:2] == (540, 540)
    assert near(tuple(picture[2, 2]), (128, 128, 128))
    assert near(tuple(picture[270, 270]), (128, 128, 128))
    with pytest.raises(Error, match="cannot be decoded"):
        retina(b"no picture")


def clevr_archive(folder: Path) -> dict:
    rng = np.random.default_rng(0)
    files, truth = {}, {}
    for split, part, n in (("train", "train", 2050), ("validation", "val", 40)):
        counts = (np.arange(n) % 8 + 3).tolist()
        distances = rng.uniform(7, 11, n).round(3).tolist()
        files[f"CLEVR_v1.0/scenes/CLEVR_{part}_scenes.json"] = made.clevr_scenes(counts, distances)
        for i in range(n):
            files[f"CLEVR_v1.0/images/{part}/CLEVR_{part}_{i:06d}.png"] = made.PICTURES[i % 216]
        truth[split] = {
            f"CLEVR_{part}_{i:06d}.png": (i % 216, count, distance)
            for i, (count, distance) in enumerate(zip(counts, distances, strict=True))
        }
    made.write_zip(folder / "CLEVR_v1.0.zip", files)
    return truth


def test_clevr(tmp_path):
    truth = clevr_archive(tmp_path / "clevr")
    counts = {s: {k: (n, c - 3) for k, (n, c, _) in v.items()} for s, v in truth.items()}
    check(tmp_path, "clevr_count", counts, test=40)
    steps = [8.0, 8.5, 9.0, 9.5, 10.0]
    distances = {
        s: {k: (n, sum(d > step for step in steps)) for k, (n, _, d) in v.items()}
        for s, v in truth.items()
    }
    parts = check(tmp_path, "clevr_distance", distances, test=40)
    assert set(parts["train800"].labels.tolist()) == set(range(6))


def test_dmlab(tmp_path):
    folder = tmp_path / "dmlab"
    folder.mkdir()
    truth: dict[str, dict[str, tuple[int, int]]] = {}
    jpegs = [made.picture(i, "JPEG") for i in range(216)]
    for split, n in (("train", 820), ("validation", 210), ("test", 50)):
        truth[split] = {f"{split}_{i:05d}.jpg": (i % 216, i % 6) for i in range(n)}
        records = [
            made.tfrecord(made.tf_example(jpegs[number], key, label, packed=number % 2 == 0))
            for key, (number, label) in truth[split].items()
        ]
        half = n // 2
        (folder / f"dmlab-{split}.tfrecord-00000-of-00002").write_bytes(b"".join(records[:half]))
        (folder / f"dmlab-{split}.tfrecord-00001-of-00002").write_bytes(b"".join(records[half:]))
    check(tmp_path, "dmlab", truth, test=50)
    path = folder / "dmlab-test.tfrecord-00001-of-00002"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(Error, match="is cut short"):
        open_task(tmp_path, "dmlab")
    path.write_bytes(whole[:3] + b"\xff" + whole[4:])
    with pytest.raises(Error, match="damaged at byte 0"):
        open_task(tmp_path, "dmlab")


def test_kitti(tmp_path):
    folder = tmp_path / "kitti"
    videos, each = 12, 210
    n = videos * each
    # Line i of the mapping: date, drive, frame; the random list has each image's line, from 1.
    lines = [f"2011_09_26 2011_09_26_drive_{i // each:04d}_sync {i % each:010d}" for i in range(n)]
    picks = np.random.default_rng(0).permutation(n) + 1
    made.write_zip(
        folder / "devkit_object.zip",
        {
            "mapping/train_rand.txt": ",".join(map(str, picks)).encode(),
            "mapping/train_mapping.txt": "\n".join(lines).encode(),
        },
    )
    distances = np.random.default_rng(1).uniform(1, 40, n)
    notes, label = {}, {}
    for i in range(n):
        rows = [made.kitti_line("Pedestrian", 2.0), made.kitti_line("DontCare", -1000.0)]
        if i % 5:
            rows += [made.kitti_line("Car", distances[i] + 5), made.kitti_line("Van", distances[i])]
        notes[f"training/label_2/{i:06d}.txt"] = "\n".join(rows).encode()
        nearest = distances[i] if i % 5 else 1000.0
        label[f"{i:06d}.png"] = sum(nearest > step for step in (8, 20, 999))
    made.write_zip(folder / "data_object_label_2.zip", notes)
    images = {f"training/image_2/{i:06d}.png": made.PICTURES[i % 216] for i in range(n)}
    made.write_zip(folder / "data_object_image_2.zip", images)
    parts = open_task(tmp_path, "kitti_distance")
    assert len(parts["test"]) == each
    video = {f"{i:06d}.png": (p - 1) // each for i, p in enumerate(picks.tolist())}
    seen = [{video[key] for key in parts[name].keys} for name in ("train800", "val200", "test")]
    assert len(seen[1]) == len(seen[2]) == 1  # a tenth of the videos each
    assert not seen[0] & (seen[1] | seen[2])
    for source in parts.values():
        assert source.labels.tolist() == [label[key] for key in source.keys]
        assert pixel(source, 3) == made.colour(int(source.keys[3][:6]) % 216)
    assert set(parts["train800"].labels.tolist()) == {0, 1, 2, 3}


def dsprites_arrays(n: int) -> tuple[np.ndarray, np.ndarray]:
    index = np.arange(n)
    classes = np.stack(
        [0 * index, index % 3, index % 6, index % 40, index % 32, index // 7 % 32], axis=1
    ).astype(np.int64)
    images = np.zeros((n, 64, 64), np.uint8)
    images[index, index % 64, index // 64] = 1
    return images, classes


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_dsprites(tmp_path, kind):
    folder = tmp_path / "dsprites"
    folder.mkdir()
    n = 2000
    images, classes = dsprites_arrays(n)
    name = folder / f"dsprites_ndarray_co1sh3sc6or40x32y32_64x64.{kind}"
    if kind == "npz":
        metadata = np.array({"title": "dSprites"}, dtype=object)  # a pickle, never opened
        np.savez_compressed(name, metadata=metadata, imgs=images, latents_classes=classes)
    else:
        import h5py

        with h5py.File(name, "w") as file:
            file["imgs"] = images
            file["latents/classes"] = classes
    order = published_order([str(i) for i in range(n)], "train")
    for task, column, factor in (("location", 4, 2.0), ("orientation", 3, 2.5)):
        parts = open_task(tmp_path, f"dsprites_{task}")
        assert parts["train800"].keys == [str(i) for i in order[:800]]
        assert parts["test"].keys == [str(i) for i in order[1800:]]
        for source in parts.values():
            places = np.array(list(map(int, source.keys)))
            assert source.labels.tolist() == np.floor(classes[places, column] / factor).tolist()
            for i in range(0, len(source), 97):
                assert (source.image(i)[..., 1] == images[places[i]] * 255).all()


@pytest.mark.parametrize("packed", [False, True])
def test_smallnorb(tmp_path, packed):
    folder = tmp_path / "smallnorb"
    folder.mkdir()
    names = {
        "train": ("smallnorb-5x46789x9x18x6x2x96x96-training", 810),
        "test": ("smallnorb-5x01235x9x18x6x2x96x96-testing", 420),
    }
    about = {}
    for split, (name, n) in names.items():
        index = np.arange(n)
        images = np.zeros((n, 2, 96, 96), np.uint8)
        images[:, 0] = (index % 251)[:, None, None]
        info = np.stack([index % 10, index % 9, index % 18 * 2, index % 6], axis=1).astype("<i4")
        about[split] = info
        for kind, array in (("dat", images), ("info", info)):
            data = made.norb_matrix(array)
            path = folder / f"{name}-{kind}.mat{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(data, 1) if packed else data)
    for task, column, divisor in (("azimuth", 2, 2), ("elevation", 1, 1)):
        parts = open_task(tmp_path, f"smallnorb_{task}")
        order = published_order([str(i) for i in range(420)], "test")
        assert parts["val200"].keys == [str(i) for i in order[:200]]
        assert parts["test"].keys == [str(i) for i in order[210:]]
        for name, split in (("train800", "train"), ("val200", "test"), ("test", "test")):
            source = parts[name]
            places = np.array(list(map(int, source.keys)))
            assert source.labels.tolist() == (about[split][places, column] // divisor).tolist()
            assert pixel(source, 5) == (int(places[5]) % 251,) * 3


def test_lists_that_lie_there_are_the_selection(tmp_path):
    folder = tmp_path / "dtd"
    for i in range(6):
        made.write_files(folder, {f"images/{i}.png": made.PICTURES[i]})
    lines = [f"images/{i % 4}.png {i % 47}" for i in range(1000)]
    (folder / "train800val200.txt").write_text("\n".join(lines))
    (folder / "test.txt").write_text("images/4.png 3\nimages/5.png 46\n")
    parts = open_task(tmp_path, "dtd")
    assert [len(parts[name]) for name in ("train800", "val200", "test")] == [800, 200, 2]
    assert parts["test"].labels.tolist() == [3, 46]
    assert pixel(parts["test"], 1) == made.colour(5)
    for line, why in (("../x.png 3", "outside of"), ("images/1.png 47", "a label below 47")):
        (folder / "test.txt").write_text(line + "\n")
        with pytest.raises(Error, match=why):
            open_task(tmp_path, "dtd")


def test_what_is_missing_is_said_with_its_place(tmp_path):
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn/train_32x32.mat").write_bytes(b"x")
    there, missing = where(tmp_path)
    assert [task.name for task in there] == ["svhn"]
    assert len(missing) == 18
    said = str(missing[0])
    assert "101_ObjectCategories.tar.gz" in said
    assert "https://data.caltech.edu" in said
    with pytest.raises(Error, match=r"put .*CLEVR_v1.0.zip.* into .*clevr .*published at"):
        open_task(tmp_path, "clevr_count")
    with pytest.raises(Error, match="did you mean 'eurosat'"):
        open_task(tmp_path, "eurosta")
    with pytest.raises(Error, match="is no folder"):
        where(tmp_path / "nowhere")


def test_all_tasks_are_there():
    assert len(TASKS) == 19
    groups = [task.group for task in TASKS]
    assert [groups.count(g) for g in ("natural", "specialised", "structured")] == [7, 4, 8]
    # BiT's exceptions.
    assert {t.name for t in TASKS if not t.flip} == {
        *("dsprites_orientation", "dsprites_location", "smallnorb_azimuth"),
    }
    assert {t.name for t in TASKS if not t.crop} == {
        *("clevr_count", "clevr_distance", "dmlab", "kitti_distance", "dsprites_location"),
    }


def cut_short(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


@pytest.mark.parametrize(
    ("build", "archive", "task"),
    [
        (cifar100_archive, "cifar-100-binary.tar.gz", "cifar100"),
        (clevr_archive, "CLEVR_v1.0.zip", "clevr_count"),
    ],
)
def test_an_archive_cut_short(tmp_path, build: Callable[[Path], object], archive, task):
    folder = tmp_path / ("cifar100" if task == "cifar100" else "clevr")
    build(folder)
    cut_short(folder / archive)
    with pytest.raises(Error, match=f"{archive} cannot be read: cut short"):
        open_task(tmp_path, task)


def test_a_plain_tar_cut_at_a_member_is_seen(tmp_path):
    cifar100_archive(tmp_path / "cifar100")
    packed = tmp_path / "cifar100/cifar-100-binary.tar.gz"
    data = gzip.decompress(packed.read_bytes())
    packed.unlink()
    plain = tmp_path / "cifar100/cifar-100-binary.tar"
    plain.write_bytes(data)
    assert len(open_task(tmp_path, "cifar100")["test"]) == 120
    plain.write_bytes(data[: 512 * 40])
    with pytest.raises(Error, match="cut short"):
        open_task(tmp_path, "cifar100")


@pytest.mark.parametrize("name", ["../../escape", "/etc/escape", "dtd/../../escape"])
def test_names_that_climb_out_are_refused(tmp_path, name):
    made.write_tar(tmp_path / "dtd/dtd-r1.0.1.tar.gz", {name: b"x"})
    with pytest.raises(Error, match="climbs out"):
        open_task(tmp_path, "dtd")
    shutil.rmtree(tmp_path / "dtd")
    made.write_zip(tmp_path / "eurosat/EuroSAT.zip", {name: b"x"})
    with pytest.raises(Error, match="climbs out"):
        open_task(tmp_path, "eurosat")
    assert not list(tmp_path.rglob("escape*"))


def test_links_in_an_archive_are_refused(tmp_path):
    import tarfile

    (tmp_path / "dtd").mkdir()
    with tarfile.open(tmp_path / "dtd/dtd-r1.0.1.tar.gz", "w:gz") as tar:
        link = tarfile.TarInfo("dtd/labels/train1.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(Error, match="link or a device: refused"):
        open_task(tmp_path, "dtd")


def test_pickles_are_not_opened(tmp_path):
    (tmp_path / "cifar100").mkdir()
    (tmp_path / "cifar100/cifar-100-python.tar.gz").write_bytes(b"x")
    with pytest.raises(Error, match="as pickles"):
        open_task(tmp_path, "cifar100")
