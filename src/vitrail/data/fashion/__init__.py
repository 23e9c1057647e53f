"""`demo:fashion`: 10,000 training and 2,000 test pictures of Fashion-MNIST, inside the package.

SOURCE.md beside this file says where they come from and how they were cut; LICENSE is theirs.
The same pictures as a class folder (`write_folder`) have the same keys, classes and order, so a
run on the folder and a run on `demo:fashion` see the same data.
"""

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from vitrail.data.examples import ArraySource
from vitrail.kit.errors import Error

NAME = "demo:fashion"
_FILE = Path(__file__).parent / "fashion.npz"


@functools.cache
def load() -> dict[str, ArraySource]:
    """The splits train (10,000 pictures, 1,000 a class) and test (2,000, 200 a class), 28x28."""
    with np.load(_FILE, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    classes = [str(name) for name in arrays["classes"]]
    sources = {}
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64)
        images.flags.writeable = False
        places = arrays[f"{split}_positions"]
        keys = (
            f"{split}/{classes[label]}/{place:05d}.png"
            for label, place in zip(labels, places, strict=True)
        )
        sources[split] = ArraySource(images, labels, classes, keys, NAME)
    return sources


def write_folder(directory: Path | str) -> dict[str, int]:
    """Write ``train/<class>/*.png`` and ``test/<class>/*.png``, 28x28 grey.

    Args:
        directory: a folder that is empty, or not there yet.

    Returns:
        the number of pictures in each split.

    Raises:
        Error: the directory holds something already, or cannot be written.
    """
    root = Path(directory)
    try:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise Error(f"{root} is not an empty folder: name another one")
        for source in load().values():
            for name in source.classes:
                (root / source.keys[0].split("/")[0] / name).mkdir(parents=True, exist_ok=True)
            for image, key in zip(source.images, source.keys, strict=True):
                Image.fromarray(image).save(root / key, "PNG")
    except OSError as error:
        raise Error(
            f"{root} cannot be written ({(error.strerror or str(error)).lower()})"
        ) from None
    return {split: len(source) for split, source in load().items()}
