"""The gate: what every request passes before and after the routes, whatever they do.

It gives each request an id, asks for the token, counts and logs the answer, and sees that an
answer given before the whole body was read reaches its client: a connection closed with bytes
unread is reset, and what was sent may be lost.
"""

import asyncio
import hmac
import json
import re
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from vitrail.serving.limits import Message, Receive
from vitrail.serving.service import RETRY, Service

Send = Callable[[Message], Awaitable[None]]
Scope = dict[str, Any]
Application = Callable[[Any, Any, Any], Awaitable[None]]
PROBES = ("/healthz", "/readyz", "/metrics")  # neither counted nor logged
OPEN = ("/", "/healthz", "/readyz")  # without the token, as is all below /page/
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
SMALL = 256 << 10  # bytes of a body that is read to its end before it is refused
PATIENCE = 0.25  # seconds in which it must come
LINGER = 2.0  # seconds in which the rest of a larger one is thrown away
SLOW = 408  # who is too slow is not waited for once more


class Gate:
    """See the module's head; an ASGI application around another."""

    def __init__(self, inner: Application, service: Service):
        self.inner, self.service = inner, service
        token = service.settings.token
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        passage = Passage(self.service, scope, receive, send)
        if self._allowed(scope["path"], passage.headers):
            await passage.through(self.inner)
        else:
            await passage.refuse(401, "a valid token is needed", {"WWW-Authenticate": "Bearer"})
        passage.log()

    def _allowed(self, path: str, headers: dict[str, str]) -> bool:
        if self._token is None or path in OPEN or path.startswith("/page/"):
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # latin-1, as the headers were read; compared in constant time, and always.
        same = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        return same and scheme.lower() == "bearer"


class Passage:
    """One request on its way through the gate."""

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send):
        self.service, self.scope = service, scope
        self._receive_inner, self._send_inner = receive, send
        self.headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        given = self.headers.get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = self.id
        self.began = time.monotonic()
        length = self.headers.get("content-length", "0")
        self._length = int(length[:20]) if length.isdigit() else 0
        self._unread = self._length > 0 or "transfer-encoding" in self.headers
        self._asked = False  # whether the body was asked for
        self.count, self.status, self.gone = 0, 0, False

    async def through(self, inner: Application) -> None:
        """Pass it on, and answer for what goes wrong there."""
        try:
            await inner(self.scope, self.receive, self.send)
        except asyncio.CancelledError:  # the server ends, and this one took too long
            if not self.status and not self.gone:
                await self.refuse(503, "the server is ending: try another", RETRY)
        except Exception:
            self.service.log.say(
                "fault", level="error", request_id=self.id, traceback=traceback.format_exc()
            )
            if not self.status:
                await self.refuse(500, "a fault of the server's; its log says more")

    async def refuse(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        """Answer with a status and a sentence."""
        body = json.dumps({"error": reason, "request_id": self.id}).encode()
        fields = {"content-type": "application/json", "content-length": str(len(body))}
        raw = [(k.encode(), v.encode()) for k, v in {**fields, **(headers or {})}.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})

    async def receive(self) -> Message:
        """As ASGI has it."""
        self._asked = True
        message = await self._receive_inner()
        if message["type"] == "http.disconnect":
            self.gone = self.gone or not self.status
            self._unread = False
        else:
            self.count += len(message.get("body", b""))
            self._unread = message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """As ASGI has it."""
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message.get("more_body", False):
            await self._send_inner(message)
        elif self._unread:
            await self._send_inner({**message, "more_body": True})
            self._given()
            if self.status != SLOW and (self._asked or "expect" not in self.headers):
                await self._throw_away(self.service.settings.max_bytes, LINGER)
            await self._send_inner({"type": "http.response.body", "body": b""})
        else:
            await self._send_inner(message)
            self._given()

    def _given(self) -> None:
        """All of an answer was handed over."""
        if not self.gone and self.scope["path"] not in PROBES:
            self.service.metrics.answered(self.status, time.monotonic() - self.began)

    async def _start(self, message: Message) -> None:
        status = message["status"]
        small = 0 < self._length <= SMALL and "expect" not in self.headers
        if self._unread and small and status != SLOW:
            await self._throw_away(SMALL, PATIENCE)
        self.status = status
        headers = [
            *message.get("headers", []),
            (b"x-request-id", self.id.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        if self._unread or self.service.closing:
            headers.append((b"connection", b"close"))
        await self._send_inner({**message, "headers": headers})

    async def _throw_away(self, most: int, seconds: float) -> None:
        """Read the rest of a body and forget it, within bounds."""
        until = self.count + most
        try:
            async with asyncio.timeout(seconds):
                while self._unread and self.count <= until:
                    await self.receive()
        except TimeoutError:
            pass

    def log(self) -> None:
        """Say what became of it."""
        if self.scope["path"] in PROBES:
            return
        client = self.scope.get("client")
        self.service.log.say(
            "request",
            request_id=self.id,
            client=client[0] if client else None,
            method=self.scope["method"],
            path=self.scope["path"][:200],
            status=self.scope.get("instead", 499 if self.gone else self.status),
            bytes=self.count,
            ms=round(1000 * (time.monotonic() - self.began), 1),
            **self.scope.get("log", {}),
        )
