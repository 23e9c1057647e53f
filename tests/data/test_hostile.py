"""No file crashes the reader, holds it up for a second or fills the memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.hostile import bombs, oddities
from tests.data.pictures import encoded, smooth
from vitrail.data.decode import FORMATS, check, decode, read_size
from vitrail.kit.errors import Error

ROOT = Path(__file__).resolve().parents[2]
GOOD = (
    "jpeg name",
    "jpeg without tables",
    "1x1",
    "1x50000",
    "50000x1",
    "cmyk",
    "grey",
    "palette",
    "animated",
    "exif",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list]:
    """What decoding the corpus did, measured in a process of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, data in {**bombs(), **oddities()}.items():
        (folder / name.replace("/", " of ")).write_bytes(data)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    run = subprocess.run(
        [sys.executable, "-m", "tests.data.hostile", str(folder)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    report = json.loads(run.stdout)
    assert not report["torch"]  # decoding needs no torch, and the server's start counts on it
    return report["results"]


def test_the_corpus_is_large_enough(results):
    assert len(results) >= 100


def test_hostile_files_are_errors_of_one_sentence(results):
    for name, (outcome, _, _) in results.items():
        if name.startswith(GOOD):
            assert isinstance(outcome, list), (name, outcome)
        elif name not in ("png text chunk of 30 MB", "png data larger than its picture"):
            assert isinstance(outcome, str), (name, outcome)
            assert "\n" not in outcome
            assert len(outcome) < 200, (name, outcome)


def test_no_file_takes_a_second(results):
    slow = {name: seconds for name, (_, seconds, _) in results.items() if seconds > 1}
    assert not slow


def test_no_file_takes_200_mib(results):
    fat = {name: growth for name, (_, _, growth) in results.items() if growth > 200}
    assert not fat


@pytest.mark.parametrize("kind", FORMATS)
def test_changed_bytes_give_a_picture_or_an_error(kind):
    generator = np.random.default_rng(1)
    whole = encoded(smooth(), kind)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(int(generator.integers(1, 8))):
            data[int(generator.integers(len(data)))] = int(generator.integers(256))
        for read in (decode, read_size, check):
            try:
                result = read(bytes(data))
            except Error:
                continue
            if read is decode:
                assert result.dtype == np.uint8
                assert result.ndim == 3
                assert result.shape[2] == 3
