"""Cut the embedded subset out of Fashion-MNIST's four official files.

    python tools/cut_fashion.py /usr/share/datasets/fashion-mnist src/vitrail/data/fashion

From the training file the first 1,000 pictures of each class in file order, from the test file the
first 200; then grouped by class, classes sorted by name, file order kept inside a class.
"""

import gzip
import sys
from pathlib import Path

import numpy as np

# The official names by official label; a slash cannot be in a folder's name.
NAMES = ["T-shirt or top", "Trouser", "Pullover", "Dress", "Coat"]
NAMES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
CUTS = {"train": ("train", 1000), "test": ("t10k", 200)}


def cut(source: Path, target: Path) -> None:
    """Read the four ``.gz`` files in ``source``, write ``fashion.npz`` into ``target``."""
    classes = sorted(NAMES)
    arrays = {"classes": np.array(classes)}
    for split, (prefix, count) in CUTS.items():
        # The IDX format: 16 bytes of header before pictures, 8 before labels.
        packed = gzip.decompress((source / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        images = np.frombuffer(packed, np.uint8, offset=16).reshape(-1, 28, 28)
        packed = gzip.decompress((source / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
        labels = np.frombuffer(packed, np.uint8, offset=8)
        places = [np.flatnonzero(labels == NAMES.index(name))[:count] for name in classes]
        positions = np.concatenate(places)
        arrays[f"{split}_images"] = images[positions]
        arrays[f"{split}_labels"] = np.repeat(np.arange(len(classes), dtype=np.uint8), count)
        arrays[f"{split}_positions"] = positions.astype(np.int32)
    np.savez_compressed(target / "fashion.npz", **arrays)


if __name__ == "__main__":
    cut(Path(sys.argv[1]), Path(sys.argv[2]))
