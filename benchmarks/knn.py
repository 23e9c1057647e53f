"""Nearest neighbours against scikit-learn's brute force: 10,000 queries among 50,000, d=384.

Ours by cosine, k=20; scikit-learn's `KNeighborsClassifier(algorithm="brute")` in its two ways:
``cosine`` on the same features, and ``euclidean`` on features that were normalised beforehand,
which has the same neighbours and is its fastest. Each runs in a process of its own, so that the
memory is its own: resident at its peak, less what was resident before the classifier was made
(the libraries, and features of 92 MB).

    python benchmarks/knn.py [--quick]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

TRAIN, TEST, WIDTH, CLASSES, K = 50_000, 10_000, 384, 100, 20
WAYS = ("ours", "scikit-learn euclidean", "scikit-learn cosine")


def features(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, WIDTH)).astype(np.float32)
    labels = numbers.integers(CLASSES, size=n)
    noise = numbers.standard_normal((n, WIDTH), dtype=np.float32)
    return centres[labels] + 3 * noise, labels


def peak_and_now() -> tuple[int, int]:
    """Resident bytes of this process: the most so far, and now."""
    told = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    return tuple(1024 * int(fields[name].split()[0]) for name in ("VmHWM", "VmRSS"))  # type: ignore


def work(way: str, queries: int) -> None:
    """One way, in this process; the last line of stdout is what was measured."""
    x, y = features(TRAIN, 0)
    test, truth = features(queries, 1)
    weights = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
    if way == "ours":
        from vitrail.evaluation.knn import KNN

        classifier = KNN(K)
    else:
        from sklearn.neighbors import KNeighborsClassifier

        metric = way.split()[1]
        if metric == "euclidean":
            x, test = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, test))
            weights = lambda distance: np.exp((1 - distance**2 / 2) / 0.07)  # noqa: E731
        classifier = KNeighborsClassifier(K, algorithm="brute", metric=metric, weights=weights)
    _, before = peak_and_now()
    start = time.perf_counter()
    predicted = classifier.fit(x, y).predict(test)
    seconds = time.perf_counter() - start
    peak, _ = peak_and_now()
    print(
        json.dumps(
            {
                "seconds": seconds,
                "own": max(0, peak - before),
                "peak": peak,
                "accuracy": float((predicted == truth).mean()),
                "classes": predicted[:2000].tolist(),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round, without cosine")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--queries", type=int, default=TEST)
    chosen = parser.parse_args()
    if chosen.way:
        work(chosen.way, chosen.queries)
        return
    ways = WAYS[:2] if chosen.quick else WAYS
    found: dict[str, list[dict]] = {way: [] for way in ways}
    for _ in range(1 if chosen.quick else 3):
        for way in ways:
            words = [sys.executable, __file__, "--way", way, "--queries", str(chosen.queries)]
            told = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
            found[way].append(json.loads(told.splitlines()[-1]))
    print(f"{chosen.queries:,} queries among {TRAIN:,}, d={WIDTH}, k={K}")
    median = {way: statistics.median(one["seconds"] for one in runs) for way, runs in found.items()}
    for way, runs in found.items():
        own, peak = max(one["own"] for one in runs), max(one["peak"] for one in runs)
        same = np.mean(np.array(runs[0]["classes"]) == found["ours"][0]["classes"])
        print(
            f"  {way:24} {median[way]:7.2f} s   {own / 1e6:6.0f} MB of its own, "
            f"{peak / 1e6:6.0f} MB in all   same answers as ours: {100 * same:.2f} %"
        )
    ratios = {way: round(median[way] / median["ours"], 3) for way in ways if way != "ours"}
    ratios["1 GB"] = round(1e9 / max(one["peak"] for one in found["ours"]), 3)
    print(json.dumps({"benchmark": "knn", "ratios": ratios}))


if __name__ == "__main__":
    main()
