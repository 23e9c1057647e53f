"""Dynamic batches in a worker: pictures are decoded as they come and computed as many as there are.

While one batch is computed the next is decoded, by threads of their own, so a picture that is slow
to decode holds up nobody else. Large ones are set aside for one thread of their own: for the sake
of memory, and because a few of them would otherwise keep all the others waiting. A batch is what is
decoded when the arithmetic is free, up to the batch size; it waits only for pictures that are
already here (the large ones apart), never for any that might come. So a lone request is computed at
once. What was given up, or is past its deadline, is not computed.
"""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vitrail.data.decode import TooManyPixels
from vitrail.kit.errors import Error
from vitrail.serving.classifier import likeliest

Arrays = dict[str, np.ndarray]


class Model(Protocol):
    """What a worker computes with."""

    def describe(self) -> dict[str, Any]:
        """What `GET /v1/model` says of it."""
        ...

    def is_large(self, data: bytes) -> bool:
        """Whether a file is to be decoded alone, by its header; called by several threads.

        Raises:
            Error, TooManyPixels: as `prepare`.
        """
        ...

    def prepare(self, data: bytes) -> np.ndarray:
        """One file to the pixels that the model takes; called by several threads.

        Raises:
            Error: it cannot be decoded.
            TooManyPixels: it is too large.
        """
        ...

    def notes(self, data: bytes, extras: frozenset[str]) -> Arrays:
        """What else there is to say of one file, for those of ``extras`` that were asked for.

        It is called after `prepare`, by the same thread, where anything was asked for.
        """
        ...

    def outputs(self, pixels: np.ndarray, extras: frozenset[str]) -> Arrays:
        """A batch to ``probabilities`` [b k], and those of ``extras`` that it has, each [b ...]."""
        ...


@dataclass(eq=False)
class Picture:
    """One picture on its way through a worker.

    Args:
        number: that its answer bears.
        data: the file.
        top_k: how many labels are asked for.
        extras: what else is.
        deadline: by the monotonic clock, after which nobody waits for the answer.
    """

    number: int
    data: bytes
    top_k: int = 5
    extras: frozenset[str] = frozenset()
    deadline: float = float("inf")
    pixels: np.ndarray | None = field(default=None, repr=False)
    notes: Arrays = field(default_factory=dict, repr=False)


Answer = Callable[[int, str, str | None, Arrays], None]


class Batcher:
    """Decodes, gathers and computes.

    Args:
        model: does the arithmetic.
        answer: called with number, outcome (``ok unreadable large dropped failed``), reason and
            arrays; from several threads, once for each picture.
        size: of a batch, at most.
        wait: seconds that a batch waits for pictures that are being decoded.
        decoders: threads that decode.
        computed: called after each batch with its size and seconds.
        set_aside: called with the number of each picture that waits for the thread of large ones.
    """

    def __init__(
        self,
        model: Model,
        answer: Answer,
        size: int = 8,
        wait: float = 0.005,
        decoders: int = 1,
        computed: Callable[[int, float], None] = lambda size, seconds: None,
        set_aside: Callable[[int], None] = lambda number: None,
    ):
        self.model, self.answer, self.size, self.wait = model, answer, size, wait
        self._computed, self._set_aside = computed, set_aside
        self._pool = ThreadPoolExecutor(decoders, "decode")
        self._large = ThreadPoolExecutor(1, "decode large")
        self._changed = threading.Condition()
        self._here: dict[int, Picture] = {}  # all that is not yet answered
        self._ready: deque[Picture] = deque()  # of these, decoded and not yet computed
        self._decoding = 0  # of these, without the large ones: no batch waits for them
        self._closed = False

    def add(self, picture: Picture) -> None:
        """Take a picture."""
        with self._changed:
            self._here[picture.number] = picture
            self._decoding += 1
        self._pool.submit(self._decode, picture)

    def cancel(self, number: int) -> None:
        """Nobody waits for this one any more."""
        with self._changed:
            picture = self._here.get(number)
            if picture is None:
                return
            picture.deadline = float("-inf")
            waiting = picture in self._ready
            if waiting:
                self._ready.remove(picture)
        if waiting:
            self._answer(picture, "dropped")

    def close(self) -> None:
        """Let `run` return."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def run(self) -> None:
        """Compute batches until `close`."""
        while (batch := self._gathered()) is not None:
            if batch:
                self._compute(batch)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._large.shutdown(wait=False, cancel_futures=True)

    def _decode(self, picture: Picture, large: bool = False) -> None:
        """Decode one, or hand it on where it is found to be large."""
        outcome, reason = "ok", None
        if picture.deadline <= time.monotonic():
            outcome = "dropped"
        else:
            try:
                if not large and self.model.is_large(picture.data):
                    self._hand_on(picture)
                    return
                picture.pixels = self.model.prepare(picture.data)
                if picture.extras:
                    picture.notes = self.model.notes(picture.data, picture.extras)
            except TooManyPixels as error:
                outcome, reason = "large", str(error)
            except Error as error:
                outcome, reason = "unreadable", str(error)
            except Exception:
                outcome, reason = "failed", traceback.format_exc()
        picture.data = b""
        if outcome != "ok":
            self._answer(picture, outcome, reason)
        with self._changed:
            self._decoding -= not large
            if outcome == "ok":
                self._ready.append(picture)
            self._changed.notify_all()

    def _hand_on(self, picture: Picture) -> None:
        self._set_aside(picture.number)
        with self._changed:
            self._decoding -= 1
            self._changed.notify_all()
        self._large.submit(self._decode, picture, large=True)

    def _gathered(self) -> list[Picture] | None:
        """The next batch, without those that nobody waits for; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closed)
            if self._closed:
                return None
            until = time.monotonic() + self.wait
            while len(self._ready) < self.size and self._decoding and not self._closed:
                if not self._changed.wait(max(0.0, until - time.monotonic())):
                    break
            taken = [self._ready.popleft() for _ in range(min(self.size, len(self._ready)))]
        now = time.monotonic()
        for picture in taken:
            if picture.deadline <= now:
                self._answer(picture, "dropped")
        return [picture for picture in taken if picture.deadline > now]

    def _compute(self, batch: list[Picture]) -> None:
        began = time.monotonic()
        try:
            pixels = np.stack([picture.pixels for picture in batch if picture.pixels is not None])
            wanted = frozenset().union(*(picture.extras for picture in batch))
            found = self.model.outputs(pixels, wanted)
            finite = _finite_rows(found, len(batch))
        except Exception:
            reason = traceback.format_exc()
            for picture in batch:
                self._answer(picture, "failed", reason)
            return
        self._computed(len(batch), time.monotonic() - began)
        chances = found.pop("probabilities")
        for row, picture in enumerate(batch):
            if not finite[row]:
                self._answer(picture, "failed", "the model's answer is not a number")
                continue
            places = likeliest(chances[row], picture.top_k)
            arrays = {"places": places, "probabilities": chances[row][places]}
            arrays |= {name: found[name][row] for name in picture.extras if name in found}
            arrays |= picture.notes
            self._answer(picture, "ok", None, arrays)

    def _answer(
        self,
        picture: Picture,
        outcome: str,
        reason: str | None = None,
        arrays: Arrays | None = None,
    ) -> None:
        with self._changed:
            self._here.pop(picture.number, None)
        self.answer(picture.number, outcome, reason, arrays or {})


def _finite_rows(found: Arrays, count: int) -> np.ndarray:
    """Of a batch's outputs, which rows [count] hold numbers alone."""
    rows = [np.isfinite(array).reshape(count, -1).all(1) for array in found.values()]
    return np.logical_and.reduce(rows)
