"""How close is the planner's memory to what a training step really takes?

    python benchmarks/plan.py [--quick] [--device cuda]

Each case is a process of its own that trains for a few steps (forward, backward, clip, update);
its memory is by how much the process grew at the most, or on a GPU what torch allocated at the
most. On the CPU there are two columns. glibc's malloc keeps and fragments the space of tensors
that come and go; with its own knob for that (``MALLOC_MMAP_THRESHOLD_``) set, every tensor above
1 MiB goes back to the system at once, and the process is as large as its tensors.
The figure is the smaller one of formula/measured and measured/formula: 1 where they are equal.
The last line of stdout is one JSON object; everything else is for people.
"""

import argparse
import json
import os
import platform
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from vitrail.models.cost.memory import Step
from vitrail.training.planner import config_for, predicted
from vitrail.training.trial import in_a_process, trial

CASES = [
    ("vit_tiny_patch16_224", 8),
    ("vit_small_patch16_224", 8),
    ("vit_base_patch16_224", 2),
    ("cvt_13_224", 4),
    ("vit_base_r50_s16_224", 2),
    ("pvt_tiny", 4),
    ("resnetv2_50x1_bit", 2),
]
QUICK = CASES[:1]
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one small model, under 2 minutes")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--models", nargs="+", metavar="NAME")
    chosen = parser.parse_args()
    on_gpu = chosen.device == "cuda"
    cases = QUICK if chosen.quick else CASES
    if chosen.models:
        cases = [case for case in CASES if case[0] in chosen.models]
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, MiB")
    columns = ("formula", "allocated") if on_gpu else ("formula", "process", "tensors", "process")
    print(f"{'model':<24}{'batch':>6} {'':<20}" + "".join(f"{c:>11}" for c in columns))
    ratios: dict[str, float] = {}
    for name, batch in cases:
        for checkpointing in (False, True):
            for optimizer in ("adamw", "sgd"):
                step = Step(
                    batch_size=8 * batch if on_gpu else batch,
                    checkpointing=checkpointing,
                    optimizer=optimizer,
                    ema=False,
                )
                tensors, process = predicted(config_for(name, None), step, on_gpu)
                how = f"{optimizer}{', checkpointing' if checkpointing else ''}"
                if on_gpu:
                    found = [(tensors, trial(name, step, device="cuda").bytes)]
                else:
                    found = [
                        (tensors, in_a_process(name, step, steps=2, environment=AT_ONCE).bytes),
                        (process, in_a_process(name, step, steps=2).bytes),
                    ]
                cells = []
                for label, (formula, measured) in zip(("tensors", "process"), found, strict=False):
                    ratio = min(formula / measured, measured / formula)
                    ratios[f"{name}, {how}, {label}"] = round(ratio, 3)
                    cells += [formula, measured]
                print(
                    f"{name:<24}{step.batch_size:>6} {how:<20}"
                    + "".join(f"{cell / 2**20:>11.0f}" for cell in cells),
                    flush=True,
                )
    worst = min(ratios.values())
    print(f"the worst of {len(ratios)}: {worst:.3f}")
    print(json.dumps({"benchmark": "plan", "ratios": ratios}))


if __name__ == "__main__":
    sys.exit(main())
