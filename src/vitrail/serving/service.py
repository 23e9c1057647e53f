"""The service: everything that the server's routes need, and no HTTP.

Holds the line, the workers, the metrics and the log of one server, and turns pictures into answers
or into a refusal with its status.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from vitrail.serving.limits import Budget, Gone, Receive, Refused, busy
from vitrail.serving.line import Answer, Full, Line
from vitrail.serving.logs import Log
from vitrail.serving.metrics import Metrics
from vitrail.serving.settings import Settings
from vitrail.serving.supervisor import Supervisor

RETRY = {"Retry-After": "1"}


class Service:
    """See the module's head.

    Args:
        settings: the limits.
        command: starts a worker.
        log: where events go.

    Attributes:
        draining: whether a signal said that it is time to end.
        closing: whether the server has stopped listening.
    """

    def __init__(self, settings: Settings, command: Sequence[str], log: Log | None = None):
        self.settings, self.metrics = settings, Metrics()
        self.log = log or Log()
        self.line, self.budget = Line(settings.queue), Budget(settings.held_bytes)
        self.supervisor = Supervisor(
            command,
            self.line,
            self.log,
            count=settings.workers,
            room=2 * settings.batch_size,
            stall=settings.stall_seconds,
            computed=self.metrics.computed,
        )
        self.draining = self.closing = False
        for gauge, value in {
            self.metrics.queue: lambda: self.line.held,
            self.metrics.ready: lambda: self.supervisor.ready,
            self.metrics.restarts: lambda: self.supervisor.restarts,
            self.metrics.held: lambda: self.budget.held,
            self.metrics.dropped: lambda: self.log.dropped,
        }.items():
            gauge.set_function(value)

    @property
    def model(self) -> dict[str, Any]:
        """What the workers say of their model."""
        return self.supervisor.model

    @property
    def ready(self) -> bool:
        """Whether requests should come here."""
        return self.supervisor.ready > 0 and not self.draining

    def answered_unasked(self, status: int, client: tuple[str, int] | None) -> None:
        """Count an answer that no route gave: to no HTTP, or to one connection too many.

        It is logged too, unless the client is None: then its request says it.
        """
        self.metrics.answered(status, 0.0)
        if client is not None:
            self.log.say("request", client=client[0], status=status)

    def check(self) -> None:
        """Whether a picture would be taken now; asked before a body is read.

        Raises:
            Refused: 503 or 429.
        """
        if not self.supervisor.ready:
            raise Refused(503, "no worker is ready yet: try again", RETRY)
        with _full_is_busy():
            self.line.check(1)

    async def answers(
        self,
        pictures: Sequence[bytes | bytearray],
        top_k: int,
        extras: Sequence[str],
        receive: Receive,
    ) -> list[Answer]:
        """What the model says of pictures, in order.

        Args:
            pictures: files.
            top_k: labels of each.
            extras: names of other outputs.
            receive: as ASGI has it, at the end of the body: the client's leaving comes there.

        Raises:
            Refused: 429, 500, 503 or 504; one picture alone: 400 or 413.
            Gone: the client left; what was not computed yet will not be.
        """
        self.check()
        with _full_is_busy():
            items = self.line.enter(pictures, top_k, extras, self.settings.deadline)
        leaving = asyncio.ensure_future(receive())
        leaving.add_done_callback(lambda _: self.line.abandon(items))
        try:
            _, late = await asyncio.wait(
                [item.answer for item in items], timeout=self.settings.deadline
            )
            gone = leaving.done()
        finally:
            leaving.cancel()
            self.line.abandon(items)
        if gone or late:
            self.metrics.pictures.labels("dropped").inc(len(items))
        if gone:
            raise Gone
        if late:
            raise Refused(504, f"no answer within {self.settings.deadline:g} s", RETRY)
        answers = [item.answer.result() for item in items]
        for answer in answers:
            self.metrics.pictures.labels(answer.outcome).inc()
        _check(answers)
        return answers


def _check(answers: Sequence[Answer]) -> None:
    """Raise what makes a whole request fail."""
    outcomes = {answer.outcome for answer in answers}
    if "failed" in outcomes:
        raise Refused(500, "the model failed; the server's log says why")
    if "lost" in outcomes:
        # Without Retry-After: the picture may be why, and would kill the next one too.
        raise Refused(503, "the worker that had this picture died, perhaps of it")
    if "dropped" in outcomes:
        raise Refused(504, "no answer within the deadline", RETRY)
    if len(answers) == 1 and answers[0].outcome != "ok":
        status = 413 if answers[0].outcome == "large" else 400
        raise Refused(status, answers[0].reason or "the picture cannot be read")


@contextlib.contextmanager
def _full_is_busy():
    try:
        yield
    except Full:
        raise busy("the queue is full") from None
