"""Frames between the server and its workers: a JSON head, then bytes; no pickle anywhere.

A frame is two big-endian lengths, the head as JSON, and a body. Arrays travel as their bytes, with
name, type and shape in the head, so a worker may answer with any arrays it has.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_LENGTHS = struct.Struct(">II")
Head = dict[str, Any]


def packed(head: Mapping[str, Any], body_length: int = 0) -> bytes:
    """Everything of a frame but its body."""
    text = json.dumps(head).encode()  # ASCII: names and labels may hold what UTF-8 cannot
    return _LENGTHS.pack(len(text), body_length) + text


def send(channel: socket.socket, head: Mapping[str, Any], body: bytes = b"") -> None:
    """Write a frame to a blocking socket."""
    channel.sendall(packed(head, len(body)) + body)


def receive(channel: socket.socket) -> tuple[Head, bytes]:
    """Read a frame from a blocking socket.

    Raises:
        EOFError: the other side is gone.
    """
    head_length, body_length = _LENGTHS.unpack(_exactly(channel, _LENGTHS.size))
    head = json.loads(bytes(_exactly(channel, head_length)))
    return head, bytes(_exactly(channel, body_length))


async def read(reader: asyncio.StreamReader) -> tuple[Head, bytes]:
    """Read a frame from a stream.

    Raises:
        asyncio.IncompleteReadError: the other side is gone; it is an EOFError.
    """
    head_length, body_length = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    head = json.loads(await reader.readexactly(head_length))
    return head, await reader.readexactly(body_length)


def arrays_to_bytes(arrays: Mapping[str, np.ndarray]) -> tuple[list[Head], bytes]:
    """Arrays as what stands in the head, and the bytes."""
    entries = [
        {"name": name, "dtype": array.dtype.str, "shape": array.shape}
        for name, array in arrays.items()
    ]
    return entries, b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())


def arrays_from_bytes(entries: Iterable[Head], body: bytes) -> dict[str, np.ndarray]:
    """The way back from `arrays_to_bytes`."""
    arrays, at = {}, 0
    for entry in entries:
        kind, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        count = int(np.prod(shape))
        arrays[entry["name"]] = np.frombuffer(body, kind, count, at).reshape(shape)
        at += count * kind.itemsize
    return arrays


def _exactly(channel: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    at = 0
    while at < count:
        got = channel.recv_into(view[at:])
        if not got:
            raise EOFError("the other side is gone")
        at += got
    return data
