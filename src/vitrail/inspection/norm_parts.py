"""The section on tokens that stand out: norms layer by layer, and over the pictures."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from vitrail.inspection.attention_parts import drawable, named
from vitrail.inspection.figures import Figure
from vitrail.inspection.pictures import Pictures, overlaid
from vitrail.inspection.places import Places
from vitrail.inspection.sections import Part
from vitrail.inspection.tokens import TIMES, TokenNorms
from vitrail.kit.chart import Line, line_chart
from vitrail.kit.page import Picture as Pane
from vitrail.kit.page import Section

LISTED = 12  # outliers


def tokens_part(norms: Sequence[TokenNorms], pictures: Pictures, shown: Sequence[int]) -> Part:
    """Where tokens stand out, in the layer that has most of them.

    Args:
        norms: of every layer, by `tokens.Norms` as it is by default.
        shown: the numbers of the pictures that are drawn.
    """
    shares = [one.share for one in norms]
    names = [one.name.removesuffix(".out") for one in norms]
    worst = int(np.argmax(shares)) if max(shares) > 0 else len(norms) - 1
    if max(shares) > 0:
        told = (
            f"Most of them leave {names[worst]}: {100 * shares[worst]:.2f} % of its places, the "
            f"largest {norms[worst].where()[0][3]:.3g} where the median is "
            f"{norms[worst].median:.3g}."
        )
    else:
        told = "None does in any layer."
    text = (
        "Large models turn a few patches of little content into registers, tokens of far greater "
        "norm that tell of the whole picture and spoil maps (Darcet et al., 2024). Here a place "
        f"stands out if its norm is above {TIMES:.3g} times the median "
        f"of its layer. {told}"
    )
    arrays = {
        "token_norm_median": np.array([one.median for one in norms], np.float32),
        "token_norm_most": np.array([float(one.places.max()) for one in norms], np.float32),
        "token_outlier_share": np.array(shares, np.float32),
        "token_layers": np.array(names, dtype=np.str_),
        f"token_norms.{names[worst]}": norms[worst].places.numpy().astype(np.float32),
    }
    summary = [
        {
            "name": name,
            "median": round(one.median, 4),
            "cutoff": round(one.cutoff, 4),
            "outlier_share": round(one.share, 6),
        }
        for name, one in zip(names, norms, strict=True)
    ]
    return Part(
        "Tokens that stand out",
        [text],
        [_norms_figure(norms)],
        arrays,
        {"tokens": summary},
        lambda section: _fill_norms(section, norms[worst], names[worst], pictures, shown),
    )


def _norms_figure(norms: Sequence[TokenNorms]) -> Figure:
    layers = list(range(len(norms)))
    lines = [
        Line("median", layers, [one.median for one in norms]),
        Line("largest", layers, [float(one.places.max()) for one in norms]),
        Line("cut-off", layers, [one.cutoff for one in norms]),
    ]
    if norms[-1].prefix.shape[1]:
        prefix = [
            float(one.prefix.median()) if one.prefix.shape[1] else float("nan") for one in norms
        ]
        lines.append(Line("other tokens, median", layers, prefix))
    title = "Norms of tokens by layer"
    svg = line_chart(lines, title=title, x_label="layer")
    caption = (
        "The Euclidean norm of what leaves each layer: of the places of the picture, and of class "
        "token and registers, over all pictures. Above the cut-off a place stands out."
    )
    return Figure(
        "token_norms", title, caption, partial(_draw_norms, lines=lines), (6.4, 4.0), svg=svg
    )


def _draw_norms(figure: Any, lines: Sequence[Line]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    for line, style in zip(lines, ("-", "-", "--", ":"), strict=False):
        axes.plot(line.x, line.y, style, linewidth=1.6, label=line.name)
    axes.set_xlabel("layer")
    axes.set_ylabel("norm")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dedad1", linewidth=0.7)
    axes.legend(frameon=False, fontsize=8)


def _fill_norms(
    section: Section, norms: TokenNorms, name: str, pictures: Pictures, shown: Sequence[int]
) -> None:
    panes = []
    for index in shown:
        picture = drawable(pictures[index])
        places = _cells(norms.places.shape[1:], picture.seen.shape)
        drawn = overlaid(picture, norms.places[index].numpy(), places)
        found = int(norms.outliers[index].sum())
        panes.append(
            Pane(
                [picture.original, drawn],
                [picture.key, f"Norms of {name}'s tokens over {picture.key}"],
                named(picture),
                [f"{found} stand out" if found else "none stands out"],
            )
        )
    which = (
        f" Shown are {len(panes)} of the {len(pictures):,} pictures, evenly chosen (--show); the "
        "counts and the chart are of all of them."
        if len(panes) < len(pictures)
        else ""
    )
    caption = f"The norms of what leaves {name}, over each picture; yellow is most.{which}"
    section.gallery(panes, caption)
    outliers = norms.where()
    if outliers:
        rows = [
            (pictures.names[b], row, column, norm) for b, row, column, norm in outliers[:LISTED]
        ]
        section.table(
            ("picture", "row", "column", "norm"),
            rows,
            f"The largest of the {len(outliers):,} places that stand out in {name}; rows and "
            "columns count from 0.",
        )


def _cells(grid: Sequence[int], size: Sequence[int]) -> Places:
    """The centres of a grid's cells in pictures of a size."""
    y, x = ((np.arange(n) + 0.5) * side / n for n, side in zip(grid, size, strict=False))
    return Places(y, x)
