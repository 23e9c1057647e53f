"""Bodies: read piece by piece, never further than the limits, never longer than they may take.

A body counts against three limits while it comes: its own size, the time that its size may take,
and the bytes of all bodies together that the server holds. Forms are taken apart as they come, so
a picture in a form costs no more memory than one alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NoReturn

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vitrail.serving.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
RATE = 16 * 1024  # bytes a second, below which a body is too slow
FIELD = "image"
RAW = "image/*, application/octet-stream"


class Refused(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None):
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers or {}


class Gone(Exception):
    """The client left; nobody will read an answer."""


class Budget:
    """Bytes of all bodies together."""

    def __init__(self, limit: int):
        self.limit, self.held = limit, 0

    def take(self, count: int) -> None:
        """Hold so many more.

        Raises:
            Refused: 429.
        """
        if self.held + count > self.limit:
            raise busy("the server holds as many bytes as it may")
        self.held += count

    def give(self, count: int) -> None:
        """Let go of so many."""
        self.held -= count


class Holding:
    """What one request holds of the budget; a context that gives it back."""

    def __init__(self, budget: Budget):
        self.budget, self.count = budget, 0

    def take(self, count: int) -> None:
        """See `Budget`."""
        self.budget.take(count)
        self.count += count

    def __enter__(self) -> "Holding":
        return self

    def __exit__(self, *error: object) -> None:
        self.budget.give(self.count)


def busy(reason: str) -> Refused:
    """429, to be tried again."""
    return Refused(429, reason, {"Retry-After": "1"})


async def read_pictures(
    headers: MutableMapping[str, str] | Any,
    receive: Receive,
    settings: Settings,
    holding: Holding,
) -> list[bytearray]:
    """The pictures of a request's body: one that is the body, or a form's fields `image`.

    Args:
        headers: a mapping from lower-case names to values.
        receive: as ASGI has it.
        settings: the limits.
        holding: counts the bytes.

    Raises:
        Refused: 400, 408, 413, 415, 422 or 429.
        Gone: the client left.
    """
    kind, options = _media_type(headers)
    _check_length(headers, settings.max_bytes)
    if kind == "multipart/form-data":
        form = Form(options.get(b"boundary", b""), settings.max_images)
        await _read(receive, form.write, settings, holding)
        return form.pictures()
    body = bytearray()
    await _read(receive, body.extend, settings, holding)
    return [body]


def _media_type(headers: MutableMapping[str, str]) -> tuple[str, dict[bytes, bytes]]:
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise Refused(415, f"a body in content-encoding {coding[:40]!r} is not read: send it plain")
    given = headers.get("content-type")
    if given is None:  # RFC 9110, 8.3: it may then be taken for this
        return "application/octet-stream", {}
    kind, options = parse_options_header(given)
    name = kind.decode("latin-1")
    if name.startswith("image/") or name in ("application/octet-stream", "multipart/form-data"):
        return name, options
    raise Refused(
        415,
        f"a body of type {name[:60]!r} is not read: send a picture as {RAW}, or a form "
        f"(multipart/form-data) with fields {FIELD!r}",
        {"Accept": f"{RAW}, multipart/form-data"},
    )


def _check_length(headers: MutableMapping[str, str], most: int) -> None:
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > most:
        _too_large(most)


def _too_large(most: int) -> NoReturn:
    raise Refused(413, f"a body of more than {most:,} bytes is not read")


async def _read(
    receive: Receive, write: Callable[[bytes], object], settings: Settings, holding: Holding
) -> None:
    """Read to the end, piece by piece."""
    loop = asyncio.get_running_loop()
    began, count, more = loop.time(), 0, True
    try:
        async with asyncio.timeout(None) as clock:
            while more:
                clock.reschedule(began + settings.body_seconds + count / RATE)
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                piece = message.get("body", b"")
                count += len(piece)
                if count > settings.max_bytes:
                    _too_large(settings.max_bytes)
                holding.take(len(piece))
                write(piece)
                more = message.get("more_body", False)
    except TimeoutError:
        raise Refused(
            408, f"the body came too slowly: {count:,} bytes in {loop.time() - began:.0f} s"
        ) from None


class Form:
    """A `multipart/form-data` body, taken apart as it comes.

    Args:
        boundary: between its fields.
        most: pictures.

    Raises:
        Refused: 400, it is no such form; 413, too many pictures; 422, another field.
    """

    def __init__(self, boundary: bytes, most: int):
        self.most = most
        self._pictures: list[bytearray] = []
        self._name, self._value, self._disposition = b"", b"", b""
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            self._broken()
        if not boundary:
            self._broken()

    def write(self, piece: bytes) -> None:
        """Take the next bytes."""
        try:
            self._parser.write(piece)
        except FormParserError:
            self._broken()

    def pictures(self) -> list[bytearray]:
        """What was in it.

        Raises:
            Refused: 400, it was cut short; 422, there was none.
        """
        if not self._ended:
            self._broken()
        if not self._pictures:
            raise Refused(422, f"the form has no field {FIELD!r}")
        return self._pictures

    def _broken(self) -> NoReturn:
        raise Refused(400, "the form is damaged or cut short")

    def _begin(self) -> None:
        self._disposition = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != FIELD:
            raise Refused(422, f"there is no field {name[:60]!r}: pictures are fields {FIELD!r}")
        if len(self._pictures) >= self.most:
            raise Refused(413, f"a request of more than {self.most} pictures is not read")
        self._pictures.append(bytearray())

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._pictures[-1] += memoryview(data)[start:end]

    def _end(self) -> None:
        self._ended = True
