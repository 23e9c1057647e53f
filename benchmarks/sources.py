"""What does an epoch cost from each kind of source, beside files in memory and beside `datasets`?

    python benchmarks/sources.py [--quick] [--data DATA] [--pictures N]

The same small pictures are laid out as arrays (decoded), files in memory, class folder, tar
shards, parquet and a `datasets` folder; an epoch of batches in training order, decoded and not
augmented, is taken from each by one process. The peer is `datasets` itself, which reads and
decodes (by Pillow) the same rows in the same order. Times are CPU time, rounds are interleaved,
figures are medians over the rounds.
Ratios: theirs/ours, above 1 where ours is faster. Also: what it takes to open a million samples.
The last line of stdout is one JSON object; everything else is for people.
"""

import argparse
import io
import json
import os
import resource
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import numpy as np
from PIL import Image
from tests.data.layouts import class_label, write_parquet

from vitrail.data import parquet
from vitrail.data.decode import decode
from vitrail.data.examples import ArraySource, Source
from vitrail.data.loader import order, train_batches
from vitrail.data.sources import open_source
from vitrail.kit.preprocess import Preprocessing

ROW_GROUP = 1000


def pictures_of(data: str, most: int) -> tuple[list[bytes], list[int], tuple[str, ...]]:
    """Files, labels and class names; arrays become JPEG."""
    source = open_source(data)
    places = np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).astype(np.int64))
    source = source.subset(places)
    files = []
    for i in range(len(source)):
        image = source.image(i)
        if isinstance(image, np.ndarray):
            packed = io.BytesIO()
            Image.fromarray(image).save(packed, "JPEG", quality=90)
            image = packed.getvalue()
        files.append(image)
    return files, source.labels.tolist(), source.classes


class Memory(Source):
    """The files themselves in memory: what decoding alone costs."""

    def __init__(self, files: list[bytes], labels: list[int], classes: tuple[str, ...]):
        self.name, self.files, self.classes = "memory", files, classes
        self.labels, self.keys = np.array(labels), [str(i) for i in range(len(files))]

    def image(self, i: int) -> bytes:
        """The i-th file."""
        return self.files[i]


def lay_out(root: Path, files: list[bytes], labels: list[int], classes: tuple[str, ...]) -> dict:
    """Name to a function that opens the source."""
    for k, name in enumerate(classes):
        (root / "folder" / name).mkdir(parents=True)
        for i in np.flatnonzero(np.array(labels) == k):
            (root / "folder" / name / f"{i:06d}.jpg").write_bytes(files[i])
    (root / "shards").mkdir()
    for first in range(0, len(files), ROW_GROUP):
        with tarfile.open(root / "shards" / f"{first:08d}.tar", "w") as shard:
            for i in range(first, min(first + ROW_GROUP, len(files))):
                for field, content in (("jpg", files[i]), ("cls", str(labels[i]).encode())):
                    info = tarfile.TarInfo(f"{i:08d}.{field}")
                    info.size = len(content)
                    shard.addfile(info, io.BytesIO(content))
    write_parquet(
        root / "parquet" / "train.parquet", files, labels, class_label(classes),
        row_group_size=ROW_GROUP,
    )  # fmt: skip
    datasets.Dataset.from_parquet(
        str(root / "parquet" / "train.parquet"), cache_dir=str(root / "cache")
    ).save_to_disk(str(root / "saved"))
    images = np.stack([decode(data) for data in files])
    return {
        "arrays": lambda: ArraySource(images, labels, classes),
        "files in memory": lambda: Memory(files, labels, classes),
        "class folder": lambda: open_source(root / "folder"),
        "shards": lambda: open_source(root / "shards"),
        "parquet": lambda: open_source(root / "parquet"),
        "hf": lambda: open_source(f"hf:{root}/saved"),
    }


def epoch_of(source: Source, sampling: str, most: int) -> float:
    """CPU seconds for `most` samples of an epoch, scaled to a whole one."""
    height, width = np.shape(
        source.image(0) if hasattr(source, "images") else decode(source.image(0))
    )[:2]
    source.ready()
    began = time.process_time()
    count = 0
    for batch in train_batches(
        source, Preprocessing(size=(height, width)), None, 128, sampling=sampling, stop_sample=most
    ):
        count += len(batch.keys)
    return (time.process_time() - began) * len(source) / count


def epoch_of_datasets(root: Path) -> float:
    """The same samples in the same order by `datasets`."""
    rows = datasets.load_from_disk(str(root / "saved"))
    began = time.process_time()
    for i in order(0, 0, len(rows)).tolist():
        row = rows[i]
        np.asarray(row["image"].convert("RGB")), row["label"]
    return time.process_time() - began


def opening(root: Path, samples: int) -> tuple[float, float]:
    """(seconds, MiB) to open that many samples in shards, in a process of its own."""
    (root / "many").mkdir()
    each = 50_000
    for first in range(0, samples, each):
        with (root / "many" / f"{first:08d}.tar").open("wb") as shard:
            for i in range(first, min(first + each, samples)):
                for field, content in (("jpg", b"?" * 64), ("cls", b"%d" % (i % 1000))):
                    info = tarfile.TarInfo(f"{i:08d}.{field}")
                    info.size = len(content)
                    shard.write(info.tobuf(tarfile.USTAR_FORMAT) + content.ljust(512, b"\0"))
            shard.write(b"\0" * 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    source = open_source(root / "many")
    seconds = time.process_time() - began
    assert len(source) == samples
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", default="demo:fashion")
    parser.add_argument("--pictures", type=int, default=None)
    given = parser.parse_args()
    most = given.pictures or (3_000 if given.quick else 10_000)
    rounds = 2 if given.quick else 5
    files, labels, classes = pictures_of(given.data, most)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        seconds, mebibytes = opening(root, 100_000 if given.quick else 1_000_000)
        sources = {name: opener() for name, opener in lay_out(root, files, labels, classes).items()}
        n = len(files)
        ways: dict[str, Callable[[], float]] = {
            name: lambda source=source: epoch_of(source, "uniform", n)
            for name, source in sources.items()
        }
        # As if a tenth of it fitted into the memory.
        parquet.HELD, parquet.RECENT = 0, int(sources["parquet"].groups[:, 3].sum()) // 10
        large = open_source(root / "parquet")
        ways["large parquet, uniform"] = lambda: epoch_of(large, "uniform", min(n, 1_000))
        ways["large parquet, nearby"] = lambda: epoch_of(large, "nearby", n)
        ways["datasets"] = lambda: epoch_of_datasets(root)
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                taken[name].append(way())
    middle = {name: statistics.median(values) for name, values in taken.items()}
    print(f"{n:,} pictures of {given.data}, {rounds} rounds, one process")
    print(f"{'':<24}{'us a picture':>14}{'x files in memory':>20}")
    for name, value in middle.items():
        print(f"{name:<24}{1e6 * value / n:>14.1f}{value / middle['files in memory']:>20.2f}")
    count = "100,000" if given.quick else "1,000,000"
    print(f"opening {count} samples in shards: {seconds:.1f} s, {mebibytes:.0f} MiB at its peak")
    theirs = middle["datasets"]
    ratios = {
        name: round(theirs / value, 3) for name, value in middle.items() if name != "datasets"
    }
    print(json.dumps({"benchmark": "sources", "ratios": ratios}))


if __name__ == "__main__":
    main()
