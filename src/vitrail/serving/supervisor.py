"""The supervisor: starts the workers, gives them pictures, and starts them again when they die.

A worker's socket closes when it dies, whatever killed it, so its death is known at once: what it
had in hand is answered as lost, what waits in the line waits for the next. A worker that does not
answer for long, or takes far longer to open the model than the first one did, is killed. One that
comes back as another model than the first is refused.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vitrail.kit.errors import Error
from vitrail.serving import wire
from vitrail.serving.line import Answer, Item, Line
from vitrail.serving.logs import Log

PAUSES = (0.0, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before a start, by the quick deaths before
LINE = 4096  # bytes of what a worker writes that are logged as one line, at most
REAPING = 10.0  # seconds in which a killed process is gone, unless the system holds it
OPENING = 5.0  # times what the first worker took to open the model, and a worker is taken for dead
SETTLED = 10.0  # seconds for which a worker serves after which its death is none of these


class Worker:
    """One worker process and what it has in hand.

    Args:
        command: starts it; the number of its socket is added.
        room: pictures that it has in hand at most, those apart that it has set aside.

    Attributes:
        hand: what it has and has not answered, by number.
        aside: which of these are large and wait for each other, at nobody else's cost.
    """

    def __init__(self, command: Sequence[str], room: int):
        ours, theirs = socket.socketpair()
        self._most, self.hand, self.aside = room, dict[int, Item](), set[int]()
        self.sits = 0  # seconds, counted and not measured: a machine that was paused accuses nobody
        environment = {k: v for k, v in os.environ.items() if k != "VITRAIL_TOKEN"}
        with theirs:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,  # what it says goes into the log
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,  # a terminal's Ctrl-C is not for it
            )
        ours.setblocking(False)
        self._socket = ours
        self._writer: asyncio.StreamWriter | None = None

    def said(self) -> Iterator[str]:
        """The lines that it writes, for a thread that waits for them; longer ones in parts."""
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            while line := pipe.readline(LINE):
                if text := line.decode("utf-8", "backslashreplace").rstrip():
                    yield text

    async def opened(self) -> asyncio.StreamReader:
        """Where its frames are read."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        return reader

    @property
    def room(self) -> int:
        """See `Carrier`."""
        return self._most - len(self.hand) + len(self.aside)

    def carry(self, item: Item) -> None:
        """See `Carrier`."""
        self.hand[item.number] = item
        head = {
            "kind": "picture",
            "number": item.number,
            "top_k": item.top_k,
            "extras": list(item.extras),
            "deadline": item.deadline,
        }
        self._write(wire.packed(head, len(item.data)), item.data)
        item.data = b""

    def forget(self, item: Item) -> None:
        """See `Carrier`."""
        self._write(wire.packed({"kind": "cancel", "number": item.number}))

    def sits_since(self) -> float:
        """The first deadline of what it has in hand, by the monotonic clock."""
        return min((item.deadline for item in self.hand.values()), default=float("inf"))

    async def ended(self, seconds: float = 0.5) -> None:
        """Wait a moment for a process that closed its socket: its status says why."""
        for _ in range(round(seconds * 100)):
            if self.process.poll() is not None:
                return
            await asyncio.sleep(0.01)

    def end(self) -> None:
        """Close its socket, and kill it: it has nothing to save; `ended` then buries it."""
        if self._writer is not None:
            self._writer.close()
        else:
            self._socket.close()
        self.process.kill()

    def _write(self, *parts: bytes | bytearray) -> None:
        assert self._writer is not None
        if not self._writer.is_closing():
            self._writer.writelines(parts)


class Supervisor:
    """Keeps a number of workers alive.

    Args:
        command: starts one.
        line: where their pictures come from.
        log: told of starts and deaths.
        count: how many.
        room: pictures that each has in hand at most, see `Worker`.
        stall: seconds past the deadline of a picture after which its worker is taken for dead;
            and in which one that is started again may at least take to open the model.
        computed: told of each batch, its size and seconds.

    Attributes:
        model: what the workers say of their model; empty before the first is ready.
        restarts: how many workers died.
    """

    def __init__(
        self,
        command: Sequence[str],
        line: Line,
        log: Log,
        count: int = 1,
        room: int = 16,
        stall: float = 60.0,
        computed: Callable[[int, float], None] = lambda size, seconds: None,
    ):
        self.command, self.line, self.log = command, line, log
        self.count, self.room, self.stall, self.computed = count, room, stall, computed
        self.model: dict[str, Any] = {}
        self.restarts = 0
        self._first: asyncio.Future[None] | None = None
        self._opening: dict[Worker, int] = {}  # seconds, counted as `Worker.sits`
        self._most_opening = float("inf")
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> int:
        """Workers that take pictures."""
        return len(self.line.carriers)

    async def start(self) -> None:
        """Start the workers and wait for the first.

        Raises:
            Error: it cannot open the model; its own sentence.
        """
        self._first = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._keep(place)) for place in range(self.count)]
        self._tasks.append(asyncio.create_task(self._watch()))
        try:
            await self._first
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End all workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, place: int) -> None:
        deaths = 0
        while True:
            await asyncio.sleep(PAUSES[min(deaths, len(PAUSES) - 1)])
            served, end = await self._lifetime(place)
            deaths = 0 if served >= SETTLED else deaths + 1
            if self._first is not None and self._first.done():
                self.log.say("worker_died", level="error", worker=place, **end)
                self.restarts += 1
            elif self._first is not None and deaths >= 2:
                said = " ".join(f"{name} {value}" for name, value in end.items())
                self._first.set_exception(
                    Error(f"the worker process died while it opened the model ({said})")
                )

    async def _lifetime(self, place: int) -> tuple[float, dict[str, Any]]:
        """Of one worker: the seconds for which it served, and how it ended."""
        served = 0.0
        try:
            worker = Worker(self.command, self.room)
        except OSError as error:  # no memory, or too many processes: there may be some later
            return 0.0, {"reason": error.strerror}
        threading.Thread(target=self._log_said, args=(worker,), daemon=True).start()
        try:
            served = await self._serve(worker, place)
            await worker.ended()
        except Exception:  # a fault of ours must not end the supervision
            self.log.say("fault", level="error", traceback=traceback.format_exc())
        finally:
            self._bury(worker)
            await worker.ended(REAPING)  # not process.wait: it would hold up everybody
        return served, {"pid": worker.process.pid, "status": worker.process.returncode}

    def _log_said(self, worker: Worker) -> None:
        for line in worker.said():
            self.log.say("worker_said", level="warning", pid=worker.process.pid, line=line)

    async def _serve(self, worker: Worker, place: int) -> float:
        """Read a worker's frames until it is gone; the seconds for which it served."""
        began, ready = time.monotonic(), None
        reader = await worker.opened()
        with contextlib.suppress(EOFError, ConnectionError):
            self._opening[worker] = 0
            try:
                head, _ = await wire.read(reader)
            finally:
                del self._opening[worker]
            if not self._greeted(worker, head):
                return 0.0
            ready = time.monotonic()
            seconds = round(ready - began, 3)
            self.log.say("worker_ready", worker=place, pid=worker.process.pid, seconds=seconds)
            self.line.carriers.append(worker)
            self.line.pump()
            if self._first is not None and not self._first.done():
                self._most_opening = max(self.stall, OPENING * seconds)
                self._first.set_result(None)
            while True:
                self._heard(worker, *await wire.read(reader))
        return 0.0 if ready is None else time.monotonic() - ready

    def _greeted(self, worker: Worker, head: Mapping[str, Any]) -> bool:
        """Take a worker's first words; whether it may serve."""
        if head["kind"] == "ready" and self.model in ({}, head["model"]):
            self.model = head["model"]
            return True
        reason = head.get("reason", "the model is another than when the server started: restart it")
        if self._first is not None and not self._first.done():
            self._first.set_exception(Error(reason))
        else:
            self.log.say("worker_refused", level="error", pid=worker.process.pid, reason=reason)
        return False

    def _heard(self, worker: Worker, head: Mapping[str, Any], body: bytes) -> None:
        if head["kind"] == "batch":
            self.computed(head["size"], head["seconds"])
            return
        if head["kind"] == "aside":
            worker.aside.add(head["number"])
            self.line.pump()
            return
        worker.aside.discard(head["number"])
        item = worker.hand.pop(head["number"], None)
        if item is None:
            return
        if head["outcome"] == "failed":
            self.log.say("model_failed", level="error", traceback=head["reason"])
        arrays = wire.arrays_from_bytes(head["arrays"], body)
        self.line.finish(item, Answer(head["outcome"], head["reason"], arrays))
        self.line.pump()

    def _bury(self, worker: Worker) -> None:
        if worker in self.line.carriers:
            self.line.carriers.remove(worker)
        worker.end()
        for item in worker.hand.values():
            self.line.finish(item, Answer("lost"))
        worker.hand.clear()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1)
            for worker in [one for one in self.line.carriers if isinstance(one, Worker)]:
                worker.sits = worker.sits + 1 if time.monotonic() > worker.sits_since() else 0
                if worker.sits > self.stall:
                    self._kill(worker)
            for worker in self._opening:
                self._opening[worker] += 1
                if self._opening[worker] > self._most_opening:
                    self._kill(worker)

    def _kill(self, worker: Worker) -> None:
        self.log.say("worker_stalled", level="error", pid=worker.process.pid)
        worker.process.kill()


def worker_command(model: Mapping[str, Any], wait: float) -> list[str]:
    """What starts a worker for a model; ``model`` is the arguments of `ClassifierModel`."""
    wanted = {"model": model, "wait": wait, "parent": os.getpid()}
    return [sys.executable, "-P", "-m", "vitrail.serving.worker", json.dumps(wanted)]
