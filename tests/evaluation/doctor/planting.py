"""Planted duplicates: the ways in which a photograph comes back."""

import io

import numpy as np
from PIL import Image

KINDS = ("exact", "recompressed", "half", "cropped", "mirrored", "brighter")


def encoded(image: Image.Image, quality: int = 95) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def changed(data: bytes, kind: str) -> bytes:
    """A JPEG or PNG file as it comes back: the same bytes, or a new JPEG."""
    if kind == "exact":
        return data
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    if kind == "recompressed":
        return encoded(image, quality=50)
    if kind == "half":
        return encoded(image.resize((max(1, width // 2), max(1, height // 2)), Image.BICUBIC))
    if kind == "cropped":  # 5 % of each side, at least a pixel, half of it from each end
        across, down = max(1, round(0.05 * width)), max(1, round(0.05 * height))
        left, top = across // 2, down // 2
        return encoded(image.crop((left, top, width - across + left, height - down + top)))
    if kind == "mirrored":
        return encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    if kind == "brighter":
        pixels = np.asarray(image, np.float32) * 1.1
        return encoded(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    raise ValueError(kind)


def scene(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """A picture with structure in every scale, that no other seed gives."""
    generator = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for cells in (2, 4, 8, 16):
        noise = generator.normal(size=(cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(noise[..., channel], "F").resize((width, height), Image.BICUBIC)
            image[..., channel] += np.asarray(layer)
    return Image.fromarray(np.clip(128 + 45 * image, 0, 255).astype(np.uint8))
