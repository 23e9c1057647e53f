"""Figures as files: PNG to look at, SVG to print, each with its caption inside.

Drawn by matplotlib's object interface. Mosaics are put together as arrays and shown by one pair of
axes: a hundred small axes in a picture cost more time than the model does.
"""

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitrail.kit.chart import plain_matplotlib
from vitrail.kit.files import write_whole

GAP = 2  # pixels between the tiles of a mosaic
DOTS = 150  # per inch, of a PNG


@dataclass(frozen=True)
class Figure:
    """A figure that is drawn when it is saved.

    Args:
        name: of its files, without a suffix.
        title: in a few words.
        caption: what is seen, and how to read it, in sentences.
        draw: puts it onto an empty matplotlib figure.
        size: (width, height) in inches, without the caption.
        plain: the same without title, axes and caption, uint8 [h w 3], for a page that has them in
            its own text; None for the PNG itself.
        svg: an ``<svg>`` of `kit.chart` for the page, instead of ``plain``.
        alt: what it shows, for those who cannot see it; the title by default.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Any], None]
    size: tuple[float, float] = (6.4, 4.0)
    plain: np.ndarray | None = None
    svg: str = ""
    alt: str = ""

    def save(self, folder: Path) -> bytes:
        """Write ``NAME.png`` and ``NAME.svg`` into an existing folder; returns the PNG's bytes.

        Raises:
            Error: the disk is full or the folder cannot be written.
        """
        with plain_matplotlib() as matplotlib:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure as Canvas

            matplotlib.rcParams.update(
                {"font.size": 10, "font.family": "DejaVu Sans", "svg.hashsalt": self.name}
            )
            width, height = self.size
            lines = textwrap.wrap(self.caption, max(30, round(width * 14.5)))
            figure = Canvas(
                figsize=(width, height + 0.35 + 0.17 * len(lines)), dpi=DOTS, layout="constrained"
            )
            FigureCanvasAgg(figure)
            self.draw(figure)
            figure.suptitle(self.title.replace("$", r"\$"), x=0.01, ha="left", weight="bold")
            text = "\n".join(lines).replace("$", r"\$")
            figure.supxlabel(text, x=0.01, ha="left", fontsize=8.5, color="#444444")
            png, svg = io.BytesIO(), io.BytesIO()
            figure.savefig(png, format="png", metadata={"Software": None})
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(svg, format="svg", metadata=nothing)
        for suffix, written in ((".png", png), (".svg", svg)):
            content = written.getvalue()
            write_whole(
                folder / f"{self.name}{suffix}", lambda path, c=content: path.write_bytes(c)
            )
        return png.getvalue()


def mosaic(tiles: Sequence[Sequence[np.ndarray | None]], fill: int = 255) -> np.ndarray:
    """Tiles uint8 [h w 3] of one size in rows, with gaps, as one picture; None leaves a place free.

    Args:
        tiles: rows of tiles; rows may be shorter than others.
        fill: the grey of gaps and of places that are free.
    """
    first = next(tile for row in tiles for tile in row if tile is not None)
    height, width = first.shape[:2]
    across = max(len(row) for row in tiles)
    shape = (len(tiles) * (height + GAP) - GAP, across * (width + GAP) - GAP, 3)
    sheet = np.full(shape, fill, np.uint8)
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            if tile is not None:
                top, left = i * (height + GAP), j * (width + GAP)
                sheet[top : top + height, left : left + width] = tile
    return sheet


def tile_centres(count: int, side: int) -> list[float]:
    """Where the middles of so many tiles of ``side`` pixels lie in a `mosaic`, for ticks."""
    return [index * (side + GAP) + (side - 1) / 2 for index in range(count)]


def enlarged(pixels: np.ndarray, least: int) -> np.ndarray:
    """uint8 [h w 3] with each pixel as a square, until the shorter side has ``least`` pixels."""
    times = max(1, -(-least // min(pixels.shape[:2])))
    return pixels.repeat(times, 0).repeat(times, 1)


def scaled(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 [h w 3] with a longer side of ``side`` pixels."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def fitted(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 [h w 3] scaled to fit into a square of ``side`` pixels, in its middle, on white."""
    small = scaled(pixels, side)
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    return square


def show(
    axes: Any,
    pixels: np.ndarray,
    *,
    rows: tuple[Sequence[float], Sequence[str]] = ((), ()),
    columns: tuple[Sequence[float], Sequence[str]] = ((), ()),
    labels: tuple[str, str] = ("", ""),
) -> None:
    """A mosaic on axes, with the names of its rows and columns.

    Args:
        rows, columns: places in pixels and names.
        labels: of the rows and of the columns.
    """
    axes.imshow(pixels, interpolation="none")
    axes.set_yticks(*rows)
    axes.set_xticks(*columns)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_ylabel(labels[0], fontsize=9)
    axes.set_xlabel(labels[1], fontsize=9)
