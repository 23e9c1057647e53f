"""The results page, docs/studies.md: every run and every figure of it, in resumable pieces.

    python benchmarks/studies.py [--quick] [--only PIECE ...] [--data ../shared/data/cifar10]
                                 [--out runs/studies] [--jobs 2] [--draw]

Pieces: rates, data-size, scaling, the ablations by name, resolution, fashion (trainings, each a
study of its own that may be killed and goes on) and looks (what is measured on the models that
those left: attention, positions, shifts, sizes, latency). `claims.json` in --out has each piece's
figures; with --draw the page's pictures in docs/pictures/studies/ are made anew from the records.
--quick does all of it at a size that shows nothing but that it works.
The last line of stdout is one JSON object; its ratios are of accuracies.
"""

import argparse
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: a spinning pool starves others

from pieces.looks import looks

import vitrail
from vitrail.studies.data import open_data
from vitrail.studies.definition import (
    TRIAL,
    Ask,
    Definition,
    Kind,
    Point,
    Record,
    Shown,
    Table,
    candidate,
)
from vitrail.studies.folder import replace_whole, safe_id
from vitrail.studies.grid import FINAL, fixed_settings, grouped, mean_of, paired
from vitrail.studies.presets import FASTEST, SMALL, hybrid, rated, vit
from vitrail.studies.study import How, study

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures" / "studies"
HELD_OUT, TEST, QUICK_TEST = 0.1, 4000, 200
RATES, RATES_SEEN = (0.0005, 0.001, 0.002, 0.004, 0.008), 40_000
TUNING_RATES = (0.003, 0.01, 0.03)  # of the fine-tuning, by SGD
COMMON: dict[str, Any] = {"image_size": 32, "batch_size": 32}
BASE = vit("ViT 4/48/3", 4, 48, 3, 3)
LIGHT = vit("ViT 8/48/3", 8, 48, 3, 3)
BOTNET = (
    "ResNet and BoTNet=botnet50_32:depths=[1,1,1]:widths=[64,128,256]:stem_width=32"
    ":attention_stride=1:heads=4"
)
MODELS = (  # of which a rate is looked for
    LIGHT,
    BASE,
    SMALL[1],
    SMALL[0],
    hybrid("hybrid 16", [1, 1], 64, 4, 4),
    hybrid("hybrid 64", [1], 64, 4, 4),
    SMALL[3],
    BOTNET,
)
# Rates are what `rates` finds: these two's own, and those of the presets' models.
BASE_RATED, BOTNET_RATED = f"{BASE}:optim.lr=0.002", f"{BOTNET}:optim.lr=0.002"
AXES = {  # comparison: the model, and how many pictures a run sees (and one before it)
    "cvt_embedding": (rated(SMALL[3]), (30_000,)),
    "cvt_projection": (rated(SMALL[3]), (30_000,)),
    "botnet": (BOTNET_RATED, (30_000,)),
    "pooling": (rated(LIGHT), (30_000,)),
    "averaging": (rated(LIGHT), (60_000,)),
    "position": (BASE_RATED, (40_000,)),
    "self_supervised": (BASE_RATED, (20_000, 60_000)),
}


class Page:
    """What the pieces share: where the data are, where the runs go, how large it all is."""

    def __init__(self, options: argparse.Namespace):
        self.data, self.quick, self.jobs = str(options.data), options.quick, options.jobs
        self.out = options.out / "quick" if options.quick else options.out
        self.draw = options.draw
        self.seeds = 2 if self.quick else options.seeds
        self.test = QUICK_TEST if self.quick else TEST

    def study(
        self, kind: str | Kind, name: str, ask: Ask, data: str | None = None
    ) -> dict[str, Any]:
        """A study of one of the kinds, in a folder of its own."""
        return study(
            kind,
            data or self.data,
            self.out / name,
            ask.replace(seeds=self.seeds),
            how=How(jobs=self.jobs),
            held_out=HELD_OUT,
            most_test=self.test,
            say=tell,
            command=f"python benchmarks/studies.py --only {name}",
        )

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
    page.copy(page.out / "scaling", scaling="scaling-compute", scaling_laws="scaling-laws")
    return found


def ablation(axis: str) -> Callable[["Page"], dict[str, Any]]:
    """Claims (c), (d), (g), (h), (i), (k), (p) and (q): each comparison a study of its own."""

    def run(page: Page) -> dict[str, Any]:
        model, lengths = AXES[axis]
        ask = Ask(
            axes=(axis,),
            models=(model,),
            durations=tuple(f"{256 if page.quick else length} examples" for length in lengths),
            **COMMON,
        )
        found = page.study("ablation", axis, ask)
        figures = page.out / axis / "figures"
        for figure in list(figures.glob("*-rates.svg")) or figures.glob("*.svg"):
            page.copy(page.out / axis, **{figure.stem: figure.stem})
        return found

    return run


def rates(page: Page) -> dict[str, Any]:
    """Each model at several learning rates, on validation alone: what the page's rates are from.

    The seed is none of those that the other pieces report.
    """
    seen = 256 if page.quick else RATES_SEEN
    ask = Ask(models=MODELS, durations=(f"{seen} examples",), first_seed=100, **COMMON)
    return page.study(Kind("rates", "Learning rates", _define_rates, _show_rates), "rates", ask)


def _define_rates(ask: Ask) -> Definition:
    points = []
    for words, rate in itertools.product(ask.models, RATES):
        one = candidate(words)
        settings = {**fixed_settings(ask), **one.settings, "optim.lr": rate}
        points.append(
            Point(
                id=safe_id(one.label, rate),
                line=one.label,
                model=one.model,
                config=one.config,
                image_size=ask.image_size,
                duration=ask.durations[0],
                settings=settings,
                seed=ask.first_seed,
                axes={"rate": rate},
                test=False,
            )
        )
    return Definition(kind="rates", points=tuple(points))


def _show_rates(definition: Definition, records: Sequence[Record], intervals: bool) -> Shown:
    found: dict[str, dict[str, float]] = {}
    for record in records:
        reached = record["metrics"].get(FINAL)
        if reached is not None:  # a rate at which the numbers are no longer finite has none
            rate = str(record["config"]["axes"]["rate"])
            found.setdefault(record["config"]["line"], {})[rate] = reached
    rows = [
        [
            line,
            *(f"{100 * one[rate]:.2f}" if rate in one else "diverged" for rate in map(str, RATES)),
        ]
        for line, one in found.items()
    ]
    answer = [f"{line}: {max(one, key=one.__getitem__)} is best" for line, one in found.items()]
    table = Table(("model", *map(str, RATES)), rows, "Accuracy on validation, %, by learning rate.")
    return Shown(answer, [table], (), found)


def resolution(page: Page) -> dict[str, Any]:
    """Claim (j): a trained model, and its fine-tuning at the same and at a higher resolution."""
    seen = 256 if page.quick else 30_000
    ask = Ask(
        models=(BASE_RATED,),
        durations=(f"{seen} examples", f"{seen // 4} examples"),
        **COMMON,
    )
    kind = Kind("resolution", "Resolution", _define_resolution, _show_resolution)
    return page.study(kind, "resolution", ask)


def _define_resolution(ask: Ask) -> Definition:
    one = candidate(ask.models[0])
    settings = {**fixed_settings(ask), **one.settings}
    without_rate = {key: value for key, value in settings.items() if key != "optim.lr"}
    points: list[Point] = []
    for seed in ask.all_seeds:
        start = Point(
            id=f"trained-seed{seed}",
            line="trained at 32",
            model=one.model,
            config=one.config,
            image_size=32,
            duration=ask.durations[0],
            settings=settings,
            seed=seed,
        )
        points.append(start)
        for size in (32, 48):
            tuned = replace(
                start,
                line=f"fine-tuned at {size}",
                recipe="vit_finetune",
                image_size=size,
                duration=ask.durations[1],
                settings={**without_rate, "schedule.warmup": "10 percent"},
                start=start.id,
            )
            ids = tuple(f"tuned{size}-rate{rate}" for rate in TUNING_RATES)
            if seed == ask.first_seed:
                for id, rate in zip(ids, TUNING_RATES, strict=True):
                    swept = {**tuned.settings, "optim.lr": rate}
                    points.append(replace(tuned, id=id, settings=swept, role=TRIAL, test=False))
            points.append(replace(tuned, id=f"tuned{size}-seed{seed}", choose=ids))
    return Definition(kind="resolution", points=tuple(points))


def _show_resolution(definition: Definition, records: Sequence[Record], intervals: bool) -> Shown:
    groups = {key[0]: runs for key, runs in grouped(records).items()}
    rows, facts = [], {}
    for line, runs in groups.items():
        mean = mean_of(runs, "top1", intervals)
        if mean is not None:
            rows.append([line, mean.words(), mean.n])
            facts[line] = mean.to_json()
    gain = paired(groups.get("fine-tuned at 48", ()), groups.get("fine-tuned at 32", ()), "top1")
    said = "nothing is measured yet" if gain is None else f"48 against 32: {gain.words()} points"
    facts["gain"] = None if gain is None else gain.to_json()
    return Shown([said], [Table(("model", "accuracy, %", "seeds"), rows, "Accuracy.")], (), facts)


def fashion(page: Page) -> dict[str, Any]:
    """Claims (a) and (o) again, on the embedded pictures of clothes."""
    ask = Ask(
        models=FASTEST if page.quick else tuple(map(rated, SMALL)),
        sizes=(100, 400) if page.quick else (200, 1000, 9000),
        durations=("320 examples" if page.quick else "12000 examples",),
        settings={"augment.flip": 0.0},
        **COMMON,
    )
    found = page.study("data-size", "fashion", ask, data="demo:fashion")
    page.copy(page.out / "fashion", fashion_top1="data-size-top1")
    return found


def look(page: Page) -> dict[str, Any]:
    """Claims (e), (f), (l), (m), (n) and (p), on the models of the largest size of data-size."""
    runs = page.out / "data-size" / "runs"
    largest = max(int(run.name.split("-")[1]) for run in runs.iterdir())
    lines = ("BiT ResNet", "ViT") if page.quick else ("BiT ResNet", "ViT", "hybrid", "CvT")
    models = {
        line: [
            vitrail.load_model(runs / safe_id(line, largest, f"seed{seed}"))
            for seed in range(page.seeds)
        ]
        for line in lines
    }
    test = open_data(page.data, HELD_OUT, page.test).test
    assert test is not None
    most = 200 if page.quick else 2000
    place = PICTURES if page.draw else None
    return looks(models, test, BASE, page.out / "botnet", place, most)


PIECES: dict[str, Callable[[Page], dict[str, Any]]] = {
    "rates": rates,
    "data-size": data_size,
    "scaling": scaling,
    **{axis: ablation(axis) for axis in AXES},
    "resolution": resolution,
    "fashion": fashion,
    "looks": look,
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
    found: dict[str, Any] = {}
    for name in options.only or (QUICK if options.quick else PIECES):
        figures = PIECES[name](page)
        # Read again: pieces may be done by several processes at a time.
        found = json.loads(path.read_text()) if path.exists() else {}
        found[name] = figures
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
