"""Batches in a worker: what is gathered, what is not computed, who is held up by whom."""

import threading
import time

import numpy as np
import pytest

from vitrail.kit.errors import Error
from vitrail.serving.batcher import Batcher, Picture
from vitrail.serving.classifier import likeliest


class Model:
    """Takes as long as its pictures say, and remembers its batches."""

    def __init__(self):
        self.batches: list[list[str]] = []
        self.started, self.go = threading.Event(), threading.Event()
        self.go.set()

    def describe(self):
        return {}

    def is_large(self, data: bytes) -> bool:
        return data.startswith(b"large")

    def prepare(self, data: bytes) -> np.ndarray:
        if data.startswith((b"slow", b"large")):
            time.sleep(0.5)
        if data == b"bad":
            raise Error("not a picture")
        if data == b"fault":
            raise ZeroDivisionError
        return np.frombuffer(data[:8].ljust(8), np.uint8)

    def notes(self, data: bytes, extras):
        return {"note": np.frombuffer(data, np.uint8)}

    def outputs(self, pixels, extras):
        self.batches.append([bytes(row).decode().strip() for row in pixels])
        self.started.set()
        assert self.go.wait(10)
        chances = np.linspace(0, 1, 5, dtype=np.float32)[None].repeat(len(pixels), 0)
        chances[[name == "nan" for name in self.batches[-1]], 3] = np.nan
        chances[[name == "inf" for name in self.batches[-1]], 2] = np.inf
        found = {"probabilities": chances}
        if "map" in extras:
            found["map"] = np.arange(4.0).reshape(1, 2, 2).repeat(len(pixels), 0)
        return found


@pytest.fixture
def running():
    """(model, batcher, answers): the batcher computes in a thread."""
    model, answers = Model(), {}

    def answer(number, outcome, reason, arrays):
        assert number not in answers
        answers[number] = (outcome, reason, arrays)

    batcher = Batcher(model, answer, size=4, wait=0.2, decoders=2)
    thread = threading.Thread(target=batcher.run)
    thread.start()
    yield model, batcher, answers
    model.go.set()
    batcher.close()
    thread.join(10)
    assert not thread.is_alive()


def wait_for(answers: dict, count: int) -> None:
    end = time.monotonic() + 10
    while len(answers) < count:
        assert time.monotonic() < end, answers
        time.sleep(0.005)


def test_one_alone_is_computed_at_once(running):
    _, batcher, answers = running
    began = time.monotonic()
    batcher.add(Picture(1, b"a", top_k=2))
    wait_for(answers, 1)
    assert time.monotonic() - began < 0.15  # it waits for nobody
    outcome, _, arrays = answers[1]
    assert outcome == "ok"
    assert arrays["places"].tolist() == [4, 3]
    assert arrays["probabilities"].tolist() == [1.0, 0.75]
    assert set(arrays) == {"places", "probabilities"}


def test_what_came_meanwhile_is_the_next_batch_in_order(running):
    model, batcher, answers = running
    model.go.clear()
    batcher.add(Picture(0, b"first"))
    assert model.started.wait(5)
    for number in range(1, 7):
        batcher.add(Picture(number, b"%d" % number))
    time.sleep(0.2)
    model.go.set()
    wait_for(answers, 7)
    assert [len(batch) for batch in model.batches] == [1, 4, 2]
    assert model.batches[0] == ["first"]
    assert sorted(name for batch in model.batches[1:] for name in batch) == list("123456")


def test_what_was_given_up_or_is_late_is_not_computed(running):
    model, batcher, answers = running
    model.go.clear()
    batcher.add(Picture(0, b"first"))
    assert model.started.wait(5)
    now = time.monotonic()
    batcher.add(Picture(1, b"left"))
    batcher.add(Picture(2, b"late", deadline=now + 0.3))
    batcher.add(Picture(3, b"in time", deadline=now + 30))
    batcher.add(Picture(4, b"too late", deadline=now - 1))
    wait_for(answers, 1)
    time.sleep(0.1)
    batcher.cancel(1)
    assert answers[1][0] == "dropped"  # at once: its place is free for another
    time.sleep(0.4)
    model.go.set()
    wait_for(answers, 5)
    assert {number: answer[0] for number, answer in answers.items()} == {
        0: "ok",
        1: "dropped",
        2: "dropped",
        3: "ok",
        4: "dropped",
    }
    assert model.batches == [["first"], ["in time"]]
    batcher.cancel(3)  # long answered: nothing happens
    batcher.cancel(99)


def test_a_picture_that_is_slow_to_decode_holds_up_nobody(running):
    model, batcher, answers = running
    batcher.add(Picture(1, b"slow"))
    time.sleep(0.05)
    batcher.add(Picture(2, b"quick"))
    wait_for(answers, 1)
    assert set(answers) == {2}
    wait_for(answers, 2)
    assert model.batches == [["quick"], ["slow"]]


def test_large_pictures_wait_for_each_other_and_nobody_waits_for_them(running):
    model, batcher, answers = running
    batcher.wait = 5
    for number in range(4):
        batcher.add(Picture(number, b"large %d" % number))
    time.sleep(0.05)
    began = time.monotonic()
    batcher.add(Picture(9, b"quick"))
    wait_for(answers, 1)
    assert set(answers) == {9}
    assert time.monotonic() - began < 0.4
    wait_for(answers, 5)
    assert model.batches[0] == ["quick"]
    assert sorted(model.batches[1:]) == [[f"large {number}"] for number in range(4)]
    assert time.monotonic() - began > 1.5  # one after the other


def test_a_batch_waits_a_moment_for_what_is_being_decoded(running):
    model, batcher, answers = running
    batcher.wait = 5
    batcher.add(Picture(1, b"slow 1"))
    batcher.add(Picture(2, b"quick"))
    wait_for(answers, 2)
    assert sorted(model.batches[0]) == ["quick", "slow 1"]


def test_faults_belong_to_those_who_have_them(running):
    _, batcher, answers = running
    for number, data in enumerate((b"bad", b"fault", b"fine")):
        batcher.add(Picture(number, data))
    wait_for(answers, 3)
    assert answers[0][:2] == ("unreadable", "not a picture")
    assert answers[1][0] == "failed"
    assert "ZeroDivisionError" in answers[1][1]
    assert answers[2][0] == "ok"


def test_what_is_no_number_is_the_fault_of_its_own_picture(running):
    model, batcher, answers = running
    model.go.clear()
    batcher.add(Picture(0, b"first"))
    assert model.started.wait(5)
    for number, data in enumerate((b"nan", b"fine", b"inf"), start=1):
        batcher.add(Picture(number, data))
    time.sleep(0.1)
    model.go.set()
    wait_for(answers, 4)
    assert sorted(model.batches[1]) == ["fine", "inf", "nan"]
    assert {number: answers[number][0] for number in range(1, 4)} == {
        1: "failed",
        2: "ok",
        3: "failed",
    }
    assert "not a number" in answers[1][1]


def test_other_outputs_go_to_who_asked(running):
    _, batcher, answers = running
    batcher.add(Picture(1, b"a", extras=frozenset({"map", "unknown"})))
    wait_for(answers, 1)
    assert answers[1][2]["map"].tolist() == [[0, 1], [2, 3]]
    assert "unknown" not in answers[1][2]
    assert answers[1][2]["note"].tobytes() == b"a"  # what is said of this one file


def test_the_likeliest():
    chances = np.array([0.1, 0.4, 0.1, 0.4], np.float32)
    assert likeliest(chances, 3).tolist() == [1, 3, 0]
    assert likeliest(chances, 9).tolist() == [1, 3, 0, 2]
    assert likeliest(np.stack([chances, -chances]), 2).tolist() == [[1, 3], [0, 2]]
