"""The line: pictures that were taken, from the moment they are until they are answered.

It is bounded: the number of pictures taken and not yet answered, waiting or in work, never exceeds
the limit; who comes then is told at once. Nothing here is a thread: all of it runs in the server's
event loop. Workers ask for nothing; `pump` gives them pictures while they have room.
"""

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Answer:
    """What became of a picture.

    Args:
        outcome: ``ok``; ``unreadable`` or ``large`` (the picture's fault), ``dropped`` (nobody
            waits), ``failed`` (the model's fault) or ``lost`` (its worker died).
        reason: in words.
        arrays: of ``ok``: ``places`` and ``probabilities`` [top_k], and what else was asked for.
    """

    outcome: str
    reason: str | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(eq=False)
class Item:
    """A picture in the line."""

    number: int
    data: bytes | bytearray
    top_k: int
    extras: Sequence[str]
    deadline: float
    answer: "asyncio.Future[Answer]"
    carrier: "Carrier | None" = None
    left: bool = False


class Carrier(Protocol):
    """Where pictures go: a worker."""

    @property
    def room(self) -> int:
        """How many pictures it takes now."""
        ...

    def carry(self, item: Item) -> None:
        """Take one."""
        ...

    def forget(self, item: Item) -> None:
        """Nobody waits for this one any more; its answer still comes."""
        ...


class Full(Exception):
    """There is no place for so many pictures."""


class Line:
    """See the module's head."""

    def __init__(self, limit: int):
        self.limit, self.held = limit, 0
        self.carriers: list[Carrier] = []
        self._waiting: OrderedDict[int, Item] = OrderedDict()
        self._numbers = itertools.count(1)

    @property
    def waiting(self) -> int:
        """Pictures that no worker has yet."""
        return len(self._waiting)

    def check(self, count: int) -> None:
        """Whether so many would be taken.

        Raises:
            Full: they would not.
        """
        if self.held + count > self.limit:
            raise Full

    def enter(
        self,
        pictures: Sequence[bytes | bytearray],
        top_k: int,
        extras: Sequence[str],
        seconds: float,
    ) -> list[Item]:
        """Take pictures, all or none; their answers come within ``seconds`` or not at all.

        Raises:
            Full: there is no place for all of them.
        """
        self.check(len(pictures))
        deadline, loop = time.monotonic() + seconds, asyncio.get_running_loop()
        items = [
            Item(next(self._numbers), data, top_k, extras, deadline, loop.create_future())
            for data in pictures
        ]
        self.held += len(items)
        self._waiting.update((item.number, item) for item in items)
        self.pump()
        return items

    def abandon(self, items: Sequence[Item]) -> None:
        """Nobody waits for these any more: those that are not in work leave, the rest is told."""
        for item in items:
            if item.left:
                continue
            if self._waiting.pop(item.number, None):
                self.finish(item, Answer("dropped"))
            elif item.carrier is not None:
                item.carrier.forget(item)

    def finish(self, item: Item, answer: Answer) -> None:
        """An item leaves the line."""
        if item.left:
            return
        item.left, item.data = True, b""
        self.held -= 1
        if not item.answer.done():  # else who asked is gone
            item.answer.set_result(answer)

    def pump(self) -> None:
        """Give what waits to the carriers, to the one with most room first."""
        while self._waiting and self.carriers:
            carrier = max(self.carriers, key=lambda carrier: carrier.room)
            if carrier.room < 1:
                return
            _, item = self._waiting.popitem(last=False)
            item.carrier = carrier
            carrier.carry(item)
