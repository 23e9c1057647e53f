"""What does a bundle cost that says too where the model looked (`vitrail export --attention`)?

    python benchmarks/attention.py [--quick] [--model NAME] [--threads 1]

The same plain ViT exported twice, without the map of attention and with it, for ONNX Runtime and
OpenVINO in float32; once with a class token, whose last block has these weights in its hand, and
once with its patches averaged, whose last block must compute them beside fused attention. Rounds
are interleaved; a figure is the median over the rounds of without/with, so below 1 where it costs
time. Sizes are those of the graph's files. Weights are random: nothing here depends on them.
The last line of stdout is one JSON object; everything else is for people.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: a spinning pool starves others

import numpy as np

PAUSE = 0.1  # seconds: ONNX Runtime's threads spin for a while after each of its calls


def main() -> None:
    """See the module's head."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--quick", action="store_true")
    given.add_argument("--model", default="vit_small_patch16_224")
    given.add_argument("--threads", type=int, default=1)
    options = given.parse_args()
    rounds = 7 if options.quick else 21
    ratios = {}
    with tempfile.TemporaryDirectory() as work:
        for to in ("onnx", "openvino"):
            for pool in ("token", "mean"):
                name = f"{to} {pool}"
                found = compared(
                    Path(work) / name, options.model, to, pool, options.threads, rounds
                )
                ratios |= {f"{name} {what}": value for what, value in found.items()}
                print(name, *(f"{what}: {value:.4f}" for what, value in found.items()), sep="  ")
    rounded = {name: round(value, 4) for name, value in ratios.items()}
    print(json.dumps({"benchmark": "attention", "ratios": rounded}))


def compared(
    work: Path, model: str, to: str, pool: str, threads: int, rounds: int
) -> dict[str, float]:
    """Without/with: of the time at batch 1 and 8, and of the files' bytes."""
    import torch

    import vitrail
    from vitrail.export.bundle import GRAPHS
    from vitrail.export.make import GraphWriter
    from vitrail.export.runtime import OnnxRuntime, OpenVinoRuntime

    runtimes, sizes = [], []
    for attention in (False, True):
        torch.manual_seed(0)
        built = vitrail.create_model(model, pool=pool)
        folder = work / str(attention)
        folder.mkdir(parents=True)
        GraphWriter(built, to, attention=attention).write(folder, "fp32")
        sizes.append(sum(path.stat().st_size for path in folder.iterdir()))
        kind = OnnxRuntime if to == "onnx" else OpenVinoRuntime
        runtimes.append(kind(folder / GRAPHS[to], threads))
    blind, seeing = runtimes
    found = {"bytes": sizes[0] / sizes[1]}
    height, width = built.preprocessing.size
    numbers = np.random.default_rng(0)
    for batch in (1, 8):
        images = numbers.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        blind.logits(images), seeing.with_attention(images)
        times = [
            timed(blind.logits, images) / timed(seeing.with_attention, images)
            for _ in range(rounds)
        ]
        found[f"batch {batch}"] = statistics.median(times)
    return found


def timed(run, images: np.ndarray) -> float:
    """Seconds of one call, the best of two."""
    best = float("inf")
    for _ in range(2):
        time.sleep(PAUSE)
        start = time.perf_counter()
        run(images)
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    main()
