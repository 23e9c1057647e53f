"""`vitrail inspect`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vitrail import __version__
from vitrail.cli.arguments import again, arg
from vitrail.cli.output import check_out, print_json, say_report
from vitrail.cli.progress import Progress
from vitrail.kit.errors import Error

if TYPE_CHECKING:
    import numpy as np

    from vitrail.inspection.pictures import Pictures
    from vitrail.models.base import ImageClassifier


def inspect(
    source: Annotated[str, arg("MODEL")],
    images: Annotated[tuple[str, ...], arg("IMAGES")],
    /,
    *,
    out: Annotated[Path, arg("DIR")],
    model: Annotated[str | None, arg("NAME")] = None,
    which: Literal["final", "best"] = "final",
    figures: Annotated[tuple[str, ...], arg("KIND")] = (),
    layers: Annotated[tuple[str, ...], arg("LAYER")] = (),
    heads: Annotated[tuple[int, ...], arg("N")] = (),
    show: int = 16,
    most: int = 128,
    explain: int = 4,
    against: Annotated[str | None, arg("MODEL")] = None,
    against_name: Annotated[str | None, arg("NAME")] = None,
    fuse: Literal["mean", "max", "min"] = "mean",
    residual: float = 0.5,
    discard: float = 0.0,
    split: str = "test",
    device: Annotated[Literal["cpu", "cuda"] | None, arg("cpu|cuda")] = None,
    json: bool = False,
    overwrite: bool = False,
) -> int:
    """Look inside a model: filters, positions, attention and what it looks at in pictures.

    Example: vitrail inspect runs/photos new/*.jpg --out inside

    Args:
        source: A model folder, or a checkpoint file.
        images: Picture files, folders of them (searched all the way down) or quoted globs; or one
            data set, such as demo:fashion or a file of parquet.
        out: A new folder for report.html, figures/ and arrays.npz.
        model: The name of the model, for a file that does not say it.
        which: The weights of the last step, or the best on validation.
        figures: Only these kinds: filters positions distance rollout attention maps explanations
            tokens similarity neighbours.
        layers: Draw only the maps of these, by number from 0 or by name (stages.2.blocks.5).
        heads: Draw only the maps of these, numbered from 0.
        show: How many pictures are drawn; averages are over all.
        most: How many pictures are looked at; of more, so many evenly chosen.
        explain: How many pictures are explained by gradients too, and the explanations scored by
            deletion and insertion: a hundred looks of the model at each. 0 for none.
        against: Another model, whose layers are compared with this one's (similarity).
        against_name: Its name, for a file that does not say it.
        fuse: How rollout makes one of a layer's heads.
        residual: The share of the residual path in rollout.
        discard: The share of the smallest weights that rollout leaves out.
        split: Of a data set: train, val or test.
        device: The best there is by default.
        json: Print one JSON object on stdout.
        overwrite: Write into a folder that holds an inspection already.
    """
    from vitrail.inspection.look import Rollout
    from vitrail.inspection.report import Choices, check_choices
    from vitrail.inspection.report import inspect as write_all
    from vitrail.kit.devices import pick_device
    from vitrail.weights.folder import load_model

    if not images:
        raise Error("name the pictures: files, folders of them or quoted globs")
    if most < 1:
        raise Error(f"--most is at least 1, not {most}")
    _check_new(out, overwrite)
    choices = Choices(figures, layers, heads, show, Rollout(fuse, residual, discard), explain)
    opened = load_model(source, model, which).to(pick_device(device))
    check_choices(opened, choices)
    other = None
    if against is None and against_name is not None:
        raise Error("--against-name is the name of --against, and that is not given")
    if against is not None:
        if figures and "similarity" not in figures:
            raise Error("--against compares layers: add similarity to --figures, or leave that out")
        other = load_model(against, against_name).to(pick_device(device))
    pictures = _pictures(opened, images, most, split, other)
    out.mkdir(parents=True, exist_ok=True)
    with Progress() as progress:
        found = write_all(
            opened,
            pictures,
            out,
            choices,
            name=_named(opened, source, model),
            other=other,
            other_name="" if other is None else _named(other, str(against), against_name),
            command=again(),
            footer=f"Vitrail {__version__}",
            progress=progress,
        )
    if json:
        print_json(found)
    else:
        _say(found)
        say_report(out)
    return 0


def _named(model: ImageClassifier, source: str, given: str | None) -> str:
    """A model's architecture and where it lies: ``vit_nano_patch7_28 (runs/clothes)``."""
    from vitrail.weights.read import description_of

    said = description_of(source) or {}
    recipe = (said.get("recipe") or {}).get("model") or {}
    known = _architecture(
        model, [name for name in (given, said.get("name"), recipe.get("name")) if name]
    )
    where = "/".join((Path(source).parts or Path(source).resolve().parts)[-2:])
    return f"{known} ({where})"


def _architecture(model: ImageClassifier, told: list[str]) -> str:
    """The name of the zoo that has this config, first among those told; else the family's class."""
    from vitrail.models.zoo import config_of, list_models

    for free in (("num_classes", "in_channels"), ("num_classes", "in_channels", "image_size")):
        for name in (*told, *list_models()):
            try:
                config = config_of(name)
                if type(config) is not type(model.config):
                    continue
                same = {field: getattr(model.config, field) for field in free}
                if replace(config, **same) == model.config:
                    return name
            except Error:  # another library's word for it, or a size that it cannot have
                continue
    return type(model).__name__


def _check_new(out: Path, overwrite: bool) -> None:
    check_out(out)
    if out.is_dir() and any(out.iterdir()):
        ours = (out / "report.html").exists() and (out / "arrays.npz").exists()
        if not (overwrite and ours):
            cure = "add --overwrite or give another" if ours else "give another --out"
            raise Error(f"{out} exists and is not empty: {cure}")


def _pictures(
    model: ImageClassifier,
    names: Sequence[str],
    most: int,
    split: str,
    other: ImageClassifier | None,
) -> Pictures:
    """The pictures, each of which can be read; at most so many, evenly chosen.

    Files are decoded as large as the one of the two models that sees more of them needs them.
    """
    from vitrail.inspection.pictures import Pictures, evenly

    is_data = _is_data(names)
    if split != "test" and not is_data:
        raise Error(f"--split {split} is of a data set, and pictures have none: leave it out")
    large = max((model, other or model), key=lambda m: min(m.preprocessing.size))
    keys, read, labels = (
        _from_data(large, names[0], split) if is_data else _files(model, large, names)
    )
    count = len(keys)
    chosen = evenly(count, most)
    if len(chosen) < count:
        print(f"looking at {len(chosen):,} of {count:,} pictures (--most)", file=sys.stderr)
    for index in chosen:  # before any work: one that cannot be read would end it in its middle
        read(index)
    return Pictures(
        model,
        [keys[index] for index in chosen],
        lambda index: read(chosen[index]),
        None if labels is None else [labels[index] for index in chosen],
    )


def _is_data(names: Sequence[str]) -> bool:
    """Whether this is a data set rather than pictures: one name, and no picture or folder."""
    from vitrail.data.decode import SUFFIXES

    if len(names) != 1:
        return False
    name, path = names[0], Path(names[0])
    if path.is_dir():
        return next((p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES), None) is None
    return name.startswith(("demo:", "hf:")) or (
        path.is_file() and path.suffix.lower() in (".csv", ".jsonl", ".parquet", ".tar")
    )


def _files(
    model: ImageClassifier, large: ImageClassifier, names: Sequence[str]
) -> tuple[list[str], Callable[[int], np.ndarray], list[str | None] | None]:
    from vitrail.data.examples import read_file
    from vitrail.data.views import decode_for
    from vitrail.serving.images import find_images

    paths = find_images(names)

    def read(index: int) -> np.ndarray:
        try:
            return decode_for(read_file(paths.path(index)), large.preprocessing)
        except Error as error:
            raise Error(f"{paths[index]} cannot be read: {error}") from None

    # The true class, where a picture lies in a folder that has a class's name.
    known = set(model.labels or ())
    folders = [Path(path).parent.name for path in paths]
    labels = [folder if folder in known else None for folder in folders]
    return list(paths), read, labels if any(labels) else None


def _from_data(
    model: ImageClassifier, spec: str, split: str
) -> tuple[Any, Callable[[int], np.ndarray], list[str | None] | None]:
    from vitrail.data.sources import open_splits
    from vitrail.data.views import decode_for

    splits = open_splits(spec, least_classes=1)
    source = splits.get(split) or next(iter(splits.values()))
    if split not in splits:
        print(f"{spec} has no {split} split: looking at {next(iter(splits))}", file=sys.stderr)

    def read(index: int) -> np.ndarray:
        example = source.example(index)
        picture = example.image
        if isinstance(picture, bytes):
            try:
                return decode_for(picture, model.preprocessing)
            except Error as error:
                raise Error(f"{example.key} cannot be read: {error}") from None
        return picture

    labels: list[str | None] | None = None
    if source.labels.ndim == 1:
        labels = [source.classes[int(label)] for label in source.labels]
    return source.keys, read, labels


def _say(found: dict[str, Any]) -> None:
    for layer in found.get("layers", ()):
        low, high = min(layer["distance"]), max(layer["distance"])
        grid = "x".join(map(str, layer["grid"]))
        heads = len(layer["distance"])
        print(
            f"{layer['name']:<20} {heads:>3} head{'s' if heads > 1 else ' '} on {grid:<6} "
            f"distance {low:6.1f} to {high:6.1f} pixels"
        )
    print(f"{len(found['figures'])} figures of {found['images']:,} pictures")
