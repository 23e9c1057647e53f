"""Small archives in the layout of each publisher, made byte by byte from its description.

Pictures are told apart by their colour: picture i of a list is `colour(i)` everywhere.
"""

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def colour(i: int) -> tuple[int, int, int]:
    return (40 * (i % 6), 40 * (i // 6 % 6), 40 * (i // 36 % 6))


def picture(i: int, kind: str = "PNG", size: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), colour(i)).save(stream, kind)
    return stream.getvalue()


PICTURES = [picture(i) for i in range(216)]


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w:gz") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def cifar100_records(labels: list[int]) -> bytes:
    """https://www.cs.toronto.edu/~kriz/cifar.html: coarse label, fine label, 3,072 bytes."""
    out = bytearray()
    for i, label in enumerate(labels):
        red, green, blue = colour(i)
        out += bytes([label // 5, label])
        out += bytes([red]) * 1024 + bytes([green]) * 1024 + bytes([blue]) * 1024
    return bytes(out)


def norb_matrix(array: np.ndarray) -> bytes:
    """https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/: magic, ndim, sizes (three at least)."""
    magic = {np.dtype("u1"): 0x1E3D4C55, np.dtype("<i4"): 0x1E3D4C54}[array.dtype]
    sizes = [*array.shape, 1, 1][: max(3, array.ndim)]
    return struct.pack(f"<ii{len(sizes)}i", magic, array.ndim, *sizes) + array.tobytes()


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC bit by bit, from its polynomial (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of a protocol-buffer message."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def tf_example(image: bytes, filename: str, label: int, packed: bool = True) -> bytes:
    """tensorflow/core/example: Example{1: Features{1: map<string, Feature>}}.

    Feature: 1 bytes_list{1: bytes}, 3 int64_list{1: varints, packed or not}.
    """
    number = field(1, varint(label)) if packed else varint(1 << 3) + varint(label)
    features = {
        "filename": field(1, field(1, filename.encode())),
        "image": field(1, field(1, image)),
        "label": field(3, number),
    }
    entries = b"".join(
        field(1, field(1, name.encode()) + field(2, value)) for name, value in features.items()
    )
    return field(1, entries)


def tfrecord(data: bytes) -> bytes:
    """tensorflow/core/lib/io/record_writer.h: length, its masked CRC, data, their masked CRC."""
    length = struct.pack("<Q", len(data))
    return (
        length
        + struct.pack("<I", masked(crc32c(length)))
        + data
        + struct.pack("<I", 0)  # of the data: not read
    )


def clevr_scenes(counts: list[int], distances: list[float]) -> bytes:
    """https://cs.stanford.edu/people/jcjohns/clevr/: objects with pixel_coords (x, y, depth)."""
    scenes = [
        {
            "image_index": i,
            "objects": [{"pixel_coords": [10, 20, near + k]} for k in range(count)],
        }
        for i, (count, near) in enumerate(zip(counts, distances, strict=True))
    ]
    return json.dumps({"info": {}, "scenes": scenes}).encode()


def kitti_line(kind: str, z: float) -> str:
    """The object development kit's readme: 15 columns, the location's z is the 14th."""
    return f"{kind} 0.00 0 -1.57 600.0 150.0 630.0 190.0 1.5 1.6 3.9 2.0 1.6 {z} -1.5"
