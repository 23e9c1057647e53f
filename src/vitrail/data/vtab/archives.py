"""Archives as their publishers hand them out: members by name, from a folder, a zip or a tar.

Nothing is unpacked to the disk. A compressed tar is unpacked into memory, up to a limit; a plain
one and a zip are read in place. Names that climb out, and links, make the whole archive refused:
they are never followed here, but whoever ships them is not the publisher.
"""

import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO

from vitrail.data.examples import read_file
from vitrail.kit.errors import Error

MAX_MEMORY = 4 * 2**30  # of one compressed tar, unpacked
MAX_MEMBER = 2 * 2**30
_GZIP = b"\x1f\x8b"


class Store:
    """Files by name.

    Attributes:
        path: of the folder or archive, for messages.
        names: sorted, with slashes, as the archive has them.
    """

    path: Path
    names: list[str]

    def read(self, name: str) -> bytes:
        """One file's bytes.

        Raises:
            Error: there is none of this name, or it is damaged.
        """
        raise NotImplementedError

    def text(self, name: str) -> str:
        """One file as text (UTF-8)."""
        return self.read(name).decode("utf-8", "replace")

    def under(self, start: str, end: str = "") -> list[str]:
        """The names that begin and end so."""
        return [name for name in self.names if name.startswith(start) and name.endswith(end)]


class Folder(Store):
    """An archive that the user has unpacked: the files under ``path``/``top``."""

    def __init__(self, path: Path, top: str):
        self.path = path
        self.names = sorted(
            str(PurePosixPath(Path(root).relative_to(path), file))
            for root, _, files in os.walk(path / top)
            for file in files
        )

    def read(self, name: str) -> bytes:
        """One file's bytes."""
        return read_file(self.path / name)


class Zip(Store):
    """A zip file; read in place, each process with a handle of its own."""

    def __init__(self, path: Path):
        self.path = path
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        self.names = sorted(_safe(path, (i.filename for i in self._zip.infolist())))

    @property
    def _zip(self) -> zipfile.ZipFile:
        if self._handle is None or self._handle[0] != os.getpid():
            try:
                self._handle = os.getpid(), zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError, ValueError) as error:
                raise Error(f"{self.path} cannot be read: cut short, or no zip ({error})") from None
        return self._handle[1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_handle": None}

    def read(self, name: str) -> bytes:
        """One member's bytes."""
        try:
            if self._zip.getinfo(name).file_size > MAX_MEMBER:
                raise Error(f"{self.path}: {name} is larger than {MAX_MEMBER // 2**30} GiB")
            return self._zip.read(name)
        except KeyError:
            raise Error(f"{self.path} has no {name}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise Error(f"{self.path}: {name} is damaged ({error})") from None


class Tar(Store):
    """A tar file: a plain one is read in place, a gzipped one from memory."""

    def __init__(self, path: Path, packed: bytes | None = None):
        self.path = path
        self._memory = _unpacked(path, packed)
        self._places = self._index()
        self.names = sorted(self._places)

    def _file(self) -> IO[bytes]:
        return open(self.path, "rb") if self._memory is None else io.BytesIO(self._memory)

    def _index(self) -> dict[str, tuple[int, int]]:
        size = self.path.stat().st_size if self._memory is None else len(self._memory)
        places = {}
        try:
            with self._file() as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if not (member.isfile() or member.isdir()):
                        raise Error(f"{self.path}: {member.name} is a link or a device: refused")
                    if member.isfile():
                        places[member.name.removeprefix("./")] = (member.offset_data, member.size)
                # tarfile takes a cut for the end: the end is a block of zeros.
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0") or tar.offset >= size:
                    raise Error(f"{self.path} is cut short")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise Error(f"{self.path} cannot be read: cut short, or no tar ({error})") from None
        _safe(self.path, places)
        return places

    def read(self, name: str) -> bytes:
        """One member's bytes."""
        if name not in self._places:
            raise Error(f"{self.path} has no {name}")
        start, size = self._places[name]
        if self._memory is not None:
            return self._memory[start : start + size]
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(size)


def find(folder: Path, archives: Iterable[str], top: str) -> Store | None:
    """The first of these archives that lies in a folder, or what was unpacked from it.

    Args:
        folder: of the task.
        archives: file names.
        top: the folder inside the archive; unpacked, it comes before the archives.
    """
    if (folder / top).is_dir():
        return Folder(folder, top)
    for name in archives:
        path = folder / name
        if path.is_file():
            return Zip(path) if name.endswith(".zip") else Tar(path)
    return None


def gunzipped(path: Path) -> bytes:
    """A file's bytes, unpacked where it is gzipped.

    Raises:
        Error: it is damaged, or larger than `MAX_MEMORY`.
    """
    try:
        with open(path, "rb") as file:
            if file.read(2) != _GZIP:
                file.seek(0)
                return file.read()
        with gzip.open(path) as file:
            return _limited(path, file.read(MAX_MEMORY + 1))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Error(f"{path} cannot be read: cut short, or no gzip ({error})") from None


def _unpacked(path: Path, packed: bytes | None) -> bytes | None:
    """The bytes of a tar that is gzipped or in memory already; None for a plain file."""
    if packed is None:
        with open(path, "rb") as file:
            return gunzipped(path) if file.read(2) == _GZIP else None
    if packed[:2] != _GZIP:
        return packed
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            return _limited(path, file.read(MAX_MEMORY + 1))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Error(f"{path} cannot be read: cut short, or no gzip ({error})") from None


def _limited(path: Path, data: bytes) -> bytes:
    if len(data) > MAX_MEMORY:
        raise Error(f"{path} is too large to be read packed: unpack it in its folder first")
    return data


def _safe(path: Path, names: Iterable[str]) -> list[str]:
    kept = []
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if ".." in parts or name.startswith("/") or (parts and ":" in parts[0]):
            raise Error(f"{path}: {name} climbs out of the archive: refused")
        if not name.endswith("/"):
            kept.append(name)
    return kept
