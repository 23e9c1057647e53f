"""The few-shot ridge against scikit-learn's: 13 penalties on 1,000 classes x 10 images.

Both solve the same problem on the same float32 features: standardised, with a constant column of
100 and targets of -1 and +1. Ours decomposes once; scikit-learn's `Ridge` (its default solver for
dense data, Cholesky) is fitted once for each penalty. The rounds are interleaved.

    python benchmarks/fewshot.py [--quick]
"""

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from sklearn.linear_model import Ridge as SklearnRidge

from vitrail.evaluation.fewshot import Ridge

PENALTIES = tuple(2.0**i for i in range(-10, 21, 2))[:13]


def features(classes: int, shots: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters with correlated features, as a network's are."""
    numbers = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), shots)
    mixing = numbers.normal(size=(width, width)) * np.geomspace(1, 0.01, width)[:, None]
    raw = numbers.normal(size=(classes, width))[labels] + numbers.normal(size=(len(labels), width))
    return (raw @ mixing).astype(np.float32), labels


def extended(x: np.ndarray) -> np.ndarray:
    standard = (x - x.mean(0)) / (x.std(0) + 1e-5)
    return np.concatenate([standard, np.full((len(x), 1), 100.0)], 1).astype(np.float32)


def theirs(wide: np.ndarray, targets: np.ndarray, penalties: tuple[float, ...]) -> np.ndarray:
    fits = [
        SklearnRidge(alpha=l2, fit_intercept=False, copy_X=False).fit(wide, targets)
        for l2 in penalties
    ]
    return np.stack([fit.coef_.T for fit in fits])


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round instead of three")
    chosen = parser.parse_args()
    rounds = 1 if chosen.quick else 3
    warnings.simplefilter("ignore")  # of its own float32 at the smallest penalties
    classes, shots, width = 1000, 10, 768
    x, y = features(classes, shots, width)
    wide, targets = extended(x), np.where(y[:, None] == np.arange(classes), 1, -1).astype("float32")
    runs: dict[str, Callable[[], object]] = {
        "ours, 1 penalty": lambda: Ridge(2.0**10).fit(x, y),
        "ours, 13 penalties": lambda: Ridge(PENALTIES).fit(x, y),
        "scikit-learn, 13 penalties": lambda: theirs(wide, targets, PENALTIES),
        "scikit-learn, 1 penalty": lambda: theirs(wide, targets, (2.0**10,)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    Ridge(2.0**10).fit(x[:2000], y[:2000])  # once to warm up
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run))
    where = f"{torch.get_num_threads()} threads, {rounds} rounds"
    print(f"{classes} classes x {shots}, d={width}, {where}")
    median = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in median.items():
        print(f"  {name:28} {times:8.2f} s")
    exact = theirs(wide.astype(float), targets.astype(float), (2.0**10,))[0]
    apart = np.abs(np.asarray(Ridge(2.0**10).fit(x, y).coef_) - exact)[:-1].max()
    print(f"  largest difference of a coefficient from scikit-learn's in float64: {apart:.1e}")
    ratios = {
        "13 fits of scikit-learn": median["scikit-learn, 13 penalties"]
        / median["ours, 13 penalties"],
        "1 penalty of 13": 2 * median["ours, 1 penalty"] / median["ours, 13 penalties"],
        "10 seconds": 10 / median["ours, 13 penalties"],
    }
    print(
        f"  13 penalties cost {median['ours, 13 penalties'] / median['ours, 1 penalty']:.2f} x one"
    )
    told = {name: round(ratio, 3) for name, ratio in ratios.items()}
    print(json.dumps({"benchmark": "fewshot", "ratios": told}))


if __name__ == "__main__":
    main()
