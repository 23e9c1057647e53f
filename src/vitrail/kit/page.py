"""Pages: the one builder of self-contained HTML reports.

A page is one file that asks for nothing: styles inline, pictures as data URIs, and no script but
the one that moves the maps of a `layered` gallery (`page.js`, where there is one), which a content
security policy names to the browser by its hash. Whatever is put in is escaped, so a
class named ``<script>`` is a class named ``<script>``. It reads on a phone, in the dark, on paper
and to a screen reader, and the same content gives the same bytes.

    page = Page("Evaluation", lead="vit_tiny on 2,000 test images")
    page.section("Accuracy").table(("class", "images", "recall"), rows, caption="Per class")
    page.save("report.html")
"""

import base64
import functools
import hashlib
import importlib.resources
import io
import json
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from vitrail.kit.chart import heat_colors
from vitrail.kit.files import write_whole

Value = str | int | float | bool | None | Sequence[Any]

LONGEST = 192  # pixels of a picture's longer side in a page; larger ones are scaled down
LARGE = 384  # of one that is to be looked at closely
PIXELATED = 64  # pictures up to this size are shown with their pixels as squares
MATRIX_CELLS = 40  # classes up to which a confusion matrix is a table of numbers


class Share(float):
    """A number 0..1 that is printed in per cent, in a table with a bar behind it."""


@dataclass(frozen=True)
class Picture:
    """One or more pictures side by side over a caption.

    Args:
        images: each uint8 [h w 3] or [h w 1].
        alts: for each image what it shows, for those who cannot see it.
        title: the caption's first line.
        notes: further lines, in smaller print.
    """

    images: Sequence[np.ndarray]
    alts: Sequence[str]
    title: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Layered:
    """A picture under a map that the reader picks from many, by sliders.

    Args:
        image: uint8 [h w 3].
        maps: for each layer [heads rows columns], any range from 0 up: each is shown from 0 to
            its own greatest value. The layers' heads and grids may differ.
        frame: the part of the image that the maps cover: (top, left, height, width) as shares of
            its sides; it may reach beyond the image.
        alt: what the image shows.
        title, notes: the caption, as for `Picture`.
    """

    image: np.ndarray
    maps: Sequence[np.ndarray]
    frame: tuple[float, float, float, float]
    alt: str
    title: str = ""
    notes: Sequence[str] = ()


class Blocks:
    """Blocks one below the other. Every method adds one and returns the same object."""

    def __init__(self) -> None:
        self.blocks: list[dict[str, Any]] = []

    def text(self, *paragraphs: str) -> "Blocks":
        """Paragraphs."""
        return self._add("text", paragraphs=paragraphs)

    def note(self, text: str) -> "Blocks":
        """A paragraph that stands out: something to know before trusting what follows."""
        return self._add("note", text=text)

    def code(self, text: str) -> "Blocks":
        """A command or a piece of code, as it is."""
        return self._add("code", text=text)

    def facts(self, facts: Mapping[str, Value], title: str = "") -> "Blocks":
        """A list of names and values, with a small heading if it has a title."""
        return self._add("facts", facts=list(facts.items()), title=title)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[Value]], caption: str
    ) -> "Blocks":
        """A table; the first column names the rows, numbers stand to the right."""
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"a row of {len(row)} cells under {len(columns)} columns")
        right = [any(_is_number(row[i]) for row in rows) for i in range(len(columns))]
        return self._add("table", columns=columns, rows=rows, caption=caption, right=right)

    def charts(self, charts: Sequence[tuple[str, str]]) -> "Blocks":
        """Charts beside each other where there is room: pairs of a caption and an ``<svg>``.

        The SVG goes in as it is: it must come from `chart.line_chart` or be as harmless.
        """
        drawn = [(caption, Markup(svg)) for caption, svg in charts]
        return self._add("charts", charts=drawn)

    def gallery(self, pictures: Sequence[Picture], caption: str = "") -> "Blocks":
        """Pictures with their captions, as many beside each other as there is room for."""
        widest = max((len(picture.images) for picture in pictures), default=1)
        return self._add("gallery", pictures=pictures, caption=caption, widest=widest)

    def figure(self, picture: np.ndarray | bytes, alt: str, caption: str) -> "Blocks":
        """One large picture over the page's width: uint8 [h w 3], or a PNG file's bytes."""
        if isinstance(picture, bytes):
            uri = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
            with Image.open(io.BytesIO(picture)) as opened:
                width, height = opened.size
        else:
            uri, (height, width) = data_uri(picture, exact=True), picture.shape[:2]
        squares = not isinstance(picture, bytes)
        content = {"uri": uri, "width": width, "height": height, "squares": squares}
        return self._add("figure", alt=alt, caption=caption, **content)

    def layered(
        self, pictures: Sequence[Layered], layers: Sequence[str], caption: str, start: int = -1
    ) -> "Blocks":
        """Pictures under maps of heat, with sliders over layers and heads that move all of them.

        Args:
            layers: the layers' names, one for each of a picture's maps.
            caption: says what the maps are.
            start: the layer that is shown first.
        """
        shapes = [tuple(layer.shape) for layer in pictures[0].maps]
        if any([tuple(layer.shape) for layer in one.maps] != shapes for one in pictures):
            raise ValueError("the pictures of a gallery have maps of the same shapes")
        top, table = 0, []
        for name, (heads, rows, columns) in zip(layers, shapes, strict=True):
            table.append([name, top, rows, columns, heads])
            top += rows
        drawn = [(one, _sprite(one.maps)) for one in pictures]
        content = {"table": json.dumps(table), "start": start % len(table), "names": table}
        heads = max(shape[0] for shape in shapes)
        return self._add("layered", pictures=drawn, caption=caption, heads=heads, **content)

    def matrix(self, counts: np.ndarray, labels: Sequence[str], caption: str) -> "Blocks":
        """A confusion matrix: counts [k k], row = true class, column = predicted class.

        Up to 40 classes it is a table of numbers. Above, it is a picture of the whole and a table
        of the pairs that are confused most often.
        """
        counts = np.asarray(counts)
        if counts.shape != (len(labels), len(labels)):
            raise ValueError(f"a matrix {counts.shape} for {len(labels)} labels")
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        if len(labels) <= MATRIX_CELLS:
            content = {"counts": counts.tolist(), "shares": shares.tolist()}
            caption += " The deeper the colour, the larger its share of the row; blue is right."
            return self._add("matrix", labels=labels, caption=caption, **content)
        picture = heat_colors(np.sqrt(shares))
        alt = f"Heat map of {len(labels)} by {len(labels)} classes; the pairs are listed below."
        caption += (
            " The brighter, the larger its share of the row; right answers lie along the diagonal."
        )
        self._add("heat", picture=picture, alt=alt, caption=caption)
        rows = [
            (labels[i], labels[j], n, Share(shares[i, j])) for i, j, n in confused(counts, most=30)
        ]
        columns = ("true class", "predicted", "images", "of the true class")
        return self.table(columns, rows, caption="The pairs confused most often.")

    def details(self, summary: str) -> "Blocks":
        """A part that is folded away until it is asked for. Returns the part's own blocks."""
        inner = Blocks()
        self._add("details", summary=summary, inner=inner)
        return inner

    def _add(self, kind: str, **content: Any) -> "Blocks":
        self.blocks.append({"kind": kind, **content})
        return self


class Section(Blocks):
    """A part of a page with a heading of its own."""

    def __init__(self, heading: str, name: str):
        super().__init__()
        self.heading = heading
        self.name = name


class Page:
    """A page: a title, a lead, a few figures in large print, then sections.

    Args:
        title: the page's heading and the browser's title.
        lead: one or two sentences below it.
        headline: pairs of a value and what it is.
        footer: a last line in small print.
    """

    def __init__(
        self,
        title: str,
        lead: str = "",
        headline: Sequence[tuple[Value, str]] = (),
        footer: str = "",
    ):
        self.title = title
        self.lead = lead
        self.headline = headline
        self.footer = footer
        self.sections: list[Section] = []

    def section(self, heading: str) -> Section:
        """Begin a section, and return it to be filled."""
        slug = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        taken = {section.name for section in self.sections}
        name = slug if slug not in taken else f"{slug}-{len(self.sections)}"
        self.sections.append(Section(heading, name))
        return self.sections[-1]

    def html(self) -> str:
        """The whole page as text."""
        layered = any(has_layers(section) for section in self.sections)
        script = _script() if layered else ""
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        return _template().render(page=self, script=Markup(script), script_hash=digest)

    def save(self, path: Path | str) -> None:
        """Write the page, whole or not at all.

        Raises:
            Error: the disk is full or the folder cannot be written.
        """
        # A file name that is not UTF-8 holds lone surrogates, which no page can hold.
        content = self.html().encode("utf-8", "backslashreplace")
        write_whole(Path(path), lambda temporary: temporary.write_bytes(content))


def has_layers(blocks: Blocks) -> bool:
    """Whether there is a `layered` gallery among the blocks, or folded away in one of them."""
    return any(
        block["kind"] == "layered" or (block["kind"] == "details" and has_layers(block["inner"]))
        for block in blocks.blocks
    )


def confused(counts: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """The pairs (true class, predicted class, how many) that are confused most often.

    Args:
        counts: [k k], row = true class.
        most: how many pairs at the most; pairs that never occur are left out.
    """
    wrong = np.array(counts)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(int(i), int(j), int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def data_uri(image: np.ndarray, exact: bool = False, large: bool = False) -> str:
    """A picture, uint8 [h w c], as a ``data:`` address: small ones exact, large ones as JPEG.

    A JPEG's longer side is at most `LONGEST` pixels, or `LARGE` where it is to be ``large``. With
    another number of channels than three the first one is shown in grey.
    """
    picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    written = io.BytesIO()
    if exact or _is_small(image):
        kind = "png"
        picture.save(written, "PNG", optimize=True)
    else:
        kind = "jpeg"
        longest = LARGE if large else LONGEST
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        picture.save(written, "JPEG", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"


def show(value: Value) -> str:
    """A value as a reader expects it: 12,000; 0.0015; 86.05 %; yes; a, b, c; a dash for none."""
    if value is None or (isinstance(value, numbers.Real) and math.isnan(value)):
        return "\N{EN DASH}"
    if isinstance(value, Share):
        return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        return f"{float(value):.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(show(item) for item in value)
    return str(value)


def _sprite(layers: Sequence[np.ndarray]) -> str:
    """All maps of a picture as one small PNG in colour, layers below each other, heads in a row.

    Before the heads stands their mean. Each is scaled to its own greatest value.
    """
    bands = []
    for maps in layers:
        tiles = np.concatenate([maps.mean(0, keepdims=True), maps]).astype(np.float32)
        most = tiles.max((1, 2), keepdims=True)
        scaled = np.divide(tiles, most, out=np.zeros_like(tiles), where=most > 0)
        bands.append(np.rint(255 * scaled.clip(0, 1)).astype(np.uint8))
    width = max(band.shape[0] * band.shape[2] for band in bands)
    sheet = np.zeros((sum(band.shape[1] for band in bands), width), np.uint8)
    top = 0
    for band in bands:
        row = band.transpose(1, 0, 2).reshape(band.shape[1], -1)
        sheet[top : top + row.shape[0], : row.shape[1]] = row
        top += row.shape[0]
    picture = Image.fromarray(sheet, "L")
    picture.putpalette(heat_colors(np.arange(256) / 255).tobytes())
    written = io.BytesIO()
    picture.save(written, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


@functools.cache
def _script() -> str:
    return (importlib.resources.files("vitrail.kit") / "page.js").read_text("utf-8").strip()


def _breakable(text: str) -> Markup:
    """Escaped text that may be broken behind a slash or an underscore, as long paths must be."""
    return Markup(re.sub("([/_])", r"\1<wbr>", str(escape(text))))


def _is_number(value: Value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_share(value: Value) -> bool:
    return isinstance(value, Share) and math.isfinite(value)


def _is_small(value: Any) -> bool:
    return max(value.shape[:2]) <= PIXELATED


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vitrail.kit", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    exact = functools.partial(data_uri, exact=True)
    environment.filters.update(show=show, breakable=_breakable, data_uri=data_uri, exact_uri=exact)
    environment.tests["share"] = _is_share
    environment.tests["small_picture"] = _is_small
    return environment.get_template("page.html.j2")
