"""The order of the samples: the same for any number of workers and processes, from any place on."""

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import call
from tests.training.processes import finished, torchrun
from vitrail.data.examples import ArraySource, Source
from vitrail.data.loader import order, train_batches
from vitrail.data.transforms import Augment
from vitrail.kit.preprocess import Preprocessing

N, BATCH = 103, 24
AUGMENT = Augment(crop="pad", pad=2, flip=0.5)
SMALL = Preprocessing(size=(8, 8))


@pytest.fixture(scope="module")
def source() -> ArraySource:
    images = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(N) % 5, list("abcde"))


def batches(source: Source, workers: int, world: int, start: int, count: int) -> list:
    """Global batches put together from what every process makes."""
    streams = [
        train_batches(
            source,
            SMALL,
            AUGMENT,
            BATCH,
            start_sample=start * BATCH,
            stop_sample=(start + count) * BATCH,
            workers=workers,
            rank=rank,
            world=world,
            before=True,
        )
        for rank in range(world)
    ]
    return list(zip(*streams, strict=True))


def keys_of(parts: list) -> list[str]:
    return [key for share in parts for batch in share for key in batch.keys]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_workers_and_processes_do_not_change_the_order(source, workers, world):
    expected = [source.keys[i] for epoch in range(3) for i in order(0, epoch, N)]
    parts = batches(source, workers, world, 0, 10)
    assert keys_of(parts) == expected[: 10 * BATCH]
    pixels = torch.cat([batch.images for share in parts for batch in share])
    alone = torch.cat([share[0].images for share in batches(source, 0, 1, 0, 10)])
    assert torch.equal(pixels, alone)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((0, 1), (0, 2)),
        ((0, 2), (2, 1)),
        ((2, 1), (1, 4)),
        ((1, 4), (0, 1)),
        ((4, 1), (0, 4)),
        ((2, 4), (4, 2)),
        ((1, 2), (2, 4)),
    ],
)
def test_going_on_with_other_numbers_misses_none_and_repeats_none(source, before, after):
    first = keys_of(batches(source, *before, 0, 7))
    rest = keys_of(batches(source, *after, 7, 10))
    expected = [source.keys[i] for epoch in range(4) for i in order(0, epoch, N)]
    assert first + rest == expected[: 17 * BATCH]
    assert all(len(set(expected[e * N : (e + 1) * N])) == N for e in range(4))


def test_the_next_fifty_batches_are_equal_pixel_for_pixel(source):
    through = batches(source, 0, 1, 0, 90)[40:]
    resumed = batches(source, 2, 1, 40, 50)
    for (one,), (other,) in zip(through, resumed, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert (one.keys, one.epoch, one.position) == (other.keys, other.epoch, other.position)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_a_process_gets_the_picture_before_its_first(source, world):
    for share, (alone,) in zip(
        batches(source, 0, world, 0, 6), batches(source, 0, 1, 0, 6), strict=True
    ):
        first = 0
        for batch in share:
            image, label = batch.before
            assert torch.equal(image[0], alone.images[first - 1])
            assert label[0] == alone.labels[first - 1]
            first += len(batch.keys)
        assert first == BATCH


class Huge(Source):
    """As many pictures as ImageNet has, made when they are asked for."""

    name, ignored = "huge", ()

    def __init__(self, n: int = 1_281_167):
        self.labels, self.classes = np.zeros(n, np.int64), ["one"]
        self.keys = range(n)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> np.ndarray:
        return np.full((8, 8, 3), i % 256, np.uint8)

    def arrays(self, indices: np.ndarray) -> None:
        return None


def test_late_in_an_epoch_a_run_starts_as_soon_as_early():
    source, seconds = Huge(), []
    for share in (0.0, 0.9):
        began = time.monotonic()
        stream = train_batches(
            source, SMALL, AUGMENT, 256, start_sample=int(share * len(source)) // 256 * 256
        )
        batch = next(stream)
        seconds.append(time.monotonic() - began)
        stream.close()
        assert batch.position >= share * len(source) - 256
    assert seconds[1] - seconds[0] < 2


@pytest.mark.slow
def test_the_command_records_one_order_for_all_numbers(tmp_path):
    """Workers {0, 1, 2, 4} x processes {1, 2, 4}, cut off and gone on with other numbers."""
    words = ["demo:fashion", "--model", "vit_mu_patch7_28", "--batch-size", "16", "--record-keys"]
    words += ["--steps", "12", "--save-every", "3", "--set", "model.depth=1", "eval_every=100"]

    def keys(out: Path) -> list[dict]:
        return [json.loads(line) for line in (out / "keys.jsonl").read_text().splitlines()]

    call("train", *words, "--out", tmp_path / "alone")
    expected = keys(tmp_path / "alone")
    for world in (1, 2, 4):
        commands = [
            ["train", *words, "--workers", str(n), "--out", str(tmp_path / f"{world}x{n}")]
            for n in (0, 1, 2, 4)
        ]
        (tmp_path / "commands.json").write_text(json.dumps(commands))
        status, _, err = finished(
            torchrun(world, "tests.training.driver", tmp_path / "commands.json")
        )
        assert status == 0, err
        for n in (0, 1, 2, 4):
            assert keys(tmp_path / f"{world}x{n}") == expected
    numbers = [(1, 0), (2, 1), (4, 0), (1, 2), (2, 0), (4, 1), (1, 0)]
    out, choose = tmp_path / "mixed", random.Random(0)
    for world, workers in numbers:
        run = torchrun(world, "vitrail", "train", *words, "--workers", workers, "--out", out)
        stop = len(records_of(out)) + choose.randrange(1, 3)
        while run.poll() is None and len(records_of(out)) < stop:
            time.sleep(0.005)
        run.terminate()
        run.communicate()
    status, _, err = finished(torchrun(2, "vitrail", "train", *words, "--out", out))
    assert status == 0, err
    assert keys(out) == expected


def records_of(out: Path) -> list[str]:
    path = out / "keys.jsonl"
    return path.read_text().splitlines() if path.exists() else []
