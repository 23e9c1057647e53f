"""Line charts as small inline SVG, and the one colour map for heat.

A chart follows the page that it stands in: its colours are the page's CSS variables, so it turns
dark with the page, and its text is text. It is drawn by matplotlib's object interface (no pyplot,
no global state), and the same numbers give the same bytes.
The colours are Okabe and Ito's, which colour-blind people can tell apart; the dashes differ too.
"""

import html
import io
import logging
import math
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

# What matplotlib draws in these stand-ins becomes one of the page's CSS variables, with a value
# to fall back on where a chart stands outside of a page.
_THEME = {
    "#010101": "var(--quiet, #5b616b)",
    "#020202": "var(--line, #d9d6ce)",
    "#0a0001": "var(--series-1, #0b63a5)",
    "#0a0002": "var(--series-2, #c2500a)",
    "#0a0003": "var(--series-3, #00795c)",
    "#0a0004": "var(--series-4, #a1447f)",
    "#0a0005": "var(--series-5, #2f86b5)",
    "#0a0006": "var(--series-6, #876a00)",
    "#0a0007": "var(--series-7, #4a4a4a)",
    "#0a0008": "var(--series-8, #c43d4b)",
}
LONGEST_NAME = 30  # characters of a line's name in the legend
_QUIET, _FAINT, *_SERIES = _THEME
_DASHES = (
    *("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5))),
    *((0, (9, 2)), (0, (3, 1)), (0, (1, 3)), (0, (9, 1.5, 1, 1.5, 1, 1.5))),
)
MOST = len(_SERIES)
LEAST_SPAN = 1e-3  # of shares: labels have four digits


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, and as many x as y. A y that is not finite is a gap.

    Args:
        dots: mark every point; for a handful of measurements rather than a dense curve.
        best: ring one point, the "highest" or the "lowest"; none by default.
        low, high: as many as y: a band around the line; none by default.
        joined: whether the points are joined; else they are dots alone.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False
    best: str = ""
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    joined: bool = True


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str = "step",
    percent: bool = False,
    log_x: bool = False,
    log_y: bool = False,
    x_format: str = ",.0f",
    x_ticks: Sequence[float] = (),
    size: tuple[int, int] = (440, 260),
) -> str:
    """Draw one to eight lines over one pair of axes.

    Args:
        title: says what is drawn, for a screen reader; the page prints its own caption.
        percent: y is a share 0..1 and is labelled in per cent.
        log_x: equal ratios of x lie equally far apart; the first line's x are labelled.
        log_y: equal ratios of y lie equally far apart.
        x_format: how the labels of x are written.
        x_ticks: which x may be labelled under ``log_x``, in place of the first line's.
        size: (width, height) in the units of the SVG; the page scales it.

    Returns:
        An ``<svg>`` element as text, to be put into a page by `page.Blocks.charts`.
    """
    if not 1 <= len(lines) <= len(_SERIES):
        raise ValueError(f"a chart holds 1 to {len(_SERIES)} lines, not {len(lines)}")
    with plain_matplotlib() as matplotlib:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": title,  # names of clip paths: stable, and apart on one page
                "font.size": 12,
                "font.family": "DejaVu Sans",  # comes with matplotlib; only measured, not shown
            }
        )
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        _draw(axes, lines)
        _dress(axes, x_label, percent, columns=_legend_columns(lines, size[0]))
        if log_y:
            _ratios_of_y(axes, percent)
        elif percent:
            _widen(axes)
        if log_x:
            _spread_ratios(axes, x_ticks or lines[0].x, x_format)
        elif x_format != ",.0f":
            from matplotlib.ticker import FuncFormatter, MaxNLocator

            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format(x, x_format)))
        written = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=nothing, transparent=True)
    return _inline(written.getvalue(), f"{title}. {describe(lines, percent, x_format)}")


def describe(lines: Sequence[Line], percent: bool = False, x_format: str = ",.0f") -> str:
    """Where each line begins and ends, in words, for those who cannot see it."""

    def words(point: tuple[float, float]) -> str:
        x, y = point
        at = format(x, x_format)
        return f"{100 * y:.1f} % at {at}" if percent else f"{y:.3g} at {at}"

    told = []
    for line in lines:
        seen = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        if seen and not line.joined:
            low, high = min(y for _, y in seen), max(y for _, y in seen)
            told.append(f"{line.name}: between {low:.3g} and {high:.3g}")
        elif seen:
            told.append(f"{line.name}: from {words(seen[0])} to {words(seen[-1])}")
    return "; ".join(told) + "."


def heat_colors(values: np.ndarray) -> np.ndarray:
    """Values 0..1 of any shape to colours, uint8 [... 3]: matplotlib's viridis.

    Equal steps look equal, in grey and to colour-blind people too.
    """
    with plain_matplotlib() as matplotlib:
        return matplotlib.colormaps["viridis"](np.clip(values, 0, 1), bytes=True)[..., :3]


@contextmanager
def plain_matplotlib() -> Iterator[Any]:
    """Matplotlib as it comes, whatever the user's settings, which are back afterwards.

    On import it makes folders in the home directory and a font list there. We write nothing
    outside of the run's own folder, so the first import sees a folder that is gone after it.
    """
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ:
        import matplotlib
    else:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MPLCONFIGDIR"] = folder
            try:
                import matplotlib

                # On a slow machine it says that the list takes a moment, in every process.
                logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
                import matplotlib.font_manager
            finally:
                del os.environ["MPLCONFIGDIR"]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield matplotlib


def _draw(axes: Any, lines: Sequence[Line]) -> None:
    for line, color, dash in zip(lines, _SERIES, _DASHES, strict=False):
        x, y = np.asarray(line.x, float), np.asarray(line.y, float)
        marks = {"marker": "o", "markersize": 3.5} if line.dots or not line.joined else {}
        # Without an end a name would push the curves out of the picture; $ begins no formula.
        label = textwrap.shorten(line.name, LONGEST_NAME, placeholder="...").replace("$", r"\$")
        style = dash if line.joined else ""
        axes.plot(x, y, color=color, linestyle=style, linewidth=1.6, label=label, **marks)
        if len(line.low):
            axes.fill_between(x, line.low, line.high, color=color, alpha=0.16, linewidth=0)
        if line.best and np.isfinite(y).any():
            at = np.nanargmax(y) if line.best == "highest" else np.nanargmin(y)
            ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none"}
            axes.plot(x[at], y[at], color=color, linestyle="", **ring)


def _widen(axes: Any) -> None:
    """Let the y of a chart of shares span `LEAST_SPAN`, within 0..1, so that its labels differ."""
    low, high = axes.get_ylim()
    if 0 <= high - low < LEAST_SPAN:
        start = min(max((low + high - LEAST_SPAN) / 2, 0), 1 - LEAST_SPAN)
        start = min(start, low)  # differences of shares may be below nothing
        axes.set_ylim(start, max(start + LEAST_SPAN, high))


def _ratios_of_y(axes: Any, percent: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    written = (lambda y, _: f"{100 * y:.3g} %") if percent else (lambda y, _: f"{y:.3g}")
    axes.yaxis.set_major_formatter(FuncFormatter(written))


def _spread_ratios(axes: Any, ticks: Sequence[float], x_format: str = ",.0f") -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_xscale("log")
    # Labels of neighbours closer than this would run into each other.
    apart = (max(ticks) / min(ticks)) ** (1 / 7)
    shown: list[float] = []
    for tick in sorted(ticks, reverse=True):
        if not shown or shown[-1] / tick >= apart:
            shown.append(tick)
    # A tick at every point of a dense curve would be too many: those above suffice.
    axes.set_xticks(shown)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format(x, x_format)))


def _legend_columns(lines: Sequence[Line], width: int) -> int:
    """How many names stand beside each other in the legend; 0 for no legend."""
    if len(lines) < 2:
        return 0
    longest = max(min(len(line.name), LONGEST_NAME) for line in lines)
    entry = 7.2 * longest + 45  # units of the SVG: letters, and the piece of line before them
    return max(1, min(4, len(lines), int((width - 60) // entry)))


def _dress(axes: Any, x_label: str, percent: bool, columns: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.grid(axis="y", color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_QUIET, length=0, pad=5)
    axes.margins(x=0.02, y=0.08)
    axes.set_xlabel(x_label, color=_QUIET)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g} %"))
    if columns:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=columns,
            frameon=False,
            labelcolor=_QUIET,
            borderpad=0,
            handlelength=1.8,
            columnspacing=1.2,
        )


def _inline(svg: str, label: str) -> str:
    """Matplotlib's file to an element for a page: themed, scalable, nothing that points outside."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"| xmlns(?::xlink)?="[^"]*"', "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"|<g id="[^"]*"/>', "", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg.replace("xlink:href", "href"))
    svg = svg.replace("'DejaVu Sans'", "var(--font, sans-serif)")
    svg = re.sub("#0[0-9a-f]{5}", lambda color: _THEME.get(color[0], color[0]), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg).strip()
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def interval_chart(
    rows: Sequence[tuple[str, float, float | None, float | None]],
    *,
    title: str,
    x_label: str,
    width: int = 440,
) -> str:
    """Draw values below each other, each with its interval, beside a line at nothing.

    Args:
        rows: name, value, and the ends of its interval, None for none; from the top down.
        title: says what is drawn, for a screen reader; the page prints its own caption.
        x_label: what the values are, and in what.
        width: in the units of the SVG; the height follows from the rows.

    Returns:
        An ``<svg>`` element as text, to be put into a page by `page.Blocks.charts`.
    """
    if not rows:
        raise ValueError("a chart of intervals holds at least one row")
    with plain_matplotlib() as matplotlib:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": title,
                "font.size": 12,
                "font.family": "DejaVu Sans",
            }
        )
        height = 60 + 26 * len(rows)
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for place, (_, value, low, high) in enumerate(rows):
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=_SERIES[0], linewidth=1.6)
            axes.plot([value], [place], color=_SERIES[0], marker="o", markersize=6)
        axes.axvline(0, color=_QUIET, linewidth=0.8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_FAINT)
        axes.grid(axis="x", color=_FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_QUIET, length=0, pad=5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        names = [textwrap.shorten(name, LONGEST_NAME, placeholder="...") for name, *_ in rows]
        axes.set_yticks(range(len(rows)), [name.replace("$", r"\$") for name in names])
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:+.3g}" if x else "0"))
        axes.set_xlabel(x_label, color=_QUIET)
        written = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=nothing, transparent=True)
    told = "; ".join(
        f"{name}: {value:+.3g}" + ("" if low is None else f" ({low:+.3g} to {high:+.3g})")
        for name, value, low, high in rows
    )
    return _inline(written.getvalue(), f"{title}. {told}.")
