"""The whole inspection: its sections one after the other, their figures, arrays and page.

Figures are drawn and saved one by one, so that none of them waits in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.inspection.attention_parts import attention_part, distance_part, rollout_part
from vitrail.inspection.explained_parts import explained_part
from vitrail.inspection.layer_parts import KINDS as WITH_LAYERS
from vitrail.inspection.layer_parts import layer_parts
from vitrail.inspection.look import Rollout, chosen, layers_with_attention, look
from vitrail.inspection.map_parts import maps_part
from vitrail.inspection.pictures import Pictures, evenly
from vitrail.inspection.places import layers_of
from vitrail.inspection.sections import SECTIONS, Part
from vitrail.inspection.similarity import LEAST
from vitrail.inspection.weight_parts import filters_part, positions_part
from vitrail.kit.errors import Error, did_you_mean
from vitrail.kit.files import write_whole
from vitrail.kit.page import Page
from vitrail.models.base import ImageClassifier

EXPLAINED = 4  # pictures that are explained, unless another number is asked for
SHOWN = 16  # pictures whose maps are drawn, unless another number is asked for
WITH_ATTENTION = ("distance", "rollout", "attention")
MAPS = "maps"
ROLLED = ("rollout", "attention")  # what rollout is drawn in
DRAWN_OF_SHOWN = ("attention", MAPS, "neighbours")  # and of nothing else
WITHOUT_PICTURES = {"filters": filters_part, "positions": positions_part}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Choices:
    """What is inspected.

    Args:
        figures: names out of `kinds()`; none for everything that the model has.
        layers: of attention, by number from 0 or by name, whose maps are drawn; none for all.
        heads: numbers from 0 of the heads that are drawn; none for all.
        show: of how many pictures maps are drawn; averages are over all.
        rollout: how attention is rolled out.
        explain: how many pictures are explained, and the explanations scored: a hundred forward
            passes each.
    """

    figures: Sequence[str] = ()
    layers: Sequence[str] = ()
    heads: Sequence[int] = ()
    show: int = SHOWN
    rollout: Rollout = field(default_factory=Rollout)
    explain: int = EXPLAINED


def kinds() -> list[str]:
    """The names of everything that can be looked at."""
    return [*WITHOUT_PICTURES, *WITH_ATTENTION, MAPS, "explanations", *WITH_LAYERS, *SECTIONS]


def check_choices(model: ImageClassifier, choices: Choices) -> None:
    """Raise an Error for what a model does not have, before any work.

    Raises:
        Error: an unknown kind, attention asked of a network without any, a layer or a head that
            does not exist, fewer than no pictures to show, or what would be passed over.
    """
    for name in choices.figures:
        if name not in kinds():
            near = did_you_mean(name, kinds()) or f"; there are {', '.join(kinds())}"
            raise Error(f"there are no figures {name!r}{near}")
    _check_passed_over(model, choices)
    if choices.show < 0:
        raise Error(f"--show is how many pictures are drawn, and not {choices.show}")
    if choices.explain < 0:
        raise Error(f"--explain is how many pictures are explained, and not {choices.explain}")
    asked = [name for name in choices.figures if name in WITH_ATTENTION]
    if asked or choices.layers or choices.heads:
        layers = layers_with_attention(model)
        drawn = [layers[i] for i in chosen(layers, choices.layers)] or layers
        heads = max(layer.heads for layer in drawn)
        for head in choices.heads:
            if not 0 <= head < heads:
                these = "the layers" if len(drawn) > 1 else drawn[0].short
                raise Error(f"there is no head {head}: {these} have {heads}, 0 to {heads - 1}")


def _check_passed_over(model: ImageClassifier, choices: Choices) -> None:
    """Raise an Error for what would be asked for and not be done."""
    wanted = choices.figures or kinds()
    if not layers_of(model):
        wanted = [kind for kind in wanted if kind not in WITH_ATTENTION]
    asked = {
        "--layers": (choices.layers, ("attention",)),
        "--heads": (choices.heads, ("attention",)),
        "--fuse, --residual or --discard": (choices.rollout != Rollout(), ROLLED),
        "--explain": (choices.explain not in (0, EXPLAINED), ("explanations",)),
    }
    for flag, (given, users) in asked.items():
        if given and not set(users) & set(wanted):
            if set(users) <= set(WITH_ATTENTION):
                layers_with_attention(model)  # says so where there are none
            raise Error(
                f"{flag} would be passed over: add {' or '.join(users)} to --figures, or leave "
                "that out"
            )
    for name in choices.figures:
        if name in DRAWN_OF_SHOWN and not choices.show:
            raise Error(f"--figures {name} draws pictures, and --show 0 leaves none")
        if name == "explanations" and not choices.explain:
            raise Error("--figures explanations draws pictures, and --explain 0 leaves none")


def inspect(
    model: ImageClassifier,
    pictures: Pictures,
    out: Path,
    choices: Choices | None = None,
    *,
    name: str = "model",
    other: ImageClassifier | None = None,
    other_name: str = "the other model",
    command: str = "",
    footer: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Inspect a model and write ``report.html``, ``figures/`` and ``arrays.npz`` into a folder.

    Args:
        model: left as it was.
        pictures: at least one.
        out: a folder that exists.
        choices: everything by default.
        name, command, footer: for the page.
        other, other_name: a model whose layers are compared with this one's.
        progress: called with what is done, how much of it and of how much.

    Returns:
        The sections' numbers, as JSON values.

    Raises:
        Error: what `check_choices` raises, too few pictures to compare two models on, and a disk
            that is full.
    """
    choices = Choices() if choices is None else choices
    check_choices(model, choices)
    if other is not None and len(pictures) < LEAST:
        raise Error(f"comparing two models takes at least {LEAST} pictures, not {len(pictures)}")
    report = _Report(model, pictures, out, name, command, footer)
    say = progress or (lambda *_: None)
    for part in _parts(model, pictures, choices, say):
        report.add(part)
    wanted = [kind for kind in WITH_LAYERS if kind in (choices.figures or kinds())]
    if wanted:
        for part in layer_parts(
            model,
            pictures,
            wanted,
            most=choices.show,
            other=other,
            names=(name, other_name),
            progress=lambda done, total: say("looking at layers", done, total),
        ):
            report.add(part)
    return report.finish()


def _parts(model: ImageClassifier, pictures: Pictures, choices: Choices, progress: Progress) -> Any:
    wanted = set(choices.figures or kinds())
    for kind, make in WITHOUT_PICTURES.items():
        if kind in wanted:
            progress(kind, 0, 0)
            yield make(model)
    if wanted & set(WITH_ATTENTION):
        if layers_of(model):
            looked = look(
                model,
                pictures,
                show=evenly(len(pictures), choices.show),
                how=choices.rollout,
                progress=lambda done, total: progress("looking at pictures", done, total),
            )
            layers = chosen(looked.layers, choices.layers or [x.short for x in looked.layers])
            if "distance" in wanted:
                yield distance_part(looked)
            progress("drawing", 0, 0)
            if "rollout" in wanted:
                yield rollout_part(looked, pictures, model.labels)
            if "attention" in wanted:
                yield attention_part(model, looked, pictures, layers, choices.heads)
        else:
            yield Part("Attention", [_without(model)])
    if MAPS in wanted:
        maps = maps_part(model, pictures, choices.show)
        if maps is None and choices.figures:  # it was asked for by name
            maps = Part("Feature maps", [_without_maps(model)])
        yield maps
    if "explanations" in wanted:
        yield explained_part(
            model,
            pictures,
            choices.explain,
            lambda done, total: progress("explaining", done, total),
        )
    for kind, section in SECTIONS.items():
        if kind in wanted:
            progress(kind, 0, 0)
            yield section(model, pictures)


def _without(model: ImageClassifier) -> str:
    return (
        f"{type(model).__name__} has no attention from place to place: there are no attention "
        "maps, no distances and no rollout to show."
    )


def _without_maps(model: ImageClassifier) -> str:
    return (
        f"{type(model).__name__} has no feature maps to draw: its last tokens alone are one, and "
        "those are normed, so that all places are as strong."
    )


class _Report:
    """Takes parts one by one: saves their figures at once, keeps their arrays, fills the page."""

    def __init__(
        self,
        model: ImageClassifier,
        pictures: Pictures,
        out: Path,
        name: str,
        command: str,
        footer: str,
    ):
        size = "x".join(map(str, model.preprocessing.size))
        count = f"{len(pictures):,} picture{'s' * (len(pictures) != 1)}"
        self.page = Page(
            f"Inside {name}",
            lead=f"What {name} has learned and what it looks at, over {count} of {size} pixels.",
            footer=footer,
        )
        self.out, self.command = out, command
        self.arrays: dict[str, np.ndarray] = {"keys": np.array(pictures.keys, dtype=np.str_)}
        self.summary: dict[str, Any] = {"model": name, "images": len(pictures)}
        self.saved: list[str] = []
        (out / "figures").mkdir(exist_ok=True)
        for old in (out / "figures").iterdir():  # of an inspection that this one takes the place of
            if old.suffix in (".png", ".svg"):
                old.unlink()

    def add(self, part: Part | None) -> None:
        if part is None:
            return
        section = self.page.section(part.title)
        section.text(*part.text)
        if part.fill is not None:
            part.fill(section)
        charts = [figure for figure in part.figures if figure.svg]
        if charts:
            section.charts([(figure.title, figure.svg) for figure in charts])
            section.text(*(f"{figure.title}. {figure.caption}" for figure in charts))
        for figure in part.figures:
            png = figure.save(self.out / "figures")
            self.saved.append(figure.name)
            if not figure.svg and figure.name not in part.apart:
                picture = png if figure.plain is None else figure.plain
                section.figure(picture, figure.alt or figure.title, figure.caption)
        self.arrays.update(part.arrays)
        self.summary.update(part.summary)

    def finish(self) -> dict[str, Any]:
        arrays: Mapping[str, Any] = self.arrays
        write_whole(self.out / "arrays.npz", lambda path: _save(path, arrays))
        section = self.page.section("Files")
        section.text(
            f"Beside this page: {len(self.saved)} figures as PNG and SVG in figures/, and the "
            f"numbers behind them in arrays.npz: {_listed(list(self.arrays))}."
        )
        if self.command:
            section.code(self.command)
        self.page.save(self.out / "report.html")
        self.summary["figures"] = self.saved
        self.summary["arrays"] = {name: list(array.shape) for name, array in self.arrays.items()}
        return self.summary


def _listed(names: Sequence[str]) -> str:
    """Names, those that differ behind their first dot as one: ``attention_maps.* (12)``."""
    counts: dict[str, int] = {}
    for name in names:
        stem, dot, _ = name.partition(".")
        key = f"{stem}.*" if dot else name
        counts[key] = counts.get(key, 0) + 1
    return ", ".join(f"{key} ({n})" if key.endswith(".*") else key for key, n in counts.items())


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)
