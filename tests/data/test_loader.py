"""Batches: right, the same however they are made, and quick to start anywhere."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.layouts import write_shard
from tests.data.pictures import encoded, smooth, write_classes
from vitrail.data import fashion
from vitrail.data.decode import decode
from vitrail.data.examples import ArraySource
from vitrail.data.loader import eval_batches, order, train_batches
from vitrail.data.sources import open_source
from vitrail.data.transforms import Augment
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import Preprocessing

ROOT = Path(__file__).resolve().parents[2]
SIZE = Preprocessing(size=(16, 16))
STRONG = Augment(crop="inception", flip=0.5, jitter=0.3, erase=0.3)


@pytest.fixture
def folder(tmp_path) -> Path:
    write_classes(tmp_path, {"a": 9, "b": 8, "c": 6}, (40, 30), kind="jpg")
    return tmp_path


def first(batches, count: int) -> list:
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def assert_same(ours, theirs) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name in ("images", "labels", "indices", "epochs"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        for name in ("keys", "skipped", "epoch", "position"):
            assert getattr(one, name) == getattr(other, name), name


def test_a_batch_holds_what_it_says(folder):
    source = open_source(folder)
    batch = next(train_batches(source, SIZE, None, 5, seed=3))
    assert batch.images.shape == (5, 16, 16, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.dtype == batch.indices.dtype == batch.epochs.dtype == torch.int64
    assert batch.indices.tolist() == order(3, 0, 23)[:5].tolist()
    for row, i in enumerate(batch.indices.tolist()):
        assert batch.keys[row] == source.keys[i]
        assert batch.labels[row] == source.labels[i]
        expected = SIZE.geometry(decode(source.example(i).image))
        np.testing.assert_array_equal(batch.images[row].numpy(), expected)


def test_every_epoch_has_every_sample_once_whatever_the_batch_size(folder):
    source = open_source(folder)
    for batch_size in (1, 5, 23, 64):
        batches = train_batches(source, SIZE, None, batch_size, seed=1, stop_sample=3 * 23)
        seen = [int(i) for batch in batches for i in batch.indices]
        assert seen == [int(i) for epoch in range(3) for i in order(1, epoch, 23)]


def test_a_batch_over_the_end_of_an_epoch_says_so(folder):
    batches = train_batches(open_source(folder), SIZE, None, 10, start_sample=20)
    batch = next(batches)
    assert batch.epochs.tolist() == [0] * 3 + [1] * 7
    assert (batch.epoch, batch.position) == (0, 20)
    assert (next(batches).epoch, next(batches).position) == (1, 17)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(folder, workers):
    source = open_source(folder)
    alone = first(train_batches(source, SIZE, STRONG, 7, seed=5), 8)
    assert_same(first(train_batches(source, SIZE, STRONG, 7, seed=5, workers=workers), 8), alone)
    assert_same(
        list(eval_batches(source, SIZE, 7, workers=workers)), list(eval_batches(source, SIZE, 7))
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_anywhere(folder, workers):
    source = open_source(folder)
    whole = first(train_batches(source, SIZE, STRONG, 7, seed=5), 9)
    for done in (1, 3, 4, 7):
        rest = train_batches(
            source, SIZE, STRONG, 7, seed=5, start_sample=7 * done, workers=workers
        )
        assert_same(first(rest, 9 - done), whole[done:])


def test_workers_leave_torchs_random_numbers_alone(folder):
    source = open_source(folder)
    state = torch.get_rng_state()
    first(train_batches(source, SIZE, STRONG, 4, workers=2), 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_and_epochs_differ(folder):
    source = open_source(folder)
    (one,), (other,) = (first(train_batches(source, SIZE, STRONG, 23, seed=s), 1) for s in (0, 1))
    assert one.keys != other.keys
    epochs = first(train_batches(source, SIZE, STRONG, 23), 2)
    views = [batch.images[batch.indices.argsort()] for batch in epochs]
    assert (views[0] != views[1]).flatten(1).any(1).sum() > 20


def test_evaluation_is_in_order_and_whole(folder):
    source = open_source(folder)
    batches = list(eval_batches(source, SIZE, 10))
    assert [len(batch.keys) for batch in batches] == [10, 10, 3]
    assert [key for batch in batches for key in batch.keys] == list(source.keys)
    crop = Preprocessing(size=(16, 20), crop=0.9)
    (batch,) = eval_batches(source, crop, 50)
    for i in range(len(source)):
        np.testing.assert_array_equal(
            batch.images[i].numpy(), crop.geometry(decode(source.example(i).image))
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_decoded_is_skipped_and_named(folder, workers):
    good = open_source(folder)
    clean = first(train_batches(good, SIZE, STRONG, 6, seed=2), 4)
    damaged = bytearray((folder / "b" / "003.jpg").read_bytes())
    damaged[400:440] = b"\xff\xd0" * 20  # a scan finds nothing wrong with it
    (folder / "b" / "003.jpg").write_bytes(damaged)
    (folder / "a" / "001.jpg").unlink()
    batches = first(train_batches(good, SIZE, STRONG, 6, seed=2, workers=workers), 4)
    skipped = dict(pair for batch in batches for pair in batch.skipped)
    assert set(skipped) == {"a/001.jpg", "b/003.jpg"}
    assert skipped["a/001.jpg"] == "no such file or directory"
    assert "damaged" in skipped["b/003.jpg"]
    for before, after in zip(clean, batches, strict=True):
        kept = [i for i, key in enumerate(before.keys) if key not in skipped]
        assert after.keys == [before.keys[i] for i in kept]
        assert torch.equal(after.images, before.images[kept])
        assert len(after.keys) + len(after.skipped) == 6


def test_a_batch_of_nothing_but_damage_is_empty(folder):
    source = open_source(folder)
    for file in folder.glob("*/*"):
        file.write_bytes(b"")
    (batch,) = first(train_batches(source, SIZE, None, 4), 1)
    assert batch.images.shape == (0, 16, 16, 3)
    assert batch.labels.shape == batch.indices.shape == (0,)
    assert len(batch.skipped) == 4


def test_a_picture_over_the_limit_is_skipped(folder):
    (batch,) = eval_batches(open_source(folder), SIZE, 50, max_pixels=1000)
    assert len(batch.skipped) == 23
    assert "40x30 is 0.0 million pixels, over the limit" in batch.skipped[0][1]


def test_large_jpegs_give_nearly_the_same_view_as_full_decoding(tmp_path):
    for name in ("a", "b"):
        coarse = np.random.default_rng(ord(name)).integers(0, 256, (180, 240, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((1600, 1200), Image.Resampling.BICUBIC)
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(encoded(picture, "JPEG"))
    files = open_source(tmp_path)
    arrays = ArraySource(
        np.stack([decode(files.example(i).image) for i in range(2)]), files.labels, files.classes
    )
    augment = Augment(crop="inception", area=(0.02, 0.3), flip=0.5)
    large = Preprocessing(size=(128, 128))  # decoding stops at an eighth
    for start in range(0, 20, 2):
        (view,), (full,) = (
            first(train_batches(one, large, augment, 2, start_sample=start), 1)
            for one in (files, arrays)
        )
        gap = (view.images.int() - full.images.int()).abs().float().mean()
        assert gap < 5  # 2.5; decoding too small gives 23


def test_arrays_of_the_right_size_go_by_the_batch_and_are_the_same():
    source = fashion.load()["test"]
    preprocessing = Preprocessing(size=(28, 28))
    quick = first(train_batches(source, preprocessing, None, 64, seed=1), 3)
    # An augmentation that has something to do, and never does it, goes one by one.
    slow = first(train_batches(source, preprocessing, Augment(jitter=1e-9), 64, seed=1), 3)
    assert_same(quick, slow)


def test_arrays_that_must_be_cropped_or_resized_are():
    source = fashion.load()["test"].subset(range(5))
    for preprocessing in (Preprocessing(size=(28, 28), crop=0.8), Preprocessing(size=(20, 30))):
        (batch,) = eval_batches(source, preprocessing, 5)
        for i in range(5):
            expected = preprocessing.geometry(source.example(i).image)
            np.testing.assert_array_equal(batch.images[i].numpy(), expected)


def test_batching_small_arrays_costs_next_to_nothing():
    batches = train_batches(fashion.load()["train"], Preprocessing(size=(28, 28)), None, 64)
    next(batches)
    seconds = []
    for _ in range(9):
        began = time.process_time()
        for _ in range(20):
            next(batches)
        seconds.append((time.process_time() - began) / 20)
    assert min(seconds) < 1e-3


def test_starting_late_costs_no_more_than_starting_early():
    n = 400_000
    source = ArraySource(np.zeros((n, 1, 1), np.uint8), np.arange(n) % 2, keys=iter("k" * n))

    def seconds(start: int) -> float:
        began = time.process_time()
        next(train_batches(source, Preprocessing(size=(1, 1)), None, 64, start_sample=start))
        return time.process_time() - began

    seconds(0)
    assert seconds(int(57.9 * n)) < seconds(0) + 0.5


@pytest.mark.parametrize(("batch_size", "match"), [(0, "at least one sample"), (4, "no images")])
def test_nothing_to_load(folder, batch_size, match):
    with pytest.raises(Error, match=match):
        train_batches(open_source(folder).subset([]), SIZE, None, batch_size)


# --- worker processes ------------------------------------------------------------------------

# Ctrl-C is taken as the training loop takes it: noted, and looked for between two batches. Raised
# as it comes, it would end the generator wherever the loader just is.
PROGRAM = """
import os, signal, sys, time
from vitrail.data.loader import train_batches
from vitrail.data.sources import open_source
from vitrail.data.transforms import Augment
from vitrail.kit.preprocess import Preprocessing

stopped = []
signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
batches = train_batches(
    open_source(sys.argv[1]), Preprocessing(size=(16, 16)), Augment(flip=0.5), 4, workers=2
)
while not stopped:
    next(batches)
    children = open(f"/proc/self/task/{os.getpid()}/children").read()
    print(children, flush=True)
    time.sleep(0.02)
for _ in range(5):
    next(batches)  # the workers still work: a run can finish its step and save
batches.close()
print("closed", flush=True)
sys.exit(130)
"""


def start(folder: Path) -> tuple[subprocess.Popen, list[int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    children = []
    while len(children) < 2:
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        children = [int(child) for child in line.split()]
    return process, children


def gone(children: list[int], within: float) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not any(_runs(child) for child in children):
            return True
        time.sleep(0.05)
    return False


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@needs_proc
def test_ctrl_c_ends_a_run_with_workers_cleanly(folder):
    process, children = start(folder)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out.endswith("closed\n")
    assert err == ""
    assert gone(children, 10)


@needs_proc
def test_workers_of_a_killed_run_end_by_themselves(folder):
    process, children = start(folder)
    process.kill()
    process.communicate(timeout=60)
    assert gone(children, 20)


@needs_proc
def test_decoding_with_workers_leaves_memory_flat(folder):
    batches = train_batches(open_source(folder), SIZE, STRONG, 16, workers=2)
    for _ in range(40):
        next(batches)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    before = [_resident(child) for child in children]
    for _ in range(300):
        next(batches)
    after = [_resident(child) for child in children]
    batches.close()
    assert len(before) >= 2
    assert max(np.subtract(after, before)) < 4


def _resident(process: str) -> float:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 / 2**20


# --- other ways of sampling ------------------------------------------------------------------


def test_balanced_batches_go_on_anywhere_and_draw_anew_for_every_use(folder):
    (folder / "c").rename(folder / "z")
    for file in sorted((folder / "z").iterdir())[2:]:
        file.unlink()
    source = open_source(folder)  # 9, 8 and 2
    words = {"seed": 5, "sampling": "balanced"}
    whole = first(train_batches(source, SIZE, STRONG, 7, **words), 9)
    for workers in (0, 2):
        rest = train_batches(source, SIZE, STRONG, 7, start_sample=28, workers=workers, **words)
        assert_same(first(rest, 5), whole[4:])
    epoch = first(train_batches(source, SIZE, STRONG, 19, **words), 1)[0]
    assert sorted(np.bincount(epoch.labels).tolist()) == [6, 6, 7]
    small = epoch.indices >= 17
    assert sorted(epoch.repeats[epoch.indices == 17].tolist()) == [0, 1, 2]
    views = epoch.images[small].flatten(1)
    assert len(torch.unique(views, dim=0)) == len(views)


@pytest.mark.parametrize(("repeats", "batch_size"), [(2, 8), (3, 6), (3, 7)])
def test_repeated_augmentation(folder, repeats, batch_size):
    source = open_source(folder)
    n = len(source)
    made = list(
        train_batches(source, SIZE, STRONG, batch_size, seed=4, repeats=repeats, stop_sample=2 * n)
    )
    for epoch in range(2):
        used = torch.cat([batch.indices[batch.epochs == epoch] for batch in made])
        distinct = -(-n // repeats)
        assert len(used) == n
        assert set(used.tolist()) == set(order(4, epoch, n)[:distinct].tolist())
        assert np.bincount(used).max() == repeats
    batch = made[0]
    if batch_size % repeats == 0:
        group = batch_size // repeats
        expected = order(4, 0, n)[:group].tolist()
        assert batch.indices.tolist() == expected * repeats
        assert batch.repeats.tolist() == [r for r in range(repeats) for _ in range(group)]
        # mixup's partner is the one before: never the picture itself
        assert (batch.indices != batch.indices.roll(1)).all()
    same = batch.indices == batch.indices[0]
    views = batch.images[same].flatten(1)
    assert len(views) == repeats
    assert len(torch.unique(views, dim=0)) == len(views)
    # The first use of a picture is augmented as it is without repeats.
    plain = first(train_batches(source, SIZE, STRONG, n, seed=4), 1)[0]
    at = plain.indices.tolist().index(int(batch.indices[0]))
    assert torch.equal(batch.images[0], plain.images[at])
    for workers in (0, 2):
        rest = train_batches(
            source, SIZE, STRONG, batch_size, seed=4, repeats=repeats, stop_sample=2 * n,
            start_sample=2 * batch_size, workers=workers,
        )  # fmt: skip
        assert_same(list(rest), made[2:])


def test_nearby_batches_read_each_shard_in_turn(tmp_path):
    for k in range(4):
        samples = [
            (f"{i}", {"png": encoded(smooth(seed=10 * k + i)), "cls": str(i % 2)})
            for i in range(10)
        ]
        write_shard(tmp_path / f"{k}.tar", samples)
    source = open_source(tmp_path)
    source.window = 10
    half = source.subset(range(0, 40, 2))
    for one, per_shard in ((source, 10), (half, 5)):
        one.window = per_shard
        batches = list(
            train_batches(
                one, SIZE, STRONG, per_shard, sampling="nearby", workers=1, stop_sample=len(one)
            )
        )
        shards = [{key.split("/")[0] for key in batch.keys} for batch in batches]
        assert all(len(names) == 1 for names in shards)
        assert set.union(*shards) == {"0.tar", "1.tar", "2.tar", "3.tar"}


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"sampling": "even"}, "sampling is uniform, balanced, nearby, not 'even'"),
        ({"repeats": 0}, "used at least once, not 0 times"),
    ],
)
def test_wrong_ways_of_sampling(folder, words, match):
    with pytest.raises(Error, match=match):
        train_batches(open_source(folder), SIZE, None, 4, **words)


def test_several_labels_a_picture():
    images = np.zeros((6, 4, 4, 3), np.uint8)
    hot = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0]], np.uint8)
    source = ArraySource(images, hot, ["a", "b", "c"])
    batch = next(train_batches(source, Preprocessing(size=(4, 4)), None, 4, seed=1))
    assert batch.labels.dtype == torch.float32
    assert batch.labels.tolist() == hot[order(1, 0, 6)[:4]].tolist()
    with pytest.raises(Error, match="cannot be drawn so that every label is equally frequent"):
        train_batches(source, SIZE, None, 4, sampling="balanced")
