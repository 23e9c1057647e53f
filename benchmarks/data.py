"""How fast do pictures become training batches, beside Pillow's way and OpenCV's?

    python benchmarks/data.py [--quick] [--images FOLDER] [--large N]

From encoded JPEGs to a normalised float batch of 224x224: decode, a random resized crop, a mirror
by chance, normalise. One core, CPU time (not the clock: a busy machine slows the clock alone). All
ways take the same boxes and mirrors and run interleaved, and the figure is the median over the
rounds of theirs/ours: above 1 where ours is faster.
- pillow: decoded in full, bicubic, then float normalisation of each picture: what everybody writes.
- opencv: imdecode, INTER_AREA where the crop shrinks and INTER_LINEAR where it grows, and our
  normalisation of the whole batch, which is the fastest at hand.
- opencv_linear: the same with INTER_LINEAR always: OpenCV's quickest, which does not average, so
  that a large picture comes out ragged.
Twice: on the pictures as they are, and re-encoded at 12 million pixels. Then what each RandAugment
adds, and how far our pixels are from Pillow's. The last line of stdout is one JSON object.
"""

import argparse
import io
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.data.decode import decode, read_size
from vitrail.data.draws import sample_generator
from vitrail.data.transforms import Augment
from vitrail.data.views import evaluation_view, training_view
from vitrail.kit.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet-sample"
SIDE, BATCH = 224, 32
PREPROCESSING = Preprocessing(size=SIDE, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop=0.875)
AUGMENT = Augment(crop="inception", flip=0.5)
MEAN = torch.tensor(IMAGENET_MEAN)[:, None, None]
STD = torch.tensor(IMAGENET_STD)[:, None, None]

Way = Callable[[list[bytes], int], Tensor]


def drawn(data: bytes, number: int) -> tuple[tuple[int, int, int, int], bool]:
    """The box and the mirror that `AUGMENT` draws for a sample."""
    generator = sample_generator(0, 0, number)
    width, height, _ = read_size(data)
    box = AUGMENT.box(width, height, generator)
    assert box is not None
    return box, generator.random() < AUGMENT.flip


def ours(batch: list[bytes], first: int, augment: Augment = AUGMENT) -> Tensor:
    views = [
        training_view(data, augment, PREPROCESSING, sample_generator(0, 0, first + i))
        for i, data in enumerate(batch)
    ]
    return PREPROCESSING.normalize(torch.from_numpy(np.stack(views)))


def pillow_pixels(data: bytes, number: int) -> Image.Image:
    box, mirror = drawn(data, number)
    image = Image.open(io.BytesIO(data)).convert("RGB").crop(box)
    image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else image


def pillow(batch: list[bytes], first: int) -> Tensor:
    tensors = []
    for i, data in enumerate(batch):
        pixels = torch.from_numpy(np.array(pillow_pixels(data, first + i)))
        floats = pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        tensors.append(floats.sub_(MEAN).div_(STD))
    return torch.stack(tensors)


def opencv(batch: list[bytes], first: int, averaged: bool = True) -> Tensor:
    views = []
    for i, data in enumerate(batch):
        (left, top, right, bottom), mirror = drawn(data, first + i)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        shrinks = right - left > SIDE and bottom - top > SIDE
        how = cv2.INTER_AREA if averaged and shrinks else cv2.INTER_LINEAR
        view = cv2.resize(image[top:bottom, left:right], (SIDE, SIDE), interpolation=how)
        views.append(cv2.flip(view, 1) if mirror else view)
    return PREPROCESSING.normalize(torch.from_numpy(np.stack(views)))


WAYS: dict[str, Way] = {
    "ours": ours,
    "pillow": pillow,
    "opencv": opencv,
    "opencv_linear": lambda batch, first: opencv(batch, first, averaged=False),
}


def milliseconds(way: Way, pictures: list[bytes]) -> float:
    """CPU time a picture."""
    began = time.process_time()
    for first in range(0, len(pictures), BATCH):
        way(pictures[first : first + BATCH], first)
    return (time.process_time() - began) / len(pictures) * 1000


def compare(ways: dict[str, Way], pictures: list[bytes], rounds: int) -> dict[str, list[float]]:
    """Milliseconds a picture of every way in every round; the ways take turns."""
    for way in ways.values():
        milliseconds(way, pictures[:BATCH])
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(milliseconds(ways[name], pictures))
    return times


def faster(times: dict[str, list[float]], name: str) -> float:
    """How many times as long as ours a way takes: the median over the rounds."""
    pairs = zip(times[name], times["ours"], strict=True)
    return statistics.median(theirs / mine for theirs, mine in pairs)


def gap_to_pillow(pictures: list[bytes]) -> float:
    """The mean absolute difference of our training views from Pillow's, of 255."""
    gaps = []
    for number, data in enumerate(pictures):
        view = training_view(data, AUGMENT, PREPROCESSING, sample_generator(0, 0, number))
        gaps.append(np.abs(view.astype(int) - np.asarray(pillow_pixels(data, number))).mean())
    return float(np.mean(gaps))


def gap_of_evaluation(pictures: list[bytes]) -> float:
    """The same of evaluation's view, from the one that is decoded in full."""
    gaps = [
        np.abs(
            evaluation_view(data, PREPROCESSING).astype(int)
            - PREPROCESSING.geometry(decode(data)).astype(int)
        ).mean()
        for data in pictures
    ]
    return float(np.mean(gaps))


def made_pictures(count: int) -> list[bytes]:
    """JPEGs with the sizes and the bytes a pixel of ImageNet's: smooth shapes, edges and grain."""
    pictures = []
    for number in range(count):
        random = np.random.default_rng(number)
        width, height = (500, 375) if number % 4 else (375, 500)
        coarse = random.integers(0, 256, (6, 8, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        patches = random.integers(0, 256, (25, 30, 3), np.uint8)
        edges = Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST)
        pixels = 0.7 * np.asarray(smooth) + 0.2 * np.asarray(edges)
        pixels = pixels + random.normal(10, 8, (height, width, 1))
        pictures.append(encoded(Image.fromarray(pixels.clip(0, 255).astype(np.uint8))))
    return pictures


def encoded(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def enlarged(data: bytes, pixels: float = 12e6) -> bytes:
    """A picture re-encoded with so many pixels."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = math.sqrt(pixels / (image.width * image.height))
    size = (round(image.width * scale), round(image.height * scale))
    return encoded(image.resize(size, Image.Resampling.BICUBIC))


def found_pictures(folder: Path) -> list[bytes]:
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if files:
        print(f"{len(files)} pictures of {folder.name}")
        return [path.read_bytes() for path in files]
    print(f"there are no pictures in {folder}: 200 were made with similar statistics")
    return made_pictures(200)


def show(title: str, times: dict[str, list[float]]) -> None:
    print(f"\n{title}")
    for name, values in times.items():
        ratio = "" if name == "ours" else f"  {faster(times, name):5.2f} times ours"
        print(f"  {name:<16}{statistics.median(values):8.2f} ms a picture{ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under two minutes")
    parser.add_argument("--images", type=Path, default=SHARED, help="a folder of JPEG files")
    parser.add_argument("--large", type=int, help="how many are re-encoded at 12 Mpixel")
    options = parser.parse_args()
    rounds, large_rounds = (7, 5) if options.quick else (15, 7)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    print(
        f"one core of {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"Pillow {Image.__version__}, OpenCV {cv2.__version__}"
    )
    pictures = found_pictures(options.images)
    sizes = sorted(min(read_size(data)[:2]) for data in pictures)
    print(f"the median shorter side is {sizes[len(sizes) // 2]} pixels")
    usual = compare(WAYS, pictures, rounds)
    show("as they are", usual)

    kinds = {"big_vision": 10, "torchvision": 9, "timm": 9}
    augments = {
        kind: AUGMENT.replace(rand_augment=kind, rand_magnitude=strength)
        for kind, strength in kinds.items()
    }
    forms: dict[str, Way] = {"ours": ours} | {
        f"+ {kind}": lambda batch, first, augment=augment: ours(batch, first, augment)
        for kind, augment in augments.items()
    }
    with_randaugment = compare(forms, pictures, max(3, rounds // 2))
    show("with RandAugment, two layers", with_randaugment)

    count = options.large or (16 if options.quick else 64)
    large = [enlarged(data) for data in pictures[:: max(1, len(pictures) // count)][:count]]
    big = compare(WAYS, large, large_rounds)
    megabytes = statistics.median(len(data) for data in large) / 1e6
    show(f"{len(large)} of them re-encoded at 12 Mpixel ({megabytes:.1f} MB each)", big)

    gaps = {"as they are": gap_to_pillow(pictures), "12 Mpixel": gap_to_pillow(large)}
    print("\nmean absolute difference of our training views from Pillow's, of 255:")
    for name, gap in gaps.items():
        print(f"  {name:<16}{gap:8.3f}")
    print(f"  of evaluation's view of 12 Mpixel from full decoding {gap_of_evaluation(large):.3f}")
    ratios = {
        **{f"{name}_500x375": faster(usual, name) for name in WAYS if name != "ours"},
        **{f"{name}_12mpixel": faster(big, name) for name in WAYS if name != "ours"},
    }
    ratios = {name: round(ratio, 3) for name, ratio in ratios.items()}
    print(json.dumps({"benchmark": "data", "ratios": ratios}))


if __name__ == "__main__":
    sys.exit(main())
