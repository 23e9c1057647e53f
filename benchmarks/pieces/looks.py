"""What the results page measures on models that its trainings left: nothing here trains.

Claims (e), (f), (l), (m), (n) and the latency of (p). Each function returns plain JSON values,
means over seeds with 95 % t intervals, and draws its picture where a place for it is given.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import vitrail
from vitrail.data.decode import decode
from vitrail.data.examples import ArraySource, Source
from vitrail.data.loader import eval_batches
from vitrail.evaluation.accuracy import evaluate
from vitrail.inspection.attention import attention_distance
from vitrail.inspection.embeddings import position_similarity, row_column_contrast
from vitrail.inspection.figures import enlarged, mosaic
from vitrail.kit.chart import Line, heat_colors, line_chart
from vitrail.models.base import ImageClassifier
from vitrail.models.tape import Tape
from vitrail.studies.definition import candidate
from vitrail.studies.folder import replace_whole
from vitrail.studies.page import standalone
from vitrail.studies.statistics import t_mean
from vitrail.weights.resized import resized

SHIFTS, SIZES, TRAINED = (0, 2, 4, 6, 8), (16, 24, 32, 40, 48, 64), 32
Models = dict[str, list[ImageClassifier]]  # of each line, one a seed


def looks(
    models: Models, pictures: Source, base: str, botnet: Path, place: Path | None, most: int
) -> dict[str, Any]:
    """All of it.

    Args:
        models: trained at 32 pixels; ``ViT``, ``hybrid``, ``CvT`` and ``BiT ResNet`` are known.
        pictures: test pictures.
        base: the ViT, in the words of `candidate`.
        botnet: the folder of the study of BoTNet against its ResNet.
        place: a folder for pictures, or None.
        most: how many test pictures are used.
    """
    some = spaced(pictures, most)
    found = {
        "attention": attention(models, some, place),
        "positions": positions(models["ViT"], place),
        "permutation": permutation(base),
        "shifts": shifts(models, some, place),
        "sizes": sizes(models, some, place),
    }
    if (botnet / "records.jsonl").exists():
        found["latency"] = latency(botnet, some)
    return found


def picture(place: Path | None, name: str, svg: str) -> None:
    """Put a figure into its place."""
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
        replace_whole(place / f"{name}.svg", standalone(svg))


def spaced(source: Source, most: int) -> ArraySource:
    """So many pictures of a source, evenly spaced, as one array."""
    rows = np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(np.int64)
    raw = [source.image(int(i)) for i in rows]
    images = np.stack([decode(one) if isinstance(one, bytes) else one for one in raw])
    return ArraySource(images, source.labels[rows], source.classes)


def pixels(model: ImageClassifier, source: ArraySource, most: int) -> torch.Tensor:
    """Pictures as the model takes them, float [b c h w]."""
    views = [model.preprocessing(image) for image in source.images[:most]]
    return torch.stack([torch.as_tensor(view) for view in views])


def attention(models: Models, some: ArraySource, place: Path | None) -> dict[str, Any]:
    """Mean attention distance per layer and head, as a share of that of uniform attention."""
    found: dict[str, Any] = {}
    lines = []
    for line in ("ViT", "hybrid"):
        every = []  # [seeds layers heads]
        for model in models.get(line, ()):
            tape = Tape(only="blocks.*.attention")
            with torch.inference_mode():
                model(pixels(model, some, 256), tape=tape)
            layers = [tape[name] for name in tape]
            patches = layers[0].shape[-1] - 1
            side = round(patches**0.5)
            patch = model.preprocessing.size[0] // side
            flat = torch.full((1, 1, patches + 1, patches + 1), 1 / (patches + 1))
            uniform = float(attention_distance(flat, side, patch)[0, 0])
            every.append([attention_distance(one, side, patch).mean(0).tolist() for one in layers])
        if not every:
            continue
        distances = np.array(every)
        by_layer = [t_mean(distances[:, i].mean(1).tolist()) for i in range(distances.shape[1])]
        growth = t_mean((distances[:, -1].mean(1) - distances[:, 0].mean(1)).tolist())
        nearest = t_mean(distances[:, 0].min(1).tolist())
        found[line] = {
            "uniform": uniform,
            "layers": [one.to_json() for one in by_layer],
            "growth": growth.to_json(),
            "nearest_head_of_the_first_layer": nearest.to_json(),
            "heads": distances.tolist(),
        }
        depth = [float(i + 1) for i in range(len(by_layer))]
        for head in range(distances.shape[2]):
            y = np.sort(distances, 2).mean(0)[:, head].tolist()
            lines.append(Line(f"{line}, head {head + 1}", depth, y, dots=True))
    svg = line_chart(
        lines[:8], title="attention distance by layer", x_label="layer", size=(520, 300)
    )
    picture(place, "attention-distance", svg)
    return found


def positions(models: Sequence[ImageClassifier], place: Path | None) -> dict[str, Any]:
    """Do position embeddings of one row or column resemble each other more than others do?"""
    gaps, tables = [], []
    for model in models:
        table = dict(model.named_parameters())["pos_embed"][0]
        side = int((len(table) - 1) ** 0.5)
        tables.append(position_similarity(table, (side, side), prefix=1))
        similar = tables[-1].reshape(side * side, side * side)
        row, column = np.divmod(np.arange(side * side), side)
        lined = (row[:, None] == row) ^ (column[:, None] == column)  # one of them, not itself
        near = (abs(row[:, None] - row) + abs(column[:, None] - column)) == 1
        gaps.append(
            (
                row_column_contrast(tables[-1]),
                float(similar[near].mean() - similar[lined & ~near].mean()),
            )
        )
    if place is not None:
        mean = np.mean(tables, 0)
        low, high = np.quantile(mean, (0.02, 0.98))
        tiles = heat_colors((mean - low) / (high - low))  # the grid of grids
        sheet = mosaic([[enlarged(tile, 6 * len(tile)) for tile in row] for row in tiles])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(place / "positions.png", optimize=True)
    lined_gap, near_gap = zip(*gaps, strict=True)
    return {
        "row_or_column_minus_others": t_mean(lined_gap).to_json(),
        "neighbours_minus_rest_of_row_or_column": t_mean(near_gap).to_json(),
    }


def permutation(base: str) -> dict[str, float]:
    """The largest change of the logits when patches are permuted, in float64, at random weights."""
    found = {}
    one = candidate(base)
    for position in ("none", "learned"):
        torch.manual_seed(0)
        config = {**one.config, "position": position}
        model = vitrail.create_model(one.model, 10, 32, **config).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.2)
        images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
        tiles = images.unfold(2, 4, 4).unfold(3, 4, 4)  # [b c 8 8 4 4]
        order = torch.randperm(64)
        tiles = tiles.flatten(2, 3)[:, :, order].unflatten(2, (8, 8))
        permuted = tiles.permute(0, 1, 2, 4, 3, 5).reshape(8, 3, 32, 32)
        with torch.inference_mode():
            before, after = model(images), model(permuted)
        found[position] = float((before - after).abs().max() / before.abs().max())
    return found


def shifts(models: Models, some: ArraySource, place: Path | None) -> dict[str, Any]:
    """Accuracy when the picture is shifted in four directions, black coming in."""
    moved = {shift: [moved_by(some, *way) for way in directions(shift)] for shift in SHIFTS}

    def accuracy(model: ImageClassifier, shift: int) -> float:
        return statistics.fmean(top1(model, source) for source in moved[shift])

    found, svg = compared(models, SHIFTS, accuracy, "accuracy under shifts", "shift in pixels", 0)
    picture(place, "shifts", svg)
    return found


def sizes(models: Models, some: ArraySource, place: Path | None) -> dict[str, Any]:
    """Accuracy at other sizes than trained at; position tables are resized."""

    def accuracy(model: ImageClassifier, size: int) -> float:
        return top1(resized(model, size), some)

    found, svg = compared(models, SIZES, accuracy, "accuracy against test size", "pixels", TRAINED)
    picture(place, "sizes", svg)
    return found


def compared(
    models: Models,
    values: Sequence[int],
    accuracy: Callable[[ImageClassifier, int], float],
    title: str,
    x_label: str,
    usual: int,
) -> tuple[dict[str, Any], str]:
    """Each line's accuracy at each value, what it loses against the usual one, and a chart."""
    found, lines = {}, []
    for line, ones in models.items():
        by_seed = {value: [accuracy(model, value) for model in ones] for value in values}
        at = {str(value): t_mean(every) for value, every in by_seed.items()}
        loss = {
            str(value): t_mean([a - b for a, b in zip(every, by_seed[usual], strict=True)])
            for value, every in by_seed.items()
        }
        found[line] = {value: mean.to_json() for value, mean in at.items()}
        found[line]["loss"] = {value: mean.to_json() for value, mean in loss.items()}
        means = [mean.mean for mean in at.values()]
        lines.append(Line(line, [float(value) for value in values], means, dots=True))
    return found, line_chart(lines, title=title, x_label=x_label, percent=True, size=(520, 300))


def directions(shift: int) -> list[tuple[int, int]]:
    return [(shift, 0), (-shift, 0), (0, shift), (0, -shift)] if shift else [(0, 0)]


def moved_by(source: ArraySource, down: int, right: int) -> ArraySource:
    """Every picture shifted, black coming in."""
    images = np.zeros_like(source.images)
    h, w = images.shape[1:3]
    to = np.s_[:, max(0, down) : h + min(0, down), max(0, right) : w + min(0, right)]
    of = np.s_[:, max(0, -down) : h + min(0, -down), max(0, -right) : w + min(0, -right)]
    images[to] = source.images[of]
    return ArraySource(images, source.labels, source.classes)


def top1(model: ImageClassifier, source: Source) -> float:
    return evaluate(model, eval_batches(source, model.preprocessing, 256), source.classes).top1


def latency(folder: Path, some: ArraySource) -> dict[str, Any]:
    """BoTNet against its ResNet: parameters, and the time of a batch of 64 in one run."""
    runs = sorted(path for path in (folder / "runs").iterdir() if path.name.endswith("seed0"))
    models = {path.name: vitrail.load_model(path) for path in runs}
    batch = pixels(next(iter(models.values())), some, 64)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(8):  # in turn, so that what else the machine does meets all alike
            for name, model in models.items():
                began = time.perf_counter()
                model(batch)
                times[name].append(time.perf_counter() - began)
    return {
        name: {
            "parameters": sum(p.numel() for p in model.parameters()),
            "milliseconds": 1000 * statistics.median(times[name]),
        }
        for name, model in models.items()
    }
