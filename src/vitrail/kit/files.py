"""Files that are whole or not there: written beside the target, synced, then renamed over it.

A reader, a crash or a full disk never meets half a file, and what stood there before stays good
until the very moment when the new file takes its place.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from vitrail.kit.errors import Error

TEMPORARY = ".vitrail-tmp-"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in ``path``'s place.

    Raises:
        Error: the disk is full or the folder cannot be written; the old file is untouched and
            nothing is left behind.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; safetensors makes it private
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except Exception as error:
        needed = temporary.stat().st_size if temporary.exists() else 0
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if _disk_is_full(error):
            free = shutil.disk_usage(path.parent).free
            raise Error(
                f"no space left on the disk to write {path} ({needed} bytes written, {free} bytes "
                "free); what was saved before is intact: make room and give the same command again"
            ) from error
        if isinstance(error, PermissionError):
            raise Error(f"{path.parent} cannot be written: {error.strerror}") from error
        raise


def write_text_whole(path: Path, text: str) -> None:
    """`write_whole` for a piece of text, as UTF-8."""
    write_whole(path, lambda temporary: temporary.write_bytes(text.encode()))


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed `write_whole` left in a folder."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _disk_is_full(error: Exception) -> bool:
    # safetensors raises its own error class, with the system's number only in its text.
    full = (errno.ENOSPC, errno.EDQUOT)
    number = getattr(error, "errno", None)
    return number in full or any(f"os error {code}" in str(error) for code in full)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
