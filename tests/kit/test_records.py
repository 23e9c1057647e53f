"""Records survive what happens to the process that writes them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from vitrail import Error
from vitrail.kit.records import Records


def test_what_is_written_is_read_in_order(tmp_path):
    records = Records(tmp_path / "metrics.jsonl")
    assert list(records.read()) == []
    records.write("start", seed=0, name="Frühstück 早餐", sizes=(28, 28), nested={"a": [1, None]})
    records.write("step", step=1, loss=0.5)
    records.write("step", step=2, loss=0.25)
    assert [record["step"] for record in records.read("step")] == [1, 2]
    first = next(records.read())
    assert first == {
        "kind": "start",
        "seed": 0,
        "name": "Frühstück 早餐",
        "sizes": [28, 28],
        "nested": {"a": [1, None]},
    }
    lines = (tmp_path / "metrics.jsonl").read_bytes().decode("utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["start", "step", "step"]
    assert list(Records(str(tmp_path / "metrics.jsonl")).read("done")) == []


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    records = Records(tmp_path / "r.jsonl")
    records.write("step", loss=float("nan"), deep={"x": [float("inf"), -float("inf"), 1.5]})

    def refuse(constant):
        raise AssertionError(constant)

    line = (tmp_path / "r.jsonl").read_text()
    record = json.loads(line, parse_constant=refuse)
    assert record == {"kind": "step", "loss": None, "deep": {"x": [None, None, 1.5]}}


@pytest.mark.parametrize("cut", [1, 5, 17])
def test_a_line_that_was_cut_short_is_passed_over_and_then_overwritten(tmp_path, cut):
    records = Records(tmp_path / "r.jsonl")
    for step in range(3):
        records.write("step", step=step, name="é")
    whole = records.path.read_bytes()
    records.path.write_bytes(whole[:-cut])
    survived = [0, 1, 2] if cut == 1 else [0, 1]  # only the newline is missing: nothing is lost
    assert [record["step"] for record in records.read()] == survived
    records.write("step", step=9)
    assert [record["step"] for record in records.read()] == [*survived, 9]


def test_rewind_keeps_what_it_is_told_and_cuts_off_a_broken_line(tmp_path):
    records = Records(tmp_path / "r.jsonl")
    records.rewind(lambda record: False)
    assert not records.path.exists()
    for step in range(4):
        records.write("step", step=step, name="é")
    with records.path.open("ab") as file:
        file.write(b'{"kind": "step", "st')
    records.rewind(lambda record: record["step"] < 2)
    assert [record["step"] for record in records.read()] == [0, 1]
    assert records.path.read_bytes().endswith(b"\n")
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]
    records.write("step", step=2)
    assert [record["step"] for record in records.read()] == [0, 1, 2]


@pytest.mark.parametrize("bad", [b"nonsense", b"[1, 2]", b"\xff\xfe", b"12"])
def test_a_broken_line_in_the_middle_is_named(tmp_path, bad):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"kind": "a"}\n' + bad + b'\n{"kind": "b"}\n')
    with pytest.raises(Error, match=r"r\.jsonl: line 2 is not a JSON object"):
        list(Records(path).read())


def test_empty_lines_are_nothing(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'\n{"kind": "a"}\r\n\n{"kind": "b"}\n\n')
    assert [record["kind"] for record in Records(path).read()] == ["a", "b"]


def test_a_file_that_cannot_be_written_is_an_error_in_words(tmp_path):
    with pytest.raises(Error, match=r"nowhere.*cannot be written"):
        Records(tmp_path / "nowhere" / "r.jsonl").write("step")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_error_in_words():
    with pytest.raises(Error, match="No space left"):
        Records("/dev/full").write("step", step=1)


def test_a_writer_killed_at_any_moment_leaves_a_readable_file(tmp_path):
    path = tmp_path / "r.jsonl"
    program = (
        "import sys, itertools\n"
        "from vitrail.kit.records import Records\n"
        "records = Records(sys.argv[1])\n"
        "for step in itertools.count():\n"
        "    records.write('step', step=step, filling='x' * 20000)\n"
    )
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", program, str(path)])
        before = path.stat().st_size if path.exists() else 0
        while not path.exists() or path.stat().st_size < before + 200_000:
            assert writer.poll() is None
            time.sleep(0.005)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        steps = [record["step"] for record in Records(path).read()]
        assert len(steps) >= 10
    assert steps.count(0) == 3
