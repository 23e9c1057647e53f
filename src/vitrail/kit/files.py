"""Files that are whole or not there: written beside the target, synced, then renamed over it.

A reader, a crash or a full disk never meets half a file, and what stood there before stays good
until the very moment when the new file takes its place. What a killed process left behind lies in
one hidden folder, which the next write removes.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vitrail.kit.errors import Error

WORK = ".saving"


@contextmanager
def staging(folder: Path, needed: int = 0) -> Iterator[Path]:
    """A folder inside of this one to write in before `settle`; gone afterwards.

    Args:
        folder: where the files will stand; it exists.
        needed: how many bytes will be written, for the message; 0 if nobody knows.

    Raises:
        Error: what is done inside fails for want of room or of the right to write.
    """
    work = folder / WORK
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir()
        yield work
    except Exception as error:
        if _disk_is_full(error):
            free = shutil.disk_usage(folder).free
            wanted = f"no space left for {needed:,} bytes" if needed else "no space left"
            reason = f"{wanted}, {free:,} are free"
        elif isinstance(error, OSError):
            reason = (error.strerror or str(error)).lower()
        else:
            raise
        raise Error(
            f"{folder} cannot be written ({reason}); what was saved there before is intact"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def settle(staged: Path, target: Path) -> None:
    """Put a finished file of `staging` in its place; on the disk when this returns."""
    plain = staged.with_name(f"{staged.name}.plain")
    plain.touch()  # with the permissions that the user's files have; safetensors makes its private
    staged.chmod(plain.stat().st_mode)
    with staged.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(staged, target)
    sync_folder(target.parent)


def sync_folder(path: Path) -> None:
    """Put on the disk which files a folder has, and under which names."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_whole(path: Path, write: Callable[[Path], object], needed: int = 0) -> None:
    """Let ``write`` fill a temporary file, then put it in ``path``'s place.

    Raises:
        Error: no room or no right to write; the old file is untouched, nothing is left behind.
    """
    with staging(path.parent, needed) as work:
        staged = work / path.name
        write(staged)
        settle(staged, path)


def write_text_whole(path: Path, text: str) -> None:
    """`write_whole` for a piece of text, as UTF-8."""
    write_whole(path, lambda staged: staged.write_bytes(text.encode()))


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed write left in a folder."""
    shutil.rmtree(folder / WORK, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _disk_is_full(error: Exception) -> bool:
    # safetensors raises its own error class, with the system's number only in its text.
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    number = getattr(error, "errno", None)
    return number in full or any(f"os error {code})" in str(error) for code in full)
