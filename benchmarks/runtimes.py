"""Is a trained model of every family the same in PyTorch, ONNX Runtime and OpenVINO?

    python benchmarks/runtimes.py CIFAR10 [--quick] [--steps N] [--only WORD ...] [--work DIR]

CIFAR10 is a folder with train.parquet and test.parquet. `vitrail train` makes a small model of each
family from 10,000 of its images, `vitrail export` a bundle for each runtime, and 1,000 test images
go through all of them in batches of 1, 2 and 7. Printed: the model's accuracy on those images, the
largest difference of a logit from the model's, of the folded model as a share of the largest
logit, and the smallest share of equal answers. A ratio is what is allowed (1e-4; 1e-5 for the
folded model) over what was found. `--work DIR` keeps the models and the bundles, and goes on.
The last line of stdout is one JSON object; everything else is for people.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: a spinning pool starves others
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.export

from tests.export.families import FAMILIES, RUNTIMES, Compared, bundles, compared, part_of, trained

ALLOWED, FOLDED = 1e-4, 1e-5
QUICK = ("ViT, class token", "PVT v2")


def told(family: str, found: Compared, seconds: float) -> dict[str, float]:
    """Print a row; the ratios by name."""
    worst = {
        to: max(gap for (which, _), gap in found.gaps.items() if which == to) for to in RUNTIMES
    }
    row = [f"{worst[to]:.1e}" for to in RUNTIMES]
    print(
        f"| {family} | {found.parameters:,} | {100 * found.top1:.1f} | {found.largest:.1f} | "
        f"{' | '.join(row)} | {found.folded:.1e} | {100 * min(found.agreement.values()):.1f} |",
        flush=True,
    )
    print(f"{family}: {seconds:.0f} s", file=sys.stderr)
    ratios = {f"{family}/{to}": ALLOWED / max(gap, 1e-12) for to, gap in worst.items()}
    return ratios | {f"{family}/folded": FOLDED / max(found.folded, 1e-12)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("cifar10", type=Path, help="a folder with train.parquet and test.parquet")
    parser.add_argument("--quick", action="store_true", help="two families, 40 steps")
    parser.add_argument("--steps", type=int, help="of training; 40 with --quick")
    parser.add_argument("--only", nargs="+", help="families with one of these words in the name")
    parser.add_argument("--work", type=Path, help="where models and bundles are kept")
    chosen = parser.parse_args()
    steps = chosen.steps or (40 if chosen.quick else None)
    words = chosen.only or (QUICK if chosen.quick else [""])
    ratios: dict[str, float] = {}
    columns = "family, parameters, top-1 %, largest logit, torch, ONNX Runtime, OpenVINO, folded"
    names = [*columns.split(", "), "same answer %"]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        data = part_of(chosen.cifar10, work / "part")
        for family in FAMILIES:
            if not any(word in family for word in words):
                continue
            started = time.perf_counter()
            place = work / family.lower().replace(",", "").replace(" ", "-")
            model = trained(family, data, place / "model", steps)
            found = compared(model, bundles(model, data, place), data)
            ratios |= told(family, found, time.perf_counter() - started)
    print(
        json.dumps({"benchmark": "runtimes", "ratios": {n: round(r, 2) for n, r in ratios.items()}})
    )


if __name__ == "__main__":
    main()
