"""Connections: uvicorn's HTTP/1.1 with the bounds that it does not have.

A request's head must come in so many seconds, however slowly it drips; a client that reads nothing
of its answer for so many is cut off; the number of connections is bounded; a body cut into crumbs
is refused, because each crumb costs far more to take apart than it costs to send; and so is a
request that says in two ways how long it is, which a proxy may understand in the other one.
"""

import asyncio
import json
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS, HEAD_BYTES = 10.0, 16 * 1024
WRITE_SECONDS = 10.0  # in which a client must read something of what waits for it
CRUMBS, CRUMB = 2000, 64  # after so many pieces of a body, their mean size in bytes is at least
BUSY = b'{"error":"too many connections"}'


class _Connection(h11.Connection):
    """Counts the pieces of a body, and refuses one whose length is ambiguous."""

    pieces = size = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.pieces = self.size = 0
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (
                b"content-length" in names or event.http_version < b"1.1"
            ):  # RFC 9112, 6.1
                raise h11.RemoteProtocolError("a length and an encoding")
        elif isinstance(event, h11.Data):
            self.pieces += 1
            self.size += len(event.data)
            if self.pieces > CRUMBS and self.size < CRUMB * self.pieces:
                raise h11.RemoteProtocolError("a body in crumbs")
        return event


class Protocol(H11Protocol):
    """See the module's head. Made by `protocol`, which sets the two fields."""

    most: int = 1000
    # Of answers that no route gave; the client is None where its request is logged anyhow.
    told: Any = staticmethod(lambda status, client: None)

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        self.conn = _Connection(h11.SERVER, HEAD_BYTES)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """As asyncio has it."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that we are told of all that waits
        # The system's buffer would hold megabytes for who reads slowly, and look as if nobody did.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        if len(self.connections) > self.most:
            transport.write(
                b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(BUSY), BUSY)
            )
            transport.close()
            self.told(503, self.client)
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it."""
        self._head_came()
        self._was_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """As asyncio has it."""
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        """As asyncio has it."""
        self._was_read()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """As asyncio has it."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_came()
        elif self._head_timer is None:
            self._await_head()

    def on_response_complete(self) -> None:
        """As uvicorn has it."""
        super().on_response_complete()
        if self.cycle is not None and not self.cycle.response_complete:  # one that was pipelined
            self._head_came()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn has it, in JSON, counted and logged where it is given."""
        request = self.cycle is not None and not self.cycle.response_complete
        if request:  # its body went wrong
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        try:
            body = json.dumps({"error": "this is no HTTP request that is understood"}).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            if request:
                scope: Any = self.cycle.scope
                scope["instead"] = 400  # of whatever its route would have said
            self.told(400, None if request else self.client)
        except h11.LocalProtocolError:  # in the middle of an answer
            pass
        self.transport.close()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _await_reading(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self._check_reading, left)

    def _check_reading(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._await_reading()  # slow, but it reads
        else:
            self.transport.abort()  # to close it would wait for the client

    def _was_read(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def protocol(connections: int, told: Any) -> type[Protocol]:
    """The class of a server's connections."""
    return type("Protocol", (Protocol,), {"most": connections, "told": staticmethod(told)})
