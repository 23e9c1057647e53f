"""Files that are made to break a reader, each with a name. Run as a program it decodes a folder
of them and prints, as JSON, what each did: its error or shape, seconds, growth of memory in MiB.
"""

import io
import json
import resource
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.pictures import encoded, smooth
from tests.data.test_decode import chunk, png


def bombs() -> dict[str, bytes]:
    """Small files of enormous pictures."""
    jpeg = encoded(smooth(), "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    zeros = zlib.compress(bytes(60_000_000), 9)
    tiff = {256: 60000, 257: 60000, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 60000, 279: 9}
    line = bytes(1 + 40000 // 8)
    return {
        "png 40000x40000": png(40000, 40000, 1, 0, line * 4000),
        "png 65500x65500 rgba": png(65500, 65500, 8, 6, b""),
        "png data larger than its picture": png(10, 10, 8, 0, bytes(100_000_000)),
        "png text chunk that unpacks to 60 MB": png(
            10, 10, 8, 0, bytes(110), chunk(b"zTXt", b"k\0\0" + zeros)
        ),
        "png colour profile that unpacks to 60 MB": png(
            10, 10, 8, 0, bytes(110), chunk(b"iCCP", b"k\0\0" + zeros)
        ),
        "png text chunk of 30 MB": png(10, 10, 8, 0, bytes(110), chunk(b"tEXt", bytes(30_000_000))),
        "png of 300,000 empty chunks": png(
            10, 10, 8, 0, bytes(110), chunk(b"tEXt", b"a\0") * 300_000
        ),
        "png chunk of 2 GB": png(10, 10, 8, 0, bytes(110), b"\x7f\xff\xff\xffzTXtabc"),
        "gif 65535x65535": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;",
        "gif frame outside its screen": (
            b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;"
        ),
        "bmp 60000x60000": bmp(60000, 60000),
        "bmp of negative height": bmp(60000, -60000),
        "webp lossless 16383x16383": (
            b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0/\xfe\xbf\xff\x0f\x07\x10\x11\xfd\x0fDD\xff\x03"
        ),
        "webp canvas 16777216x16777216": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6,
        "tiff 60000x60000": tiff_file(tiff),
        "tiff deflated 60000x60000": tiff_file({**tiff, 259: 8}),
        "tiff of 2^31 strips": tiff_file({**tiff, 278: 1}),
        "ppm 100000x100000": b"P6 100000 100000 255\n" + bytes(100),
        "pbm 99999999999x1": b"P4 99999999999 1\n" + bytes(100),
        "jpeg 65500x65500": jpeg[:frame] + b"\xff\xdc\xff\xdc" + jpeg[frame + 4 :],
        "jpeg of 5,000 scans": many_scans(),
        "9000x9000 just over the limit": png(9000, 9000, 1, 0, bytes((1 + 1125) * 9000)),
    }


def oddities() -> dict[str, bytes]:
    """Files that are wrong, or right in an unusual way."""
    jpeg = encoded(smooth(), "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 4
    loop = b"II*\0\x08\0\0\0" + struct.pack("<HI", 0, 8)
    files = {
        "empty": b"",
        "one byte": b"\xff",
        "text": b"<html>404 not found</html>" * 50,
        "zip": b"PK\3\4" + bytes(300),
        "jpeg name, png inside": encoded(smooth()),
        "jpeg of 12 bits": jpeg[:frame] + b"\x0c" + jpeg[frame + 1 :],
        "jpeg of no height": jpeg[: frame + 1] + b"\0\0" + jpeg[frame + 3 :],
        "jpeg without tables": jpeg.replace(b"\xff\xc4", b"\xff\xe4"),
        "jpeg of markers only": b"\xff\xd8" + b"\xff\xe0\0\2" * 2_000_000,
        "jpeg of fill bytes only": b"\xff\xd8" + b"\xff" * 20_000_000,
        "tiff directory that points to itself": loop,
        "tiff directory of 65535 entries": b"MM\0*\0\0\0\x08\xff\xff" + b"\0\1" * 4000,
        "gif without size": b"GIF89a\0\0\0\0\0\0\0,\0\0\0\0\0\0\0\0\0\2\2L\1\0;",
        "ppm of no numbers": b"P6 -1 x 255\n" + bytes(30),
        "ppm of a comment without end": b"P6 #" + b"a" * 20_000_000,
        "1x1": encoded(smooth(1, 1)),
        "1x50000": encoded(smooth(1, 50000)),
        "50000x1 jpeg": encoded(smooth(50000, 1), "JPEG"),
        "cmyk": encoded(smooth().convert("CMYK"), "JPEG"),
        "grey 16 bits": encoded(Image.fromarray(np.full((9, 9), 40000, np.uint16))),
        "palette": encoded(smooth().quantize(16)),
        "animated gif": encoded(
            smooth(), "GIF", save_all=True, append_images=[smooth(seed=k) for k in range(9)]
        ),
        "animated webp": encoded(
            smooth(), "WebP", save_all=True, append_images=[smooth(seed=k) for k in range(9)]
        ),
    }
    for orientation in range(9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"exif orientation {orientation}"] = encoded(smooth(), "JPEG", exif=exif)
    for kind in ("JPEG", "PNG", "GIF", "WebP", "BMP", "TIFF", "PPM"):
        whole = encoded(smooth(200, 150), kind)
        for tenth in range(10):
            files[f"{kind} cut at {tenth}/10"] = whole[: len(whole) * tenth // 10]
        files[f"{kind} and then noise"] = whole[:40] + np.random.default_rng(0).bytes(5000)
    return files


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(64)


def tiff_file(tags: dict[int, int]) -> bytes:
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(20)


def many_scans() -> bytes:
    data = encoded(smooth(1000, 1000), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 5000 + data[-2:]


def main(folder: Path) -> None:
    from vitrail.data.decode import decode
    from vitrail.kit.errors import Error

    decode(encoded(smooth(), "TIFF"))  # what is loaded once
    results = {}
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        before, began = _peak(), time.process_time()
        try:
            outcome = list(decode(data).shape)
        except Error as error:
            outcome = str(error)
        results[file.name] = [outcome, time.process_time() - began, _peak() - before]
    print(json.dumps({"results": results, "torch": "torch" in sys.modules}))


def _peak() -> float:
    """The process's highest memory so far, in MiB, since it was last asked."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in io.StringIO(status.read_text()))
        peak = int(lines["VmHWM"].split()[0]) / 1024
        Path("/proc/self/clear_refs").write_text("5")  # the next peak starts from what is held now
    return peak


if __name__ == "__main__":
    main(Path(sys.argv[1]))
