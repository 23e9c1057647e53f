"""A folder of pieces: gone on with, never begun anew, each picture once, whatever kills it."""

import contextlib
import fcntl
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import QUIET, call, start
from vitrail.weights.folder import update_details


def records(out: Path, form: str = "jsonl") -> list[dict]:
    """What all pieces hold, in the order of their names."""
    paths = sorted(path for path in out.iterdir() if path.suffix == f".{form}")
    if form == "parquet":
        from pyarrow import parquet

        return [row for path in paths for row in parquet.read_table(path).to_pylist()]
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def pieces_in(out: Path) -> int:
    """How many pieces are there, of none where there is no folder yet."""
    return (
        sum(path.name.startswith("predictions-") for path in out.iterdir()) if out.exists() else 0
    )


def contents(out: Path) -> dict[Path, tuple[int, bytes]]:
    """Which file each name stands for, and what is in it."""
    return {path: (path.stat().st_ino, path.read_bytes()) for path in out.iterdir()}


def listed(*names: object) -> list[str]:
    """What the command would predict on, in order."""
    from vitrail.serving.images import find_images

    found = find_images([str(name) for name in names])
    return [found[i] for i in range(len(found))]


@pytest.fixture(scope="module")
def expected(bundle, pictures) -> list[dict]:
    out, _ = call("predict", bundle, pictures, "--format", "jsonl", "--top", 2)
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def predict(bundle, pictures, tmp_path):
    """The command, on a folder in pieces of 5."""

    def run(*words: object, status: int = 0, by: Path = bundle, on: Path = pictures):
        flags = ["--out", tmp_path / "out", "--top", 2, "--piece-size", 5, *words]
        return call("predict", by, on, *flags, status=status)

    return run


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_folder_gets_pieces_with_every_picture_once_in_order(predict, expected, tmp_path, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    said, err = predict("--format", form, "--json")
    found = records(tmp_path / "out", form)
    assert len(list((tmp_path / "out").glob(f"predictions-*.{form}"))) == 10
    assert [row["path"] for row in found] == [row["path"] for row in expected]
    assert [row["error"] for row in found] == [row["error"] for row in expected]
    for row, other in zip(found, expected, strict=True):
        for mine, theirs in zip(row["predictions"], other["predictions"], strict=True):
            assert mine["label"] == theirs["label"]
            assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-6)
    summary = json.loads(said)
    assert (summary["images"], summary["failed"], summary["images_this_run"]) == (47, 3, 47)
    assert "3 of 47 pictures could not be read" in err
    assert "03.jpg: the file is cut short" in err


def test_all_of_it_can_be_read_as_one_table(predict, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    predict("--format", "parquet")
    assert parquet.read_table(tmp_path / "out").num_rows == 47


def test_the_same_again_does_nothing_and_says_the_same(predict, tmp_path):
    predict()
    before = contents(tmp_path / "out")
    said, err = predict("--json", "--workers", 3, "--batch-size", 7)  # these may be others
    assert contents(tmp_path / "out") == before
    assert json.loads(said)["images_this_run"] == 0
    assert "3 of 47 pictures could not be read" in err
    assert "nothing to do: all 47 pictures are in" in err


def test_only_what_is_missing_is_made(predict, expected, tmp_path):
    predict()
    out = tmp_path / "out"
    for number in (2, 3, 9):
        (out / f"predictions-{number:06}.jsonl").unlink()
    (out / ".predictions-000002.jsonl.77.part").write_text('{"path": "half')  # a killed process's
    kept = contents(out)[out / "predictions-000004.jsonl"]
    said, _ = predict("--json")
    assert json.loads(said)["images_this_run"] == 12
    assert contents(out)[out / "predictions-000004.jsonl"] == kept
    assert [row["path"] for row in records(out)] == [row["path"] for row in expected]
    assert not list(out.glob(".*"))


def changed(bundle: Path, to: Path, **fields) -> Path:
    """The same bundle, but for what its JSON says."""
    from dataclasses import replace

    from vitrail.export.bundle import read_manifest, write_manifest

    shutil.copytree(bundle, to)
    write_manifest(to, replace(read_manifest(to), **fields))
    return to


def test_anything_else_in_the_folder_is_refused_by_name(predict, bundle, model, pictures, tmp_path):
    predict()
    before = contents(tmp_path / "out")
    again = shutil.copytree(pictures, tmp_path / "pictures")
    less = shutil.copytree(pictures, tmp_path / "less")
    (less / "a" / "07.png").unlink()
    warm = changed(bundle, tmp_path / "warm", temperature=2.0)
    named = changed(bundle, tmp_path / "named", labels=list("abcd"))
    merging = changed(bundle, tmp_path / "merging", merge_tokens=1)
    for words, options, sentence in (
        (["--top", 3], {}, r"another --top \(2, now 3\)"),
        (["--format", "csv"], {}, r"another --format \(jsonl, now csv\)"),
        (["--piece-size", 6], {}, r"another --piece-size \(5, now 6\)"),
        (["--shard", "1/2"], {}, r"another number of shards \(1, now 2\)"),
        ([], {"by": model}, "another model"),
        ([], {"by": warm}, r"another temperature \(1.0, now 2.0\)"),
        ([], {"by": named}, "other labels"),
        ([], {"by": merging}, "merges another number of tokens"),
        ([], {"on": again}, "other pictures, of which the first differs between .*pictures/a/03"),
        ([], {"on": less}, r"another number of pictures \(47, now 46\)"),
    ):
        _, err = predict(*words, status=2, **options)
        assert f"{tmp_path / 'out'} was begun with" in err
        assert re.search(sentence, err), err
    assert contents(tmp_path / "out") == before


def test_a_picture_renamed_late_in_the_list_is_found(predict, pictures, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(pictures, other)
    predict(on=other)
    (other / "b" / "44.webp").rename(other / "b" / "44b.webp")
    _, err = predict(on=other, status=2)
    begin, _, end = err.partition("the first differs between ")[2].partition(" and ")
    assert begin.endswith("/b/40.png")
    assert end.startswith(f"{other}/b/44b.webp")


def test_a_models_weights_are_told_apart_though_its_name_is_the_same(model, pictures, tmp_path):
    import vitrail
    from tests.export.small import sure_model

    words = ["--out", tmp_path / "out", "--top", 1]
    here = shutil.copytree(model, tmp_path / "model")
    call("predict", here, pictures, *words)
    update_details(here, temperature={"final": 3.0})
    assert "another temperature" in call("predict", here, pictures, *words, status=2)[1]
    shutil.rmtree(here)
    other = sure_model()
    other.preprocessing = vitrail.load_model(model).preprocessing
    other.head.weight.data[0, 0] += 1
    vitrail.save_model(other, here)
    assert "another model" in call("predict", here, pictures, *words, status=2)[1]


def test_the_shares_of_several_machines_go_into_one_folder(predict, expected, tmp_path):
    for i in (3, 1, 2):  # in any order
        _, err = predict("--shard", f"{i}/3")
        assert f"part {i} of 3" in err
    assert [row["path"] for row in records(tmp_path / "out")] == [row["path"] for row in expected]
    said, _ = predict("--shard", "2/3", "--json")
    assert json.loads(said)["images_this_run"] == 0
    _, err = predict("--shard", "4/4", status=2)
    assert "another number of shards (3, now 4)" in err
    _, err = predict("--shard", "2/3", "--top", 1, status=2)
    assert "another --top" in err


def test_a_share_is_refused_that_does_not_go_with_its_neighbours(predict, tmp_path):
    predict("--shard", "1/3")
    _, err = predict("--shard", "2/3", "--top", 1, status=2)
    assert "another --top (2, now 1)" in err
    assert len(list((tmp_path / "out").glob("_*.json"))) == 1
    predict("--shard", "2/3")


def test_more_machines_than_pictures(bundle, pictures, tmp_path):
    one = next(pictures.rglob("01.*"))
    for i in (1, 2):
        call("predict", bundle, one, "--shard", f"{i}/2", "--out", tmp_path / "out")
    assert [row["path"] for row in records(tmp_path / "out")] == [str(one)]


def test_a_damaged_piece_is_not_counted_on(predict, tmp_path):
    predict()
    piece = tmp_path / "out" / "predictions-000003.jsonl"
    whole = piece.read_text()
    piece.write_text("".join(whole.splitlines(keepends=True)[:4]))
    _, err = predict(status=2)
    assert f"{piece} holds 4 pictures where 5 belong: remove it" in err
    piece.write_text(whole[: len(whole) // 2].rstrip("\n"))
    _, err = predict(status=2)
    assert str(piece) in err
    piece.unlink()
    predict()
    assert piece.read_text() == whole
    (tmp_path / "out" / "_predictions.json").write_text("{")
    assert "is damaged" in predict(status=2)[1]


def test_two_at_once_do_not_write_the_same_part(predict, tmp_path):
    predict()
    (tmp_path / "out" / "predictions-000003.jsonl").unlink()
    with (tmp_path / "out" / "_predictions.json").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _, err = predict(status=2)
    assert "another process is writing this part" in err
    predict()


def test_a_folder_takes_no_table_and_lies_outside_the_pictures(predict, pictures, tmp_path, bundle):
    _, err = predict("--format", "table", status=2)
    assert "takes csv, jsonl or parquet" in err
    _, err = call("predict", bundle, pictures, "--out", pictures / "found", status=2)
    assert "lies inside the data" in err
    _, err = predict("--workers", -1, status=2)
    assert "--workers is a number of threads from 0, not -1" in err
    _, err = call("predict", bundle, pictures, "--json", status=2)
    assert "needs --out" in err
    _, err = call("predict", bundle, pictures, "--format", "parquet", status=2)
    assert "give --out" in err
    assert not (tmp_path / "out").exists()


def test_every_picture_broken_is_status_2(bundle, tmp_path):
    for i in range(7):
        (tmp_path / f"{i}.jpg").write_bytes(b"\xff\xd8\xff")
    words = ["predict", bundle, *sorted(tmp_path.glob("*.jpg")), "--piece-size", 3]
    for _ in range(2):  # the second time from what the pieces say
        _, err = call(*words, "--out", tmp_path / "out", status=2)
        assert "none of the 7 pictures" in err
    assert [bool(row["error"]) for row in records(tmp_path / "out")] == [True] * 7


def test_one_file_is_whole_or_as_it_was(bundle, pictures, tmp_path):
    """A limit on the size of files stands for a full disk."""
    out = tmp_path / "a.jsonl"
    out.write_text("mine\n")
    limit = (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    for target in (out, tmp_path / "folder"):
        words = [str(word) for word in ("predict", bundle, pictures, "--out", target)]
        done = subprocess.run(
            [sys.executable, "-m", "vitrail", *words],
            capture_output=True,
            text=True,
            env={**os.environ, **QUIET},
            preexec_fn=lambda: (
                resource.setrlimit(resource.RLIMIT_FSIZE, limit),
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
            ),
        )
        assert done.returncode == 2
        assert f"error: {target} cannot be written" in done.stderr
        assert "file too large" in done.stderr
        assert done.stderr.count("\n") <= 2
    assert out.read_text() == "mine\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *("_predictions.json", "a.jsonl", "folder")
    ]
    call("predict", bundle, pictures, "--out", tmp_path / "folder")  # there is room again
    call("predict", bundle, pictures, "--out", out)
    assert out.read_text() == (tmp_path / "folder" / "predictions-000000.jsonl").read_text()


def test_a_pipe_is_written_to_as_it_goes(bundle, pictures, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    process = start("predict", bundle, pictures, "--format", "jsonl", "--out", tmp_path / "pipe")
    lines = (tmp_path / "pipe").read_text().splitlines()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(lines) == 47
    assert (tmp_path / "pipe").is_fifo()


# Kills


def copies(folder: Path, picture: Path, count: int) -> Path:
    """A folder of so many files with the same picture."""
    data = picture.read_bytes()
    for i in range(count):
        place = folder / f"{i % 7}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:06}.jpg").write_bytes(data)
    return folder


def killed_once(words: list[object], out: Path, after: int, delay: float) -> bool:
    """Run the command, kill it so long after a number of pieces more; whether it was in time."""
    process = start(*words)
    there = pieces_in(out)
    try:
        while process.poll() is None and pieces_in(out) < there + after:
            time.sleep(0.002)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
            return False
        process.send_signal(signal.SIGKILL)
        return True
    finally:
        process.communicate(timeout=60)


def test_each_picture_exactly_once_after_kills(bundle, pictures, tmp_path):
    photos = copies(tmp_path / "photos", next(pictures.rglob("01.*")), 1500)
    out, moments = tmp_path / "out", random.Random(7)
    words = ["predict", bundle, photos, "--out", out, "--top", 1, "--piece-size", 25]
    kills = [killed_once(words, out, after, moments.uniform(0, 0.03)) for after in (0, 1, 9, 17)]
    assert kills == [True] * 4  # while there was work to do
    there = pieces_in(out)
    assert 27 <= there < 60
    said, _ = call(*words, "--json")
    assert json.loads(said)["images_this_run"] == 1500 - 25 * there
    assert [row["path"] for row in records(out)] == listed(photos)
    assert not list(out.glob(".*"))


def test_a_stopped_run_says_how_far_it_came(bundle, pictures, tmp_path):
    photos = copies(tmp_path / "photos", next(pictures.rglob("06.*")), 3000)
    out = tmp_path / "out"
    words = ["predict", bundle, photos, "--out", out, "--top", 1, "--piece-size", 10]
    process = start(*words)
    while process.poll() is None and not pieces_in(out):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    there = pieces_in(out)
    assert process.returncode == 130
    assert f"stopped: {10 * there:,} of 3,000 pictures are done in {out}" in err
    assert not list(out.glob(".*"))


def test_memory_does_not_grow_with_the_pictures(bundle, pictures, tmp_path):
    photos = copies(tmp_path / "photos", next(pictures.rglob("06.*")), 8000)
    peaks = []
    for share in ("1/20", "1/1"):
        words = ["predict", bundle, photos, "--out", tmp_path / f"of{share[2:]}"]
        process = start(*words, "--shard", share, "--workers", 2, "--batch-size", 8)
        _, status, usage = os.wait4(process.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        peaks.append(usage.ru_maxrss / 1024)
        process.returncode = 0
        process.communicate()
    assert peaks[1] - peaks[0] < 8  # MB; ready for the model the pictures would be 25 MB


@pytest.mark.slow
def test_60_000_pictures_killed_five_times(bundle, shared_data, tmp_path):
    """CIFAR-10's files; the moments are spread over the whole of the work."""
    parquet = pytest.importorskip("pyarrow.parquet")
    photos, count = tmp_path / "cifar10", 0
    for part in ("train", "test"):
        file = parquet.ParquetFile(shared_data / "cifar10" / f"{part}.parquet")
        for batch in file.iter_batches(columns=["image", "label"]):
            for row in batch.to_pylist():
                place = photos / part / str(row["label"])
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{count:05}.jpg").write_bytes(row["image"]["bytes"])
                count += 1
    assert count == 60_000
    out, moments = tmp_path / "out", random.Random(11)
    words = ["predict", bundle, photos, "--out", out, "--piece-size", 500]
    kills = [
        killed_once(words, out, moments.randint(1, 35), moments.uniform(0, 0.2)) for _ in range(5)
    ]
    assert kills == [True] * 5
    there = pieces_in(out)
    said, _ = call(*words, "--json")
    assert json.loads(said)["images_this_run"] == 60_000 - 500 * there
    found = [row["path"] for row in records(out)]
    assert len(found) == len(set(found)) == 60_000
    assert found == listed(photos)
    print(f"\n{there} of 120 pieces were there after five kills")


def test_parts_do_not_take_each_others_place_in_a_file(bundle, pictures, tmp_path):
    out = tmp_path / "part.jsonl"
    call("predict", bundle, pictures, "--shard", "1/2", "--out", out)
    before = out.read_bytes()
    _, err = call("predict", bundle, pictures, "--shard", "2/2", "--out", out, status=2)
    assert "part 2 of 2 would take its place" in err
    assert out.read_bytes() == before
    _, err = call("predict", bundle, pictures, "--shard", "3/2", "--out", out, status=2)
    assert "there is no part 3 of 2" in err
    _, err = call("predict", pictures, bundle, status=2)  # swapped
    assert f"{pictures} is no model folder" in err
