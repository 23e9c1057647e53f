"""TFRecord files of DMLab, without TensorFlow.

A record is its length (8 bytes, little-endian), the masked CRC-32C of the length (4), the data, and
the masked CRC-32C of the data (4). The data are a protocol-buffer message tf.train.Example: a map
from names to lists of bytes, floats or whole numbers
(tensorflow/core/lib/io/record_writer.h, tensorflow/core/example/{example,feature}.proto).
The length's checksum is checked, the data's is not: a JPEG that is damaged shows when decoded.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitrail.kit.errors import Error

_MASK = 0xA282EAD8


@dataclass(frozen=True, slots=True)
class Frame:
    """One example of DMLab, its picture still in the file.

    Attributes:
        path: of the TFRecord file.
        key: its ``filename``.
        label: 0..5.
        start, length: where in the file the JPEG lies, in bytes.
    """

    path: Path
    key: str
    label: int
    start: int
    length: int

    def read(self) -> bytes:
        """The JPEG."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return file.read(self.length)


def frames(path: Path) -> Iterator[Frame]:
    """The examples of a TFRecord file, in order.

    Raises:
        Error: it is cut short, no TFRecord file, or its examples have other fields.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        place = 0
        while place < size:
            head = file.read(12)
            if len(head) < 12:
                raise Error(f"{path} is cut short")
            length, check = struct.unpack("<QI", head)
            if masked_crc(head[:8]) != check:
                raise Error(f"{path} is damaged at byte {place:,}, or no TFRecord file")
            if place + 16 + length > size:
                raise Error(f"{path} is cut short")
            data = file.read(length)
            file.seek(4, os.SEEK_CUR)
            try:
                fields = dict(_features(data))
                start, end = fields["image"]
                name = data[slice(*fields["filename"])].decode()
                label, _ = _varint(data, fields["label"][0])
            except (KeyError, IndexError, ValueError) as error:
                raise Error(
                    f"{path}: a record without image, filename or label ({error})"
                ) from None
            yield Frame(path, name, label, place + 12 + start, end - start)
            place += 16 + length


def masked_crc(data: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and offset as TFRecord files have it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def _features(data: bytes) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (start, end) of its first value) of an Example; a number's value is a varint."""
    for _, start, end in _messages(data, 0, len(data)):  # Example.features
        for _, low, high in _messages(data, start, end):  # Features.feature, a map
            entry = {number: (a, b) for number, a, b in _messages(data, low, high)}
            name = data[slice(*entry[1])].decode()
            for _, a, b in _messages(data, *entry[2]):  # bytes_list, float_list, int64_list
                yield name, next(((x, y) for _, x, y in _messages(data, a, b)), (a, b))


def _messages(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end of the payload) of a message."""
    while start < end:
        tag, start = _varint(data, start)
        kind = tag & 7
        if kind == 2:
            length, start = _varint(data, start)
            stop = start + length
        elif kind == 0:
            stop = _varint(data, start)[1]
        elif kind in (1, 5):
            stop = start + (8 if kind == 1 else 4)
        else:
            raise ValueError("not a protocol-buffer message")
        if stop > end:
            raise ValueError("a message that ends too early")
        yield tag >> 3, start, stop
        start = stop


def _varint(data: bytes, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, start
        shift += 7
        if shift > 63:
            raise ValueError("a number without an end")
