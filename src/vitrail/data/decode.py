"""Decode: the bytes of one file to uint8 [h w 3], whatever camera, scanner or attacker made it.

JPEG goes through simplejpeg (libjpeg-turbo; the same pixels as Pillow, and it can decode at a
reduced scale), all else through Pillow's reader of that one format. Special here:
- only the formats of `FORMATS`, told by their first bytes and never by the file's name;
- the number of pixels is checked before any pixel is decoded, below Pillow's own limit;
- a file that is cut short is an error, never a half-grey picture;
- EXIF orientation is applied; transparency is laid on white; of an animation the first frame is
  taken; 16-bit grey is scaled to 8 bits; CMYK becomes RGB without colour management.
"""

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from vitrail.kit.errors import Error

MAX_PIXELS = 64_000_000  # Pillow warns at 89 million and refuses at 179 million
# Attacks on the clock: a progressive JPEG has about ten scans, a PNG one chunk for every few KB.
MAX_SCANS, MAX_CHUNKS, MAX_SEGMENTS = 200, 50_000, 50_000

# The plugin classes themselves and not Image.open: that one applies a process-wide pixel limit and
# warns in the middle of it, and our limit is an argument.
_READERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
FORMATS = tuple(_READERS)
_JPEG_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif"}
_OTHER_SUFFIXES = {".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
SUFFIXES = frozenset(_JPEG_SUFFIXES | _OTHER_SUFFIXES)

# Pillow reads comments byte by byte; a PPM's size must be found without reading through megabytes.
_PPM_SIZE = re.compile(rb"P[1-6](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+\s")
_ORIENTATION = 0x0112  # the EXIF tag
_CUT_SHORT = "the file is cut short"
_TO_BYTE = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)  # 16 bits to 8, rounded
# libjpeg's warnings after which every pixel is still right; after any other one some are not.
_HARMLESS = ("extraneous bytes", "Adobe color transform", "JFIF revision", "Invalid SOS parameters")


class TooManyPixels(Error):
    """A picture over the limit of pixels: no fault of the file's, and told apart from one."""


def decode(data: bytes, min_size: int | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """One picture to uint8 [h w 3], RGB, upright.

    Args:
        data: the whole file.
        min_size: the shorter side needed, in pixels. A larger JPEG is then decoded at an eighth, a
            quarter, three eighths or a half of its size where that still has it, which is several
            times faster (the other eighths would be slower than full size); None: full size.
        max_pixels: width times height of the file's picture that is refused above.

    Raises:
        Error: not one of `FORMATS`, cut short, damaged, or over ``max_pixels``. The message is
            the reason alone: the caller knows the name of the file.
    """
    kind = _kind(data)
    if kind == "JPEG":
        head = _jpeg_head(data)
        _check_jpeg(data, head, max_pixels)
        if head.components in (1, 3):
            return _upright(_jpeg_pixels(data, min_size, max_pixels), head.orientation)
        return _upright(_pixels(data, kind, max_pixels)[0], head.orientation)
    if kind == "PNG":
        _check_png(data)
    return _upright(*_pixels(data, kind, max_pixels))


def pixels_of(image: Image.Image) -> np.ndarray:
    """An open PIL picture to the uint8 [h w 3] that `decode` makes of its file: upright, RGB.

    Raises:
        Error: it is damaged, or its pixels have no agreed white (32 bits).
    """
    kind = image.format or "PIL"
    try:
        pixels = _rgb(image, kind)
    except OSError as error:
        raise Error(_said(error, kind)) from None
    return _upright(pixels, 1 if kind == "TIFF" else _orientation_of(image.info.get("exif")))


def read_size(data: bytes, max_pixels: int | None = None) -> tuple[int, int, str]:
    """(width, height, mode) from the header alone; mode is Pillow's: L, RGB, P, I;16, CMYK, ...

    Sizes are the upright picture's: width and height are swapped where EXIF says so.

    Args:
        data: the whole file.
        max_pixels: see `decode`; None: a size is told whatever it is.

    Raises:
        Error: the reason why this is no picture that `decode` reads.
    """
    return _size(data, _kind(data), max_pixels)


def is_jpeg(data: bytes) -> bool:
    """Whether these bytes begin a JPEG: the one format that is decoded smaller on request."""
    return bytes(data[:3]) == b"\xff\xd8\xff"


def check(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int, str]:
    """`read_size`, and as much of a check that the file is whole as goes without decoding it.

    JPEG: the end marker is there; PNG: every chunk is there and its checksum is right; WebP: the
    length is right; the rare other formats are decoded.

    Raises:
        Error: the reason why `decode` would refuse this file.
    """
    kind = _kind(data)
    if kind == "JPEG":
        _check_jpeg(data, _jpeg_head(data), max_pixels)
    elif kind == "PNG":
        _check_png(data, checksums=True)
    elif kind == "WebP" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise Error(_CUT_SHORT)
    elif kind != "WebP":
        decode(data, max_pixels=max_pixels)
    return _size(data, kind, max_pixels)


def _size(data: bytes, kind: str, max_pixels: int | None) -> tuple[int, int, str]:
    if kind == "JPEG":
        head = _jpeg_head(data)
        width, height, mode, turn = head.width, head.height, head.mode, head.orientation
        if max_pixels is not None:
            _check_area(width, height, max_pixels)
    else:
        # TIFF's reader gives the upright size already; for the rest EXIF is in the header.
        image = _reader(data, kind, max_pixels)
        (width, height), mode = image.size, image.mode
        turn = 1 if kind == "TIFF" else _orientation_of(image.info.get("exif"))
    return (height, width, mode) if turn >= 5 else (width, height, mode)


def _kind(data: bytes) -> str:
    head = bytes(data[:16])
    if is_jpeg(head):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head.startswith(b"BM"):
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    if not head:
        raise Error("the file is empty")
    if head[4:8] == b"ftyp":
        raise Error("HEIC and AVIF pictures and films are not read: save it as JPEG or PNG")
    raise Error(f"not a picture of a known format ({', '.join(FORMATS)})")


def _check_area(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise Error(f"a picture of {width}x{height} pixels")
    if width * height > max_pixels:
        raise TooManyPixels(
            f"{width}x{height} is {width * height / 1e6:.1f} million pixels, over the limit of "
            f"{max_pixels / 1e6:g} million"
        )


# --- JPEG -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _JpegHead:
    width: int
    height: int
    components: int
    precision: int
    progressive: bool
    orientation: int
    scan: int  # where the first scan starts

    @property
    def mode(self) -> str:
        return {1: "L", 3: "RGB", 4: "CMYK"}.get(self.components, "?")


def _jpeg_head(data: bytes) -> _JpegHead:
    """Walk the marker segments up to the first scan."""
    at, frame, orientation = 2, None, 1
    for _ in range(MAX_SEGMENTS):
        at = data.find(b"\xff", at)  # stray bytes between segments are passed over, as libjpeg does
        if at < 0 or at + 4 > len(data):
            raise Error(_CUT_SHORT)
        marker = data[at + 1]
        if marker in (0x00, 0xFF):  # a fill byte
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a segment
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4])
        body = data[at + 4 : at + 2 + length]
        if marker == 0xDA:
            break
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _orientation_of(body)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
            progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
            precision, height, width, components = struct.unpack_from(">BHHB", body)
            frame = (width, height, components, precision, progressive)
        at += 2 + length
    else:
        raise Error(f"a JPEG header of more than {MAX_SEGMENTS:,} segments")
    if frame is None:
        raise Error("its JPEG header is damaged (the size is missing)")
    return _JpegHead(*frame, orientation, at)


def _check_jpeg(data: bytes, head: _JpegHead, max_pixels: int) -> None:
    _check_area(head.width, head.height, max_pixels)
    if head.precision != 8:
        raise Error(f"a JPEG of {head.precision} bits a channel, where 8 are read")
    # Scan data never hold FF D9, so one after the first scan is an end marker; an earlier one
    # may be a thumbnail's. Cameras append things after it, so it need not be the last.
    if data.rfind(b"\xff\xd9", head.scan) < 0:
        raise Error(_CUT_SHORT)
    if head.progressive and data.count(b"\xff\xda", head.scan) > MAX_SCANS:
        raise Error(f"a JPEG of more than {MAX_SCANS} scans")


def _jpeg_pixels(data: bytes, min_size: int | None, max_pixels: int) -> np.ndarray:
    least = min_size or 0
    try:
        return simplejpeg.decode_jpeg(
            data, "RGB", min_height=least, min_width=least, min_factor=2 if least else 1
        )
    except Exception as error:
        reason = str(error)
    if any(words in reason for words in _HARMLESS):
        return _pixels(data, "JPEG", max_pixels)[0]  # libjpeg too, and it does not mind
    if "Premature end of JPEG file" in reason:
        raise Error(_CUT_SHORT)
    raise Error(f"its JPEG data are damaged ({reason.removeprefix('Corrupt JPEG data: ')})")


# --- the other formats ----------------------------------------------------------------------


def _check_png(data: bytes, checksums: bool = False) -> None:
    """Every chunk up to IEND lies inside the file, and the picture's own chunks are undamaged."""
    at, chunks = 8, 0
    while at + 12 <= len(data):
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise Error(f"a PNG of more than {MAX_CHUNKS:,} chunks")
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if checksums and name in (b"IHDR", b"PLTE", b"IDAT"):
            (wanted,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != wanted:
                raise Error("its PNG data are damaged (a checksum is wrong)")
        if name == b"IEND":
            return
        at = end
    raise Error(_CUT_SHORT)


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    """(width, height) of the canvas; Pillow's reader reserves memory for it when it opens."""
    chunk, bits = data[12:16], int.from_bytes(data[21:25], "little")
    if chunk == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L" and len(data) >= 25:
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 " and len(data) >= 30:
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _reader(data: bytes, kind: str, max_pixels: int | None = None) -> ImageFile.ImageFile:
    if max_pixels is not None and kind == "WebP" and (canvas := _webp_canvas(data)):
        _check_area(*canvas, max_pixels)
    if kind == "PPM" and not _PPM_SIZE.match(data, 0, 4096):
        raise Error("its PPM header is damaged (no size in the first 4096 bytes)")
    try:
        image = _READERS[kind](io.BytesIO(data))
    except Exception as error:
        raise Error(_said(error, kind)) from None
    if max_pixels is not None:
        _check_area(*image.size, max_pixels)
    return image


def _pixels(data: bytes, kind: str, max_pixels: int) -> tuple[np.ndarray, int]:
    """(uint8 [h w 3] as stored, EXIF orientation) through Pillow."""
    image = _reader(data, kind, max_pixels)
    # Whatever a hostile file makes Pillow raise (it promises nothing), the file is at fault.
    try:
        image.load()
        pixels = _rgb(image, kind)
    except Error:
        raise
    except Exception as error:
        raise Error(_said(error, kind)) from None
    # After loading, because a PNG may carry its EXIF behind its pixels. TIFF is upright already.
    return pixels, 1 if kind == "TIFF" else _orientation_of(image.info.get("exif"))


def _said(error: Exception, kind: str) -> str:
    text = str(error)
    if any(word in text.lower() for word in ("truncated", "unpack", "end of file")):
        return _CUT_SHORT
    return f"its {kind} data are damaged ({text or type(error).__name__})"


def _rgb(image: Image.Image, kind: str) -> np.ndarray:
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PPM"):
        values = np.asarray(image)
        return np.repeat(_TO_BYTE[np.clip(values, 0, 65535)][:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise Error("32-bit pixels have no agreed white: save it with 8 or 16 bits a channel")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return np.array(Image.alpha_composite(white, pixels).convert("RGB"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


# --- orientation ----------------------------------------------------------------------------


def _orientation_of(exif: object) -> int:
    """1..8 from an EXIF block; damaged EXIF counts as none, for the pixels are not at fault."""
    if not isinstance(exif, bytes):
        return 1
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2], "<")
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", block, at)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror as EXIF's eight cases say; uint8 [h w 3], contiguous."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    # After the transposition 6 and 7 are mirrored from left to right, 7 and 8 upside down.
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
