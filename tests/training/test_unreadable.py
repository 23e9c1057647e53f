"""Pictures that cannot be read: left out, counted, named, and too many of them stop the run."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitrail
from tests.commands import call, records, start
from vitrail.kit.errors import Error

CLASSES, EACH = ("left", "right"), 500
WORDS = ["--model", "vit_mu_patch7_28", "--batch-size", 50, "--val-fraction", 0.002]
WORDS += ["--set", "model.depth=1", "augment.crop=inception", "eval_every=1000"]


@pytest.fixture(scope="module")
def thousand(tmp_path_factory) -> Path:
    """A thousand JPEGs in two classes."""
    root, noise = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        for i in range(EACH):
            image = Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            image.save(root / name / f"{i:03d}.jpg", quality=90)
    return root


def with_damage(thousand: Path, target: Path, count: int, shown: bool) -> list[str]:
    """A copy in which so many files are damaged; whether a look at the header shows it."""
    shutil.copytree(thousand, target, copy_function=lambda a, b: Path(b).hardlink_to(a))
    names = []
    for i in range(count):
        path = target / CLASSES[i % 2] / f"{7 * i + 3:03d}.jpg"
        data = path.read_bytes()
        path.unlink()
        # Cut short; with an end marker the file looks whole until it is decoded.
        path.write_bytes(data[: len(data) // 2] + (b"" if shown else b"\xff\xd9"))
        names.append(f"{path.parent.name}/{path.name}")
    return sorted(names)


@pytest.mark.parametrize("shown", [True, False])
def test_one_in_a_hundred_are_left_out_and_named(thousand, tmp_path, shown):
    data, out = tmp_path / "data", tmp_path / "out"
    bad = with_damage(thousand, data, 10, shown)
    _, err = call("train", data, "--out", out, *WORDS, "--steps", 20)
    section = json.loads((out / "config.json").read_bytes())["vitrail"]
    unread = [entry["key"] for entry in section["data"]["unreadable"]]
    assert sorted([*unread, *section["skipped"]]) == bad
    assert bool(unread) == shown
    said = "10 files cannot be read" if shown else "10 pictures could not be read in training"
    assert said in err
    report = (out / "report.html").read_text().replace("<wbr>", "")
    assert all(name in report for name in bad)


@pytest.mark.parametrize("shown", [True, False])
def test_more_than_may_be_stop_the_run(thousand, tmp_path, shown):
    data, out = tmp_path / "data", tmp_path / "out"
    with_damage(thousand, data, 60, shown)
    settings = {"model.depth": 1, "augment.crop": "inception", "eval_every": 1000}
    words = {"model": "vit_mu_patch7_28", "batch_size": 50, "steps": 20, "set": settings}
    said = r"training pictures cannot be read, more than 5 %: .* or raise --max-corrupt"
    with pytest.raises(Error, match=said):
        vitrail.train(data, out=out, val_fraction=0.002, **words)
    assert out.exists() != shown  # found before anything is done, or when they were needed
    call("train", data, "--out", out, *WORDS, "--steps", 20, "--max-corrupt", 0.1)
    assert records(out, "done")


def test_the_order_of_the_good_ones_is_the_same_after_going_on(thousand, tmp_path):
    data = tmp_path / "data"
    bad = with_damage(thousand, data, 10, shown=False)
    words = [*WORDS, "--steps", 20, "--save-every", 4, "--record-keys"]
    process = start("train", data, "--out", tmp_path / "two", *words)
    path = tmp_path / "two" / "metrics.jsonl"
    while process.poll() is None and (
        not path.exists() or path.read_bytes().count(b'"kind": "step"') < 6
    ):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    call("train", data, "--out", tmp_path / "one", *words)
    call("train", data, "--out", tmp_path / "two", *words, "--workers", 2)
    lines = [
        [json.loads(line) for line in (tmp_path / run / "keys.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    assert lines[0] == lines[1]
    seen = [key for line in lines[0] for key in line["keys"]]
    assert not set(bad) & set(seen)
    assert len(set(seen)) == 998 - 10  # one of each class is held out
