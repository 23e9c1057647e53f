"""Many clients in one thread: plain HTTP over asyncio, light beside a server on the same cores."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

CLASSIFY = "POST /v1/classify"


@dataclass
class Reply:
    """What came back: status 0 where the connection was refused, -1 where it broke."""

    status: int
    seconds: float
    began: float
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Client:
    """One connection, opened again when the server closes it."""

    def __init__(self, port: int):
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, target: str = CLASSIFY, body: bytes = b"picture", kind: str = "image/png"
    ) -> Reply:
        began = time.monotonic()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return Reply(0, time.monotonic() - began, began)
        reader, writer = self._streams
        length = f"Content-Length: {len(body)}\r\n" if target.startswith("POST") else ""
        text = f"{target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{length}\r\n"
        try:
            writer.write(text.encode() + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            pairs = [line.partition(":") for line in lines[1:] if line]
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            answer = await reader.readexactly(int(headers.get("content-length", 0)))
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return Reply(-1, time.monotonic() - began, began)
        if headers.get("connection") == "close":
            self.close()
        return Reply(int(lines[0].split()[1]), time.monotonic() - began, began, answer, headers)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def load(
    port: int,
    clients: int,
    seconds: float = float("inf"),
    count: int | None = None,
    pause: float = 0.0,
    body: bytes | Callable[[int], bytes] = b"picture",
    kind: str = "image/png",
    until: Callable[[Reply], bool] = lambda reply: False,
    patience: float = 40.0,
) -> list[Reply]:
    """Ask from so many clients for so long, or so many times in all; every reply.

    Bodies are of type ``kind``. ``body`` may be a function of the request's number; a client for
    which ``until`` is true of a reply stops. A request that takes ``patience`` seconds hangs.
    """
    replies: list[Reply] = []
    numbers = iter(range(count if count is not None else 2**60))

    async def one(end: float) -> None:
        client = Client(port)
        while time.monotonic() < end and (number := next(numbers, None)) is not None:
            reply = await client.ask(body=body(number) if callable(body) else body, kind=kind)
            replies.append(reply)
            if until(reply):
                break
            await asyncio.sleep(pause)
        client.close()

    async def everyone() -> None:
        end = time.monotonic() + seconds
        await asyncio.wait_for(
            asyncio.gather(*(one(end) for _ in range(clients))),
            None if seconds == float("inf") else seconds + patience,  # longer, and one hangs
        )

    asyncio.run(everyone())
    return replies
