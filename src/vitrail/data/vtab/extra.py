"""What the extra ``[vtab]`` brings: MATLAB files, HDF5 and OpenCV, imported where they are used."""

import zlib
from pathlib import Path
from typing import Any

from vitrail.kit.errors import Error


def loadmat(path: Path) -> dict[str, Any]:
    """A MATLAB file's variables.

    Raises:
        Error: it is damaged, or scipy is missing.
    """
    try:
        from scipy.io import loadmat as read
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise _missing("scipy", path) from None
    try:
        return read(path)
    except (MatReadError, ValueError, OSError, TypeError, NotImplementedError, zlib.error) as error:
        raise Error(f"{path} cannot be read: cut short, or no MATLAB file ({error})") from None


def open_h5(path: Path) -> Any:
    """An HDF5 file, open for reading.

    Raises:
        Error: it is damaged, or h5py is missing.
    """
    try:
        import h5py
    except ImportError:
        raise _missing("h5py", path) from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise Error(f"{path} cannot be read: cut short, or no HDF5 file ({error})") from None


def cv2() -> Any:
    """OpenCV, by which the published pictures of SUN397 and Retinopathy were made."""
    try:
        import cv2 as module
    except ImportError:
        raise _missing("opencv", "these pictures") from None
    return module


def _missing(library: str, what: object) -> Error:
    return Error(f"reading {what} takes {library}: pip install 'vitrail[vtab]'")
