"""Every kind of picture that people have comes out upright, in RGB and with the right values."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.pictures import encoded, smooth
from vitrail.data.decode import FORMATS, check, decode, read_size
from vitrail.kit.errors import Error


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_has_pillows_pixels(quality, subsampling, progressive):
    options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    data = encoded(smooth(123, 77), "JPEG", **options)
    np.testing.assert_array_equal(decode(data), pillow(data))


def test_photographs_have_pillows_pixels(shared_data):
    files = sorted((shared_data / "imagenet-sample").iterdir())[::5]
    assert len(files) >= 20
    for file in files:
        data = file.read_bytes()
        np.testing.assert_array_equal(decode(data), pillow(data), err_msg=file.name)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "JPEG"])
def test_lossless_formats_keep_every_pixel(kind):
    options = {"lossless": True} if kind == "WebP" else {}
    image = smooth() if kind != "GIF" else smooth().quantize(64)
    data = encoded(image, kind, **options)
    np.testing.assert_array_equal(decode(data), np.asarray(image.convert("RGB")))
    assert read_size(data)[:2] == check(data)[:2] == (40, 30)


def test_scaled_decoding_is_large_enough_and_shows_the_same():
    image = smooth(1600, 1200)
    data = encoded(image, "JPEG", quality=95)
    for least in (40, 100, 151, 224, 700, 1200, 5000):
        small = decode(data, min_size=least)
        height, width = small.shape[:2]
        assert min(height, width) >= min(least, 1200)
        assert abs(width / height - 4 / 3) < 0.02
        reference = np.asarray(image.resize((width, height), Image.Resampling.BOX), np.int16)
        assert np.abs(reference - small).mean() < 1.5
    assert decode(data, min_size=150).shape == (150, 200, 3)
    assert decode(data, min_size=151).shape[0] > 151 - 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF"])
def test_exif_orientation_is_applied(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WebP" else {}
    data = encoded(smooth(), kind, exif=exif, **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode(data), upright)
    assert read_size(data)[:2] == (upright.shape[1], upright.shape[0])


def test_exif_orientation_holds_for_scaled_decoding_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(smooth(800, 400), "JPEG", exif=exif)
    assert decode(data, min_size=100).shape == (200, 100, 3)


def test_damaged_exif_does_not_lose_the_picture():
    data = encoded(smooth(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    assert decode(data).shape == (30, 40, 3)


def test_cmyk_jpeg_has_pillows_colours():
    data = encoded(smooth().convert("CMYK"), "JPEG", quality=95)
    assert read_size(data) == (40, 30, "CMYK")
    np.testing.assert_array_equal(decode(data), pillow(data))
    assert np.abs(decode(data).astype(int) - np.asarray(smooth())).mean() < 12


def test_grey_becomes_three_equal_channels():
    for kind in ("JPEG", "PNG"):
        pixels = decode(encoded(smooth().convert("L"), kind))
        assert pixels.shape == (30, 40, 3)
        assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind):
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    pixels = decode(encoded(Image.fromarray(values), kind))
    np.testing.assert_array_equal(pixels[..., 0], np.arange(256).reshape(16, 16))
    assert (pixels == pixels[..., :1]).all()
    near = Image.fromarray(np.array([[120, 128, 129, 65400, 65406, 65407]], np.uint16))
    assert decode(encoded(near, kind))[0, :, 0].tolist() == [0, 0, 1, 254, 254, 255]


def test_sixteen_bit_pgm_and_big_endian_tiff():
    values = np.linspace(0, 65535, 256).round().astype(">u2").reshape(16, 16)
    pgm = b"P5 16 16 65535\n" + values.tobytes()
    np.testing.assert_array_equal(decode(pgm)[..., 0], np.arange(256).reshape(16, 16))
    big = Image.frombytes("I;16B", (16, 16), values.tobytes())
    np.testing.assert_array_equal(decode(encoded(big, "TIFF"))[..., 0].ravel(), np.arange(256))


def test_sixteen_bit_colour_png():
    rows = (np.asarray(smooth(), np.uint16) * 257).astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    data = png(40, 30, 16, 2, lines)
    np.testing.assert_array_equal(decode(data), np.asarray(smooth()))


def test_floating_point_pixels_are_refused_with_the_reason():
    data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(Error, match="32-bit pixels have no agreed white"):
        decode(data)


def test_one_bit():
    image = Image.fromarray((np.indices((9, 11)).sum(0) % 2 * 255).astype(np.uint8)).convert("1")
    np.testing.assert_array_equal(decode(encoded(image))[..., 1], np.asarray(image) * 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "1"])
def test_transparency_is_laid_on_white(mode):
    image, options = Image.new("RGBA", (8, 8), (0, 0, 0, 255)), {}
    image.paste((0, 0, 0, 0), (0, 0, 8, 4))
    if mode in ("RGB", "L", "1"):  # one colour is declared transparent
        image = Image.new(mode, (8, 8), "white")
        image.paste(0, (0, 0, 8, 4))
        options = {"transparency": (0, 0, 0) if mode == "RGB" else 0}
        expected = np.full((8, 8, 3), 255)
    else:
        if mode == "P":
            image = image.quantize(4)
        elif mode == "LA":
            image = image.convert("LA")
        expected = np.zeros((8, 8, 3))
        expected[:4] = 255
    np.testing.assert_array_equal(decode(encoded(image, **options)), expected)


def test_half_transparent_is_mixed_with_white():
    image = Image.new("RGBA", (2, 2), (200, 0, 100, 51))  # a fifth
    np.testing.assert_array_equal(decode(encoded(image))[0, 0], [244, 204, 224])


@pytest.mark.parametrize("kind", ["GIF", "WebP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(decode(data).astype(int) - [255, 0, 0]).max() <= 2
    assert check(data)[:2] == (8, 8)


def test_camera_leftovers_after_the_end_do_no_harm():
    data = encoded(smooth(), "JPEG")
    np.testing.assert_array_equal(decode(data + b"motion photo" * 100), decode(data))
    # Some programs leave stray bytes between the segments of the header.
    frame = data.index(b"\xff\xdb")
    np.testing.assert_array_equal(decode(data[:frame] + b"\0\1" + data[frame:]), decode(data))
    # One stray byte before the end marker: libjpeg warns, every pixel is right.
    np.testing.assert_array_equal(decode(data[:-2] + b"\0\0\xff\xd9"), decode(data))


def thumbnailed() -> bytes:
    """A JPEG whose EXIF holds a whole small JPEG, with an end marker of its own."""
    thumbnail = encoded(smooth(16, 12), "JPEG")
    block = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail
    return encoded(smooth(200, 150), "JPEG", exif=block)


@pytest.mark.parametrize(
    "data",
    [
        encoded(smooth(200, 150), "JPEG"),
        encoded(smooth(200, 150), "JPEG", progressive=True),
        thumbnailed(),
        encoded(smooth(), "PNG"),
        encoded(smooth(), "WebP"),
        encoded(smooth(), "BMP"),
        encoded(smooth(), "TIFF"),
        encoded(smooth(), "TIFF", compression="tiff_lzw"),
        encoded(smooth(), "PPM"),
    ],
    ids=["jpeg", "progressive", "thumbnail", "png", "webp", "bmp", "tiff", "lzw", "ppm"],
)
def test_a_file_cut_short_is_an_error_and_never_half_a_picture(data):
    whole = decode(data)
    cuts = {len(data) * k // 10 for k in range(10)} | {len(data) - 1, len(data) - 2, 20}
    if data.startswith(b"BM"):  # its last two bytes are padding
        cuts -= {len(data) - 1, len(data) - 2}
    for cut in sorted(cuts):
        for read in (decode, check):
            with pytest.raises(Error):
                read(data[:cut])
    np.testing.assert_array_equal(decode(data), whole)


def test_a_download_that_stopped_leaves_zeros_at_the_end():
    data = encoded(smooth(200, 150), "JPEG")
    stopped = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    for read in (decode, check):
        with pytest.raises(Error, match="cut short"):
            read(stopped)


def test_damage_in_the_middle_is_an_error():
    data = bytearray(encoded(smooth(200, 150), "JPEG"))
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff\xd0" * 20
    with pytest.raises(Error, match="damaged"):
        decode(bytes(data))
    data = bytearray(encoded(smooth()))
    data[len(data) // 2] ^= 255
    for read in (decode, check):
        with pytest.raises(Error, match="damaged"):
            read(bytes(data))


def test_the_limit_on_pixels_holds_before_decoding_and_can_be_set():
    for kind in FORMATS:
        data = encoded(smooth(40, 30), kind)
        with pytest.raises(Error, match=r"40x30 is 0\.0 million pixels, over the limit of 0\.001"):
            decode(data, max_pixels=1000)
        with pytest.raises(Error, match="over the limit"):
            check(data, max_pixels=1199)
        assert decode(data, max_pixels=1200).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"not a picture at all", "not a picture of a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture of a known format"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC and AVIF"),
        (b"\xff\xd8\xff", "cut short"),
        (b"\x89PNG\r\n\x1a\n", "cut short"),
    ],
    ids=["empty", "text", "svg", "heic", "jpeg magic", "png magic"],
)
def test_what_is_no_picture_says_so(data, reason):
    for read in (decode, read_size, check):
        with pytest.raises(Error, match=reason):
            read(data)


def png(width: int, height: int, depth: int, kind: int, lines: bytes, *chunks: bytes) -> bytes:
    """A PNG from raw lines, each with its filter byte, and finished extra chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(lines, 1))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + chunk(b"IEND", b"")


def chunk(name: bytes, body: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + check
