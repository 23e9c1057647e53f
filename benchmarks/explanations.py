"""Does an explanation find what the answer hangs on? Deletion and insertion scores, over seeds.

    python benchmarks/explanations.py [--quick] [--seeds 3] [--models DIR ...] [--out DIR]

For each seed a small ViT with a class token learns the embedded pictures of clothes; its accuracy
stands beside what follows. Then patches of 4 x 4 pixels of test pictures are replaced, those first
that an explanation holds for the most relevant, and the probability of the predicted class is
followed: the area under that curve is the score (deletion: lower is better; insertion, where
patches come instead: higher is better). The question is whether attention x gradient relevance
beats patches in random order: the difference on the same pictures, with a 95 % bootstrap interval
over pictures and seeds. Every other explanation is reported, whatever comes out.
Grey replaces a patch by the middle of the range, which no picture has around its garment; black is
the pictures' own background, so that what is deleted is gone.
Every run can be interrupted: the same command goes on. A seed's record stands in DIR/records.jsonl
as soon as it is done; seeds may run side by side (--first-seed), and the last to end reports all.
The last line of stdout is one JSON object; its ratios are the score of random order over that of
relevance (for insertion the other way round), above 1 where relevance is better.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: a spinning pool starves others

import numpy as np
import torch

import vitrail
from vitrail.data.decode import decode
from vitrail.data.loader import eval_batches
from vitrail.data.sources import open_source
from vitrail.evaluation.accuracy import evaluate
from vitrail.inspection.relevance import explain, methods_of, predicted
from vitrail.inspection.scores import (
    curves,
    paired_difference,
    patch_of,
    patch_order,
    random_curves,
)
from vitrail.models.base import ImageClassifier

ROOT = Path(__file__).resolve().parents[1]
DATA, MODEL = "demo:fashion", "vit_nano_patch4_28"
SETTINGS = {"model.pool": "token", "optim.lr": 1e-3}
BATCH = 64
METHODS = ("relevance", "rollout", "attention", "gradient", "integrated_gradients")
SCORES = (("deletion", "grey"), ("deletion", "black"), ("insertion", "black"))


def pictures(model: ImageClassifier, most: int) -> torch.Tensor:
    """As many test pictures, every so many of them, as the model takes them: [b c h w]."""
    source = open_source(DATA, split="test")
    prepared = []
    for i in np.linspace(0, len(source) - 1, most).round().astype(int):
        image = source.example(int(i)).image
        array = decode(image) if isinstance(image, bytes) else image
        prepared.append(model.preprocessing(array))
    return torch.stack(prepared)


def accuracy(model: ImageClassifier) -> float:
    """On all test pictures."""
    test = open_source(DATA, split="test")
    return evaluate(model, eval_batches(test, model.preprocessing, 256), test.classes).top1


def measured(folder: Path, images: int, steps: int, draws: int) -> dict:
    """Every explanation's areas on one model, picture by picture."""
    model, started = vitrail.load_model(folder), time.time()
    shown = pictures(model, images)
    classes = torch.cat([predicted(model, some) for some in shown.split(256)])
    patch = patch_of(model, (shown.shape[-2], shown.shape[-1]))
    words = {"steps": steps, "targets": classes, "batch_size": 256}
    areas: dict[str, dict[str, list[float]]] = {f"{mode} {base}": {} for mode, base in SCORES}
    for method in [name for name in METHODS if name in methods_of(model)]:
        heat = explain(model, shown, method, classes, batch_size=64)
        order = patch_order(heat, patch)
        for mode, base in SCORES:
            found = curves(model, shown, order, patch, mode, base, **words)
            areas[f"{mode} {base}"][method] = found.areas.tolist()
    spread = {}
    for mode, base in SCORES:
        chance = random_curves(model, shown, patch, mode, draws, baseline=base, **words)
        areas[f"{mode} {base}"]["random"] = chance.curves.areas.tolist()
        spread[f"{mode} {base}"] = chance.spread
    return {
        "top1": accuracy(model),
        "areas": areas,
        "random_spread": spread,
        "seconds": time.time() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under two minutes; one seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", type=Path, help="model folders instead of training")
    parser.add_argument("--train-steps", type=int, default=500)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--steps", type=int, default=14, help="of each curve")
    parser.add_argument("--draws", type=int, default=2, help="random orders a picture")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "explanations")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.train_steps = 1, 250
        options.images, options.steps, options.draws = 60, 12, 2
    out = options.out / ("models" if options.models else "quick" if options.quick else "whole")
    out.mkdir(parents=True, exist_ok=True)
    first = options.first_seed
    for seed in range(first, first + (len(options.models) if options.models else options.seeds)):
        if options.models:
            folder = options.models[seed - first]
        else:
            folder = out / f"model-{seed}"
            vitrail.train(
                DATA,
                model=MODEL,
                out=folder,
                seed=seed,
                steps=options.train_steps,
                batch_size=BATCH,
                set=SETTINGS,
                quiet=False,
            )
        config = {
            "model": str(folder),
            "train_steps": options.train_steps,
            "images": options.images,
            "steps": options.steps,
            "draws": options.draws,
        }
        kept = out / f"seed-{seed}.json"
        record = json.loads(kept.read_text()) if kept.exists() else {}
        if record.get("config") != config:
            found = measured(folder, options.images, options.steps, options.draws)
            record = {"id": f"seed-{seed}", "config": config, "seed": seed, "metrics": found}
            kept.write_text(json.dumps(record) + "\n")
        top1, seconds = record["metrics"]["top1"], record["metrics"]["seconds"]
        print(f"seed {seed}: test top-1 {100 * top1:.2f} %; scored in {seconds:.0f} s", flush=True)
        done = [json.loads(path.read_text()) for path in sorted(out.glob("seed-*.json"))]
        (out / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in done))
    report(done)


def report(records: list[dict]) -> None:
    """A table of mean areas, each explanation against random order, and the last line's JSON."""
    top1 = [record["metrics"]["top1"] for record in records]
    print(f"test top-1 {', '.join(f'{100 * value:.2f}' for value in top1)} %")
    ratios, differences = {}, {}
    for mode, base in SCORES:
        name = f"{mode} {base}"
        areas = {
            method: torch.tensor([r["metrics"]["areas"][name][method] for r in records])
            for method in records[0]["metrics"]["areas"][name]
        }
        better = "lower" if mode == "deletion" else "higher"
        print(f"\n{mode}, patches replaced by {base} ({better} is better)")
        print(f"{'':22}{'area':>8}  {'by seed':24}less random, 95 % interval")
        for method, values in areas.items():
            seeds = " ".join(f"{value:.4f}" for value in values.mean(1).tolist())
            line = f"{method:22}{values.mean().item():8.4f}  {seeds:24}"
            if method == "random":
                spread = statistics.fmean(r["metrics"]["random_spread"][name] for r in records)
                print(f"{line}deviation over draws {spread:.4f}")
                continue
            d = paired_difference(values, areas["random"])
            print(f"{line}{d.mean:+.4f} ({d.low:+.4f} to {d.high:+.4f})")
            differences[f"{name}: {method} - random"] = [d.mean, d.low, d.high]
        ratio = (areas["random"].mean() / areas["relevance"].mean()).item()
        ratios[f"{name}: relevance"] = ratio if mode == "deletion" else 1 / ratio
    print()
    result = {
        "benchmark": "explanations",
        "ratios": ratios,
        "differences": differences,
        "top1": top1,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
