"""Does masked patch prediction help? Fine-tuning from it beside fine-tuning from nothing.

    python benchmarks/masked.py [--quick] [--seeds 3] [--data ../shared/data/cifar10] [--out DIR]

For each seed: a small ViT learns to find the mean colours of corrupted patches (recipe
`masked_patch`, the labels of no image looked at), then two runs of one recipe, one budget and one
seed learn the classes, one from those weights and one from fresh ones. What is reported is the
difference of their test accuracies, paired by seed, with its 95 % t interval.
Every run can be interrupted: the same command goes on. A seed's record stands in DIR/records.jsonl
as soon as it is done; seeds may run side by side (--first-seed), and the last to end reports all.
The last line of stdout is one JSON object; its ratio is accuracy over accuracy, above 1 where the
pre-trained one is better.
"""

import argparse
import io
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: a spinning pool starves others

import numpy as np
from PIL import Image

import vitrail
from vitrail.data.examples import ArraySource, Source
from vitrail.data.loader import eval_batches
from vitrail.evaluation.accuracy import evaluate
from vitrail.training.finish import Run
from vitrail.training.objectives import mean_color_classes

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MODEL = "vit_nano_patch4_32"
SHAPE = {
    "model.width": 64,
    "model.heads": 2,
    "model.mlp_width": 128,
    "model.pool": "mean",
    "model.class_token": True,
}
BATCH = 128
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t, by degrees of freedom


def read(path: Path, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n 32 32 3] and labels int64 [n] of a parquet file of CIFAR-10."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(path)
    columns = table.column_names
    image = next(name for name in columns if name in ("image", "img"))
    rows = table.slice(0, most).to_pylist()
    images = np.stack([np.asarray(Image.open(io.BytesIO(row[image]["bytes"]))) for row in rows])
    return images, np.array([row["label"] for row in rows], np.int64)


def cifar10(folder: Path, quick: bool) -> tuple[dict[str, Source], np.ndarray]:
    """Train and test, and the training images."""
    images, labels = read(folder / "train.parquet", 2_000 if quick else None)
    test = read(folder / "test.parquet", 1_000 if quick else None)
    splits: dict[str, Source] = {
        "train": ArraySource(images, labels, CLASSES),
        "test": ArraySource(*test, CLASSES),
    }
    return splits, images


def color_entropy(images: np.ndarray, patch_size: int) -> float:
    """The entropy, in nats, of the patches' colour classes: what a guess without looking costs."""
    import torch

    pixels = torch.from_numpy(images[:10_000]).permute(0, 3, 1, 2).float() / 255
    counts = torch.bincount(
        mean_color_classes(pixels, patch_size).flatten(), minlength=512
    ).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())


def one(name: str, splits: dict[str, Source], out: Path, seed: int, **words) -> Run:
    """A run of the benchmark, in its own folder."""
    run = vitrail.train(
        splits["train"],
        out=out / f"{name}-{seed}",
        seed=seed,
        batch_size=BATCH,
        val_fraction=0.0,
        quiet=False,
        **words,
    )
    return run


def accuracy(run: Run, test: Source) -> float:
    """Of the final weights on the test images."""

    model = vitrail.load_model(run.folder)
    return evaluate(model, eval_batches(test, model.preprocessing, 256), test.classes).top1


def last_losses(run: Run) -> float:
    """The mean loss of the last tenth of a run's steps."""
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    losses = [record["loss"] for record in records if record["kind"] == "step"]
    return statistics.fmean(losses[-max(1, len(losses) // 10) :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under two minutes; proves nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "cifar10")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "masked")
    parser.add_argument("--pretrain-epochs", type=float, default=3)
    parser.add_argument("--finetune-epochs", type=float, default=1)
    options = parser.parse_args()
    seeds = min(options.seeds, 2) if options.quick else options.seeds
    before, after = options.pretrain_epochs, options.finetune_epochs
    out = options.out / ("quick" if options.quick else "whole")
    if options.quick:
        before, after = 4.0, 2.0
    splits, images = cifar10(options.data, options.quick)
    entropy = color_entropy(images, 4)
    print(f"entropy of the colour classes {entropy:.3f} nats", flush=True)
    shared = {"set": {**SHAPE, "optim.lr": 1e-3, "normalize": "model"}}
    out.mkdir(parents=True, exist_ok=True)
    for seed in range(options.first_seed, options.first_seed + seeds):
        started = time.time()
        pre = one(
            "pretrain",
            splits,
            out,
            seed,
            model=MODEL,
            recipe="masked_patch",
            epochs=before,
            **shared,
        )
        tuned = one(
            "tuned", splits, out, seed, weights=pre.folder, recipe="scratch", epochs=after, **shared
        )
        fresh = one(
            "fresh", splits, out, seed, model=MODEL, recipe="scratch", epochs=after, **shared
        )
        record = {
            "id": f"seed-{seed}",
            "config": {"model": MODEL, "pretrain_epochs": before, "finetune_epochs": after},
            "seed": seed,
            "metrics": {
                "pretrain_loss": last_losses(pre),
                "color_entropy": entropy,
                "tuned_top1": accuracy(tuned, splits["test"]),
                "fresh_top1": accuracy(fresh, splits["test"]),
                "seconds": time.time() - started,
            },
        }
        (out / f"seed-{seed}.json").write_text(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)
        done = [json.loads(path.read_text()) for path in sorted(out.glob("seed-*.json"))]
        (out / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in done))
    report(done)


def report(records: list[dict]) -> None:
    """The paired difference and its interval, in words and as the last line's JSON."""
    tuned = [record["metrics"]["tuned_top1"] for record in records]
    fresh = [record["metrics"]["fresh_top1"] for record in records]
    differences = [a - b for a, b in zip(tuned, fresh, strict=True)]
    mean = statistics.fmean(differences)
    half = math.nan
    if len(differences) > 1:
        half = (
            T95[len(differences) - 2] * statistics.stdev(differences) / math.sqrt(len(differences))
        )
    print(
        f"test top-1 after masked patch prediction {100 * statistics.fmean(tuned):.2f} %, from "
        f"nothing {100 * statistics.fmean(fresh):.2f} %; difference {100 * mean:+.2f} points, "
        f"95 % t interval {100 * (mean - half):+.2f} to {100 * (mean + half):+.2f} "
        f"({len(records)} seeds)"
    )
    ratio = statistics.fmean(tuned) / statistics.fmean(fresh)
    interval = {"mean": mean, "low": mean - half, "high": mean + half}
    result = {
        "benchmark": "masked",
        "ratios": {"top1_pretrained_over_scratch": ratio},
        "difference": {k: v for k, v in interval.items() if math.isfinite(v)},
        "seeds": len(records),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
