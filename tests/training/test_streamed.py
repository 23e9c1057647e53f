"""Training on a data set that is read in turn: exact on resume, and its fingerprint is minded."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.commands import call, records, start
from tests.data.layouts import class_label, write_parquet
from tests.data.pictures import encoded, smooth
from tests.training.processes import finished, torchrun

pytest.importorskip("datasets")
pytest.importorskip("pyarrow")

CLASSES = class_label(["dog", "cat"])
MODEL = ("--model", "vit_nano_patch7_28", "--set", "model.depth=1", "model.width=48")
RUN = (*MODEL, "model.dropout=0.1", "--steps", 24, "--batch-size", 10, "--save-every", 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("stream") / "set"
    pictures = [encoded(smooth(28, 28, seed=k)) for k in range(60)]
    for part in range(3):
        rows = slice(20 * part, 20 * part + 20)
        write_parquet(
            place / f"train-{part:05d}-of-00003.parquet", pictures[rows], [0, 1] * 10, CLASSES
        )
    write_parquet(place / "test-00000-of-00001.parquet", pictures[:6], [0, 1] * 3, CLASSES)
    return place


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


def test_a_killed_run_on_a_stream_goes_on_bit_for_bit(folder, tmp_path):
    words = ("train", f"hf:{folder}?stream=1", *RUN, "--record-keys", "--out")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _, said, _ = _done(start(*words, whole))
    assert "60 images in 2 classes, read in turn, in 3 parts" in said
    assert "test:  6 images" in said
    process = start(*words, killed)
    deadline = time.monotonic() + 120
    while not (killed / "metrics.jsonl").exists() or len(records(killed, "step")) < 9:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _done(start(*words, killed))
    assert_same_weights(whole, killed)
    assert (whole / "keys.jsonl").read_text() == (killed / "keys.jsonl").read_text()
    seen = [key for line in _keys(whole) for key in line][:60]
    assert len(set(seen)) == 60  # an epoch has every picture once
    _, said, _ = _done(start(*words, killed))
    assert "finished after 24 steps" in said


def test_two_processes_see_what_one_sees(folder, tmp_path):
    words = ("train", f"hf:{folder}?stream=1", *RUN[:-2], "--record-keys")
    call(*words, "--out", tmp_path / "one")
    code, _, said = finished(torchrun(2, "vitrail", *words, "--out", tmp_path / "two"))
    assert code == 0, said
    assert _keys(tmp_path / "one") == _keys(tmp_path / "two")


def test_mistakes_are_one_sentence(folder, tmp_path):
    words = ("train", f"hf:{folder}?stream=1", *MODEL)
    out = ("--out", tmp_path / "run")
    _, said = call(*words, "target.class_weights=balanced", *out, status=2)
    assert "which a stream does not know beforehand" in said
    call(*words, "--steps", 2, *out)
    grown = shutil.copytree(folder, tmp_path / "set")
    write_parquet(grown / "train-00003-of-00004.parquet", [encoded(smooth(28, 28))], [1], CLASSES)
    _, said = call("train", f"hf:{grown}?stream=1", *MODEL, "--steps", 2, *out, status=2)
    assert "in train 1 added (part 3)" in said


def _keys(folder: Path) -> list[list[str]]:
    return [json.loads(line)["keys"] for line in (folder / "keys.jsonl").read_text().splitlines()]


def _done(process) -> tuple[str, str, int]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out, err, process.returncode
