"""Pictures and their encodings, made by the tests."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def smooth(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """A colourful picture without symmetry that JPEG keeps well."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_classes(
    folder: Path, counts: dict[str, int], size: tuple[int, int] = (12, 10), kind: str = "png"
) -> None:
    """A class folder of small, all different pictures."""
    for c, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            data = encoded(smooth(*size, seed=1000 * c + i), {"jpg": "JPEG"}.get(kind, kind))
            (folder / name / f"{i:03d}.{kind}").write_bytes(data)
