"""Tar archives: where each member's bytes lie, and nothing else.

Only headers are read (POSIX ustar, with the long names of GNU tar and of pax), so that a shard is
indexed without reading its pictures. Nothing is ever unpacked: names are names. `tarfile` of the
standard library reads the same, in twice the time, and keeps an object for every member.
Layout: POSIX.1-1988 (ustar) and POSIX.1-2001 (pax), as in GNU tar's manual, "Basic Tar Format".
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitrail.kit.errors import Error

_BLOCK = 512
_AHEAD = 2048  # bytes read with a header: a small label comes along with it
_MAX_EXTENSION = 2**20  # bytes of a long name or of a pax header
_REGULAR, _FOLDER, _PAX, _PAX_GLOBAL = b"0\0" + b"7", b"5", b"x", b"g"
_LONG_NAME, _LONG_LINK = b"L", b"K"
_LINKS = {b"1": "a hard link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive.

    Attributes:
        name: its path as the archive has it, without a leading ``./``.
        at, size: where its bytes lie, and how many they are.
        start: the first bytes of them, perhaps all.
    """

    name: str
    at: int
    size: int
    start: bytes


def members(archive: Path) -> Iterator[Member]:
    """The files of an archive, in order.

    Raises:
        Error: it is no tar archive, it is compressed, damaged or cut short, or it holds a link, a
            device, or a path that leads out of it.
    """
    try:
        file = os.open(archive, os.O_RDONLY)
        try:
            length = os.fstat(file).st_size
            yield from _walk(archive, file, length)
        finally:
            os.close(file)
    except OSError as error:
        raise Error(
            f"{archive}: cannot be read ({(error.strerror or str(error)).lower()})"
        ) from None


def read_member(archive: str, at: int, size: int) -> bytes:
    """The bytes of one member.

    Raises:
        OSError: the archive cannot be read.
        Error: it is shorter than it was.
    """
    file = os.open(archive, os.O_RDONLY)
    try:
        data = os.pread(file, size, at)
    finally:
        os.close(file)
    if len(data) < size:
        raise Error("its shard is shorter than it was")
    return data


def _walk(archive: Path, file: int, length: int) -> Iterator[Member]:
    at, name, stated = 0, "", -1
    while True:
        ahead = os.pread(file, _AHEAD, at)
        header = ahead[:_BLOCK]
        if len(header) < _BLOCK:
            raise Error(f"{archive}: {_short(at, length, header)}")
        if header[0] == 0 and not any(header):  # the end mark
            return
        size = stated if stated >= 0 else _number(header[124:136])
        _check(archive, header, at, size)
        kind = header[156:157]
        begin = at + _BLOCK
        at = begin + -(-size // _BLOCK) * _BLOCK
        if begin + size > length:
            shown = name or _name(header)
            raise Error(f"{archive}: the archive is cut short (inside {shown})")
        if kind in (_PAX, _LONG_NAME):
            extension = _extension(archive, file, begin, size)
            if kind == _LONG_NAME:
                name = extension.split(b"\0")[0].decode("utf-8", "surrogateescape")
            else:
                name, stated = _pax(archive, extension, name)
            continue
        if kind in (_PAX_GLOBAL, _LONG_LINK):
            continue
        shown, name, stated = name or _name(header), "", -1
        if kind == _FOLDER:
            continue
        shown = _safe(archive, shown)
        if kind not in _REGULAR:
            what = _LINKS.get(kind, "of a kind of member that is not read")
            raise Error(f"{archive}: {shown} is {what}, where a shard holds plain files")
        yield Member(shown, begin, size, ahead[_BLOCK : _BLOCK + size])


def _check(archive: Path, header: bytes, at: int, size: int) -> None:
    # The checksum field itself counts as eight spaces.
    if size < 0 or sum(header) - sum(header[148:156]) + 256 != _number(header[148:156]):
        if at:
            raise Error(f"{archive}: the archive is damaged at byte {at:,}")
        packed = (
            header[:2] == b"\x1f\x8b" or header[:3] == b"BZh" or header[:4] == b"\x28\xb5\x2f\xfd"
        )
        what = "a compressed archive: decompress it" if packed else "no tar archive"
        raise Error(f"{archive}: {what}")


def _short(at: int, length: int, rest: bytes) -> str:
    if not length:
        return "the file is empty"
    if at == 0:
        return "no tar archive"
    return f"the archive is cut short (at byte {length:,}, {'in' if rest else 'before'} a header)"


def _number(field: bytes) -> int:
    """An octal number, or a large one in GNU's base-256; -1: it is none."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    text = field.split(b"\0")[0].strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        return -1


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0":  # GNU's own header has other things where the prefix is
        prefix = header[345:500].split(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return name.decode("utf-8", "surrogateescape")


def _extension(archive: Path, file: int, at: int, size: int) -> bytes:
    if size > _MAX_EXTENSION:
        raise Error(f"{archive}: a name of {size:,} bytes")
    return os.pread(file, size, at)


def _pax(archive: Path, records: bytes, name: str) -> tuple[str, int]:
    """(path, size) of a pax header's records, ``LENGTH KEY=VALUE\\n`` each; -1: it states none."""
    size, at = -1, 0
    try:
        while at < len(records) and records[at]:
            gap = records.index(b" ", at)
            end = at + int(records[at:gap])
            if end <= gap + 1 or end > len(records):
                raise ValueError
            key, _, value = records[gap + 1 : end - 1].partition(b"=")
            if key == b"path":
                name = value.decode("utf-8", "surrogateescape")
            elif key == b"size":
                size = int(value)
            elif key.startswith(b"GNU.sparse"):
                raise Error(f"{archive}: sparse members are not read")
            at = end
    except ValueError as error:
        if isinstance(error, Error):
            raise
        raise Error(f"{archive}: a damaged pax header") from None
    return name, size


def _safe(archive: Path, name: str) -> str:
    name = name.removeprefix("./")
    if name.startswith("/") or ".." in name.split("/") or "\0" in name or not name:
        raise Error(f"{archive}: {name!r} is a path that leads out of the archive")
    return name
