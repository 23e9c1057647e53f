"""The line and the log: what is bounded stays so, and nobody waits for who does not read."""

import asyncio
import io
import json
import os
import threading
import time

import pytest

from vitrail.serving.line import Answer, Full, Item, Line
from vitrail.serving.logs import WAITING, Log


class Carrier:
    def __init__(self, room: int):
        self.most, self.carried, self.forgotten = room, list[Item](), list[Item]()

    @property
    def room(self) -> int:
        return self.most - len(self.carried)

    def carry(self, item: Item) -> None:
        self.carried.append(item)

    def forget(self, item: Item) -> None:
        self.forgotten.append(item)


def enter(line: Line, *pictures: bytes) -> list[Item]:
    return line.enter(pictures, 5, (), 10.0)


def in_loop(test):
    def run():
        asyncio.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@in_loop
async def test_all_are_taken_or_none():
    line = Line(3)
    enter(line, b"a", b"b")
    with pytest.raises(Full):
        enter(line, b"c", b"d")
    assert (line.held, line.waiting) == (2, 2)
    enter(line, b"e")
    with pytest.raises(Full):
        line.check(1)


@in_loop
async def test_who_has_most_room_is_given_the_next_in_order():
    line, small, large = Line(9), Carrier(1), Carrier(3)
    line.carriers += [small, large]
    enter(line, *[bytes([k]) for k in range(6)])
    assert [item.data for item in large.carried] == [b"\0", b"\1", b"\3"]
    assert [item.data for item in small.carried] == [b"\2"]
    assert (line.held, line.waiting) == (6, 2)
    done = large.carried.pop(0)
    line.finish(done, Answer("ok"))
    line.pump()
    assert large.carried[-1].data == b"\4"
    assert (await done.answer).outcome == "ok"
    assert line.held == 5


@in_loop
async def test_the_place_of_who_left_is_free_once_nothing_is_done_for_them():
    line, carrier = Line(2), Carrier(1)
    line.carriers.append(carrier)
    working, waiting = enter(line, b"a", b"b")
    line.abandon([working, waiting])
    assert (line.held, line.waiting) == (1, 0)
    assert carrier.forgotten == [working]
    working.answer.cancel()  # nobody waits for it; its answer comes all the same, and twice
    line.finish(working, Answer("dropped"))
    line.finish(working, Answer("ok"))
    assert line.held == 0


def test_a_log_that_nobody_reads_holds_up_nobody():
    reading, writing = os.pipe()
    log = Log(os.fdopen(writing, "w"))
    began = time.monotonic()
    for number in range(WAITING + 5000):
        log.say("event", number=number, filler="x" * 50)
    assert time.monotonic() - began < 5
    assert log.dropped >= 4000 - 65536 // 50
    lines: list[str] = []

    def read() -> None:
        with os.fdopen(reading) as file:
            lines.extend(file)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    log.say("last")
    log.close(10)
    log._file.close()
    reader.join(10)
    entries = [json.loads(line) for line in lines]
    assert entries[0]["number"] == 0
    assert any(entry["event"] == "log_dropped" for entry in entries)
    assert len(entries) >= WAITING


def test_a_log_whose_file_is_gone_goes_on():
    file = io.StringIO()
    log = Log(file)
    file.close()
    log.say("event")
    log.close()
    assert log.dropped == 1
