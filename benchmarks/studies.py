"""The results page, docs/studies.md: every run and every figure of it, in resumable pieces.

    python benchmarks/studies.py [--quick] [--only PIECE ...] [--data ../shared/data/cifar10]
                                 [--out runs/studies] [--jobs 2] [--draw]

Pieces: data-size, scaling, the ablations by name, resolution, fashion (trainings, each a study of
its own that may be killed and goes on) and looks (what is measured on the models that those left:
attention, positions, shifts, sizes, latency). `claims.json` in --out has each piece's figures; with --draw the
page's pictures in docs/pictures/studies/ are made anew from the records.
--quick does all of it at a size that shows nothing but that it works.
The last line of stdout is one JSON object; its ratios are of accuracies.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: a spinning pool starves others

import numpy as np
import torch

import vitrail
from vitrail.data.examples import ArraySource, Source
from vitrail.data.loader import eval_batches
from vitrail.evaluation.accuracy import evaluate
from vitrail.inspection.attention import attention_distance
from vitrail.kit.chart import Line, line_chart
from vitrail.models.base import ImageClassifier
from vitrail.models.tape import Tape
from vitrail.studies.data import open_data
from vitrail.studies.definition import Ask, Definition, Kind, Point, Record, Shown, Table, candidate
from vitrail.studies.folder import StudyFolder, replace_whole
from vitrail.studies.grid import fixed_settings, grouped, mean_of, paired
from vitrail.studies.page import standalone, write_report
from vitrail.studies.presets import FASTEST, SMALL, vit
from vitrail.studies.runner import take_runs
from vitrail.studies.statistics import Mean, t_mean
from vitrail.studies.study import How, decoded, study
from vitrail.weights.resized import resized

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures" / "studies"
HELD_OUT, TEST, QUICK_TEST = 0.02, 4000, 200
BASE = vit("ViT", 4, 48, 3, 3)
LIGHT = vit("ViT", 8, 48, 3, 3)
CVT = SMALL[3]
BOTNET = (
    "ResNet and BoTNet=botnet50_32:depths=[1,1,1]:widths=[64,128,256]:stem_width=32"
    ":attention_stride=1:heads=4"
)
AXES = {  # comparison: the model that it is put to, and the pictures that a run sees
    "cvt_embedding": (CVT, 12_000),
    "cvt_projection": (CVT, 12_000),
    "botnet": (BOTNET, 12_000),
    "pooling": (LIGHT, 12_000),
    "averaging": (LIGHT, 12_000),
    "position": (BASE, 6_000),
    "self_supervised": (LIGHT, 12_000),
}
SHIFTS, SIZES = (0, 2, 4, 6, 8), (16, 24, 32, 40, 48, 64)


class Page:
    """What the pieces share: where the data are, where the runs go, how large it all is."""

    def __init__(self, options: argparse.Namespace):
        self.data, self.quick, self.jobs = str(options.data), options.quick, options.jobs
        self.out = options.out / "quick" if options.quick else options.out
        self.draw = options.draw
        self.seeds = 2 if self.quick else options.seeds
        self.test = QUICK_TEST if self.quick else TEST

    def study(self, kind: str, name: str, ask: Ask, data: str | None = None) -> dict[str, Any]:
        """A study of one of the kinds, in a folder of its own."""
        held_out = 0.1 if data else HELD_OUT
        return study(
            kind,
            data or self.data,
            self.out / name,
            ask.replace(seeds=self.seeds),
            how=How(jobs=self.jobs),
            held_out=held_out,
            most_test=self.test,
            say=tell,
            command=f"python benchmarks/studies.py --only {name}",
        )

    def picture(self, name: str, svg: str) -> None:
        """A figure of the page."""
        if self.draw:
            PICTURES.mkdir(parents=True, exist_ok=True)
            replace_whole(PICTURES / f"{name}.svg", standalone(svg))

    def copy(self, folder: Path, **names: str) -> None:
        """A study's own figures as the page's."""
        for name, figure in names.items():
            path = folder / "figures" / f"{figure}.svg"
            if self.draw and path.exists():
                PICTURES.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, PICTURES / f"{name.replace('_', '-')}.svg")


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def data_size(page: Page) -> dict[str, Any]:
    """Claims (a) and (o)."""
    ask = Ask(preset="quick" if page.quick else "page")
    found = page.study("data-size", "data-size", ask)
    names = {"data_size_top1": "data-size-top1", "data_size_fewshot": "data-size-fewshot-10"}
    page.copy(page.out / "data-size", **names)
    return found


def scaling(page: Page) -> dict[str, Any]:
    """Claims (b) and (r)."""
    found = page.study("scaling", "scaling", Ask(preset="quick" if page.quick else "page"))
    page.copy(page.out / "scaling", scaling="scaling-compute")
    return found


def ablation(axis: str) -> Callable[["Page"], dict[str, Any]]:
    """Claims (c), (d), (g), (h), (i), (k), (p) and (q): each comparison a study of its own."""

    def run(page: Page) -> dict[str, Any]:
        model, images = AXES[axis]
        ask = Ask(
            axes=(axis,),
            models=(model,),
            durations=(f"{256 if page.quick else images} examples",),
            image_size=32,
            batch_size=32,
            settings={"optim.lr": 0.003},
        )
        found = page.study("ablation", axis, ask)
        for figure in (page.out / axis / "figures").glob("*.svg"):
            page.copy(page.out / axis, **{figure.stem: figure.stem})
        return found

    return run


def resolution(page: Page) -> dict[str, Any]:
    """Claim (j): a trained model, and its fine-tuning at the same and at a higher resolution."""
    one = candidate(BASE)
    settings = {**fixed_settings(Ask(image_size=32, batch_size=32)), "optim.lr": 0.003}
    tuning = {**settings, "optim.lr": 0.003, "schedule.warmup": "10 percent"}
    points: list[Point] = []
    for seed in range(page.seeds):
        shared = {"model": one.model, "config": one.config, "seed": seed}
        seen = 256 if page.quick else 12_000
        start = Point(
            id=f"trained-seed{seed}",
            line="trained at 32",
            image_size=32,
            duration=f"{seen} examples",
            settings=settings,
            **shared,
        )
        points.append(start)
        for size in (32, 48):
            points.append(
                Point(
                    id=f"tuned{size}-seed{seed}",
                    line=f"fine-tuned at {size}",
                    recipe="vit_finetune",
                    image_size=size,
                    duration=f"{seen // 3} examples",
                    settings=tuning,
                    start=start.id,
                    **shared,
                )
            )
    definition = Definition(
        kind="resolution", points=tuple(points), held_out=HELD_OUT, most_test=page.test
    )
    folder = StudyFolder(page.out / "resolution")
    data = open_data(page.data, HELD_OUT, page.test)
    folder.open(definition, data.identity)
    if {point.id for point in points} - folder.recorded():
        take_runs(definition, decoded(data, definition), folder, told=told(folder))
    folder.compose()
    return write_report(folder, Kind("resolution", "Resolution", _no_define, _show_resolution))


def told(folder: StudyFolder) -> Callable[[Point, float | None], None]:
    def say(point: Point, seconds: float | None) -> None:
        if seconds is not None:
            top1 = folder.record(point.id)["metrics"].get("top1")
            tell(f"{point.id} in {seconds:.0f} s, {100 * (top1 or 0):.2f} % on test")

    return say


def _no_define(ask: Ask) -> Definition:
    raise NotImplementedError("the resolution study is defined in this file alone")


def _show_resolution(definition: Definition, records: Sequence[Record], intervals: bool) -> Shown:
    groups = {key[0]: runs for key, runs in grouped(records).items()}
    rows, facts = [], {}
    for line, runs in groups.items():
        mean = mean_of(runs, "top1", intervals)
        if mean is not None:
            rows.append([line, mean.words(), mean.n])
            facts[line] = plain(mean)
    gain = paired(groups.get("fine-tuned at 48", ()), groups.get("fine-tuned at 32", ()), "top1")
    said = "nothing is measured yet" if gain is None else f"48 against 32: {gain.words()} points"
    facts["gain"] = None if gain is None else plain(gain)
    return Shown([said], [Table(("model", "accuracy, %", "seeds"), rows, "Accuracy.")], (), facts)


def fashion(page: Page) -> dict[str, Any]:
    """Claims (a) and (o) again, on the embedded pictures of clothes."""
    ask = Ask(
        models=FASTEST if page.quick else SMALL,
        sizes=(100, 400) if page.quick else (200, 1000, 9000),
        durations=("320 examples" if page.quick else "8000 examples",),
        image_size=32,
        batch_size=32,
        settings={"optim.lr": 0.003, "augment.flip": 0.0},
    )
    found = page.study("data-size", "fashion", ask, data="demo:fashion")
    page.copy(page.out / "fashion", fashion_top1="data-size-top1")
    return found


# -------------------------------------------------------------------------------------------------
# Looks: measured on models that the trainings left.


def looks(page: Page) -> dict[str, Any]:
    """Claims (e), (f), (l), (m), (n) and (p)."""
    data = open_data(page.data, HELD_OUT, page.test)
    pictures = data.decoded(10, [0]).test
    assert pictures is not None
    largest = max(int(p.name.split("-")[1]) for p in (page.out / "data-size/runs").iterdir())
    models = {
        line: [
            vitrail.load_model(page.out / "data-size/runs" / f"{line}-{largest}-seed{seed}")
            for seed in range(page.seeds)
        ]
        for line in ("BiT_ResNet", "ViT", *(() if page.quick else ("hybrid", "CvT")))
    }
    some = first(pictures, 200 if page.quick else 1000)
    found = {
        "attention": attention(page, models, some),
        "positions": positions(page, models["ViT"]),
        "permutation": permutation(),
        "shifts": shifts(page, models, some),
        "sizes": sizes(page, models, some),
    }
    if (page.out / "botnet" / "records.jsonl").exists():
        found["latency"] = latency(page.out / "botnet", some)
    return found


def first(source: Source, most: int) -> ArraySource:
    """The first pictures of a source, as one array."""
    rows = np.arange(min(most, len(source)))
    images = np.stack([np.asarray(source.image(int(i))) for i in rows])
    return ArraySource(images, source.labels[rows], source.classes)


def pixels(model: ImageClassifier, source: ArraySource, most: int) -> torch.Tensor:
    """Pictures as the model takes them, float [b c h w]."""
    views = [model.preprocessing(image) for image in source.images[:most]]
    return torch.stack([torch.as_tensor(view) for view in views])


def attention(
    page: Page, models: dict[str, list[ImageClassifier]], some: ArraySource
) -> dict[str, Any]:
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
            "layers": [plain(one) for one in by_layer],
            "growth": plain(growth),
            "nearest_head_of_the_first_layer": plain(nearest),
            "heads": distances.tolist(),
        }
        depth = [float(i + 1) for i in range(len(by_layer))]
        for head in range(distances.shape[2]):
            y = np.sort(distances, 2).mean(0)[:, head].tolist()
            lines.append(Line(f"{line}, head {head + 1}", depth, y, dots=True))
    svg = line_chart(
        lines[:8], title="attention distance by layer", x_label="layer", size=(520, 300)
    )
    page.picture("attention-distance", svg)
    return found


def positions(page: Page, models: Sequence[ImageClassifier]) -> dict[str, Any]:
    """Do position embeddings of one row or column resemble each other more than others do?"""
    gaps, tables = [], []
    for model in models:
        table = dict(model.named_parameters())["pos_embed"][0].detach()
        side = int((len(table) - 1) ** 0.5)
        table = torch.nn.functional.normalize(table[1:], dim=1)
        similar = (table @ table.T).numpy()
        tables.append(similar.reshape(side, side, side, side))
        row, column = np.divmod(np.arange(side * side), side)
        lined = (row[:, None] == row) ^ (column[:, None] == column)  # one of them, not itself
        apart = (row[:, None] != row) & (column[:, None] != column)
        near = (abs(row[:, None] - row) + abs(column[:, None] - column)) == 1
        gaps.append(
            (
                float(similar[lined].mean() - similar[apart].mean()),
                float(similar[near].mean() - similar[lined & ~near].mean()),
            )
        )
    if page.draw:
        draw_positions(np.mean(tables, 0))
    lined_gap, near_gap = zip(*gaps, strict=True)
    return {
        "row_or_column_minus_others": plain(t_mean(lined_gap)),
        "neighbours_minus_rest_of_row_or_column": plain(t_mean(near_gap)),
    }


def draw_positions(similar: np.ndarray) -> None:
    """The grid of grids as a small PNG."""
    from PIL import Image

    from vitrail.kit.chart import heat_colors

    side, gap, cell = len(similar), 2, 6
    step = side * cell + gap
    canvas = np.full((side * step - gap, side * step - gap, 3), 255, np.uint8)
    low, high = np.quantile(similar, (0.02, 0.98))
    for i in range(side):
        for j in range(side):
            tile = heat_colors((similar[i, j] - low) / (high - low))
            tile = tile.repeat(cell, 0).repeat(cell, 1)
            canvas[i * step : i * step + side * cell, j * step : j * step + side * cell] = tile
    PICTURES.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).save(PICTURES / "positions.png", optimize=True)


def permutation() -> dict[str, float]:
    """The largest change of the logits when patches are permuted, in float64, at random weights."""
    found = {}
    one = candidate(BASE)
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


def shifts(
    page: Page, models: dict[str, list[ImageClassifier]], some: ArraySource
) -> dict[str, Any]:
    """Accuracy when the picture is shifted in four directions, black coming in."""
    found, lines = {}, []
    for line, ones in models.items():
        kept = []
        for shift in SHIFTS:
            moved = [some] if not shift else [moved_by(some, *d) for d in directions(shift)]
            kept.append([statistics.fmean(top1(m, s) for s in moved) for m in ones])
        found[line] = {
            str(shift): plain(t_mean(values)) for shift, values in zip(SHIFTS, kept, strict=True)
        }
        loss = [t_mean([a - b for a, b in zip(values, kept[0], strict=True)]) for values in kept]
        found[line]["loss"] = {str(s): plain(one) for s, one in zip(SHIFTS, loss, strict=True)}
        means = [found[line][str(shift)]["mean"] for shift in SHIFTS]
        lines.append(Line(line.replace("_", " "), [float(s) for s in SHIFTS], means, dots=True))
    svg = line_chart(
        lines,
        title="accuracy under shifts",
        x_label="shift in pixels",
        percent=True,
        size=(520, 300),
    )
    page.picture("shifts", svg)
    return found


def directions(shift: int) -> list[tuple[int, int]]:
    return [(shift, 0), (-shift, 0), (0, shift), (0, -shift)]


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


def sizes(
    page: Page, models: dict[str, list[ImageClassifier]], some: ArraySource
) -> dict[str, Any]:
    """Accuracy at other sizes than trained at; position tables are resized."""
    found, lines = {}, []
    for line, ones in models.items():
        at = {size: t_mean([top1(resized(m, size), some) for m in ones]) for size in SIZES}
        found[line] = {str(size): plain(mean) for size, mean in at.items()}
        means = [at[size].mean for size in SIZES]
        lines.append(Line(line.replace("_", " "), [float(s) for s in SIZES], means, dots=True))
    svg = line_chart(
        lines,
        title="accuracy against test size",
        x_label="pixels",
        percent=True,
        size=(520, 300),
    )
    page.picture("sizes", svg)
    return found


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


def plain(mean: Mean) -> dict[str, Any]:
    return {"mean": mean.mean, "low": mean.low, "high": mean.high, "n": mean.n}


PIECES: dict[str, Callable[[Page], dict[str, Any]]] = {
    "data-size": data_size,
    "scaling": scaling,
    **{axis: ablation(axis) for axis in AXES},
    "resolution": resolution,
    "fashion": fashion,
    "looks": looks,
}
QUICK = ("data-size", "cvt_embedding", "botnet", "resolution", "looks")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shows nothing but that it works")
    parser.add_argument("--only", nargs="*", choices=list(PIECES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--draw", action="store_true", help="make the page's pictures anew")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "cifar10")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "studies")
    options = parser.parse_args()
    page = Page(options)
    page.out.mkdir(parents=True, exist_ok=True)
    path = page.out / "claims.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in options.only or (QUICK if options.quick else PIECES):
        found[name] = PIECES[name](page)
        replace_whole(path, json.dumps(found, indent=1) + "\n")
        for sentence in found[name].get("answer", ()):
            print(sentence, flush=True)
    print(json.dumps({"benchmark": "studies", "ratios": ratios(found)}))
    return 0


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """At the most pictures and at the fewest, the ViT's accuracy over the ResNet's."""
    by_line = found.get("data-size", {}).get("top1", {})
    if not {"ViT", "BiT ResNet"} <= set(by_line):
        return {}
    return {
        f"vit_over_cnn_{size}": by_line["ViT"][size]["mean"] / by_line["BiT ResNet"][size]["mean"]
        for size in by_line["ViT"]
        if size in by_line["BiT ResNet"]
    }


if __name__ == "__main__":
    sys.exit(main())
