"""Sources: what the user calls DATA, opened.

A class folder, a CSV or JSONL table, `demo:fashion`, or arrays; in splits called train, val and
test. Classes are sorted by the code points of their names ("10" before "2", "Z" before "a"),
on every machine and whatever the locale; they are train's where there is a train split.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitrail.data import fashion
from vitrail.data.decode import SUFFIXES as PICTURES
from vitrail.data.examples import ArraySource, Example, FileSource, Keys, Source
from vitrail.data.folder import SPLITS, Listing, list_folder
from vitrail.data.table import SUFFIXES as TABLES
from vitrail.data.table import list_table
from vitrail.kit.errors import Error, did_you_mean, listing

__all__ = ["ArraySource", "Example", "Source", "open_source", "open_splits"]

DEMOS = {fashion.NAME: fashion.load}
Spec = str | Path | Source | tuple[np.ndarray, np.ndarray | Sequence[int] | Sequence[str]]


def open_source(
    spec: Spec,
    split: str = "train",
    *,
    val_fraction: float = 0.0,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """One split of the data; see `open_splits` for the arguments.

    Args:
        split: train, val (or validation) or test.

    Raises:
        Error: there is no such data, or no such split in it.
    """
    wanted = SPLITS.get(split.lower())
    if wanted is None:
        raise Error(f"no split is called {split!r}: it is train, val or test")
    splits = open_splits(
        spec,
        val_fraction=val_fraction,
        seed=seed,
        classes=classes,
        image_column=image_column,
        label_column=label_column,
    )
    if wanted not in splits:
        raise missing_split(wanted, splits)
    return splits[wanted]


def missing_split(wanted: str, splits: dict[str, Source]) -> Error:
    """The error that says which splits there are instead."""
    name = next(iter(splits.values())).name
    cure = f"put it in {wanted}/<class>/ beside train/<class>/"
    if wanted == "val":
        cure += ", or cut it off train with a val fraction"
    return Error(f"{name}: there is no {wanted} split, only {' and '.join(splits)}: {cure}")


def open_splits(
    spec: Spec,
    *,
    val_fraction: float = 0.0,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    least_classes: int = 2,
) -> dict[str, Source]:
    """All splits of the data, in the order train, val, test; those that there are.

    Args:
        spec: a class folder, a CSV or JSONL file, ``demo:fashion``, a source, or (images, labels)
            with images uint8 [n h w 3] or [n h w]. Data without splits are all train.
        val_fraction: the share of every class of train that becomes val, if the data have no val
            of their own; 0: none is cut off.
        seed: of that cut.
        classes: class names to count labels in, such as a model's; None: the data's own.
        image_column, label_column: other names for a table's ``path`` and ``label``.
        least_classes: how many it takes: 2 to learn from, 1 to be measured on.

    Raises:
        Error: there is no such data, it is not usable (one class only, a class with one image to
            cut in two, a test class that train lacks, ...), or of a kind that is not read.
    """
    splits = _found(spec, image_column, label_column)
    if classes is not None:
        splits = {split: source.with_classes(classes) for split, source in splits.items()}
    if val_fraction and "val" not in splits and "train" in splits:
        splits["train"], splits["val"] = splits["train"].split(val_fraction, seed)
    for source in splits.values():
        if len(source.classes) < least_classes:
            raise Error(
                f"{source.name}: one class only ({listing(list(source.classes))}), so there is "
                f"nothing to tell apart{_deeper(source)}"
            )
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


def _found(spec: Spec, image_column: str | None, label_column: str | None) -> dict[str, Source]:
    if isinstance(spec, Source):
        return {"train": spec}
    if isinstance(spec, tuple):
        return {"train": ArraySource(*spec)}
    name = str(spec)
    if name.startswith("demo:"):
        if name not in DEMOS:
            raise Error(f"no such data: {name!r} (there is {listing(list(DEMOS))})")
        return dict(DEMOS[name]())
    if name.startswith("hf:"):
        raise Error(f"{name}: {_not_yet('data sets of the Hugging Face hub')}")
    path = Path(spec).expanduser()
    if path.is_dir():
        return _assembled(name, path, list_folder(path))
    suffix = path.suffix.lower()
    if not path.exists():
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, beside) or did_you_mean(name, DEMOS)
        raise Error(f"{name}: no such folder or file{near}")
    if suffix in TABLES:
        return _assembled(name, path.parent, list_table(path, image_column, label_column))
    if suffix in (".parquet", ".tar", ".tgz", ".gz", ".zip"):
        raise Error(f"{name}: {_not_yet(f'{suffix} files')}")
    if suffix in PICTURES:
        raise Error(f"{name}: one picture, where DATA is a folder with a folder for each class")
    raise Error(
        f"{name}: a file of an unknown kind; DATA is a class folder, or a file that ends in "
        f"{' or '.join(TABLES)}"
    )


def _not_yet(what: str) -> str:
    return f"{what} are not supported yet: give a class folder, or a CSV or JSONL of path,label"


def _assembled(name: str, root: Path, listings: dict[str, Listing]) -> dict[str, Source]:
    """Sources of files from listings, all with the same classes."""
    leading = listings.get("train")
    names = leading.names if leading else [n for part in listings.values() for n in part.names]
    classes = sorted(set(names))
    index = {label: k for k, label in enumerate(classes)}
    sources: dict[str, Source] = {}
    for split, part in listings.items():
        strangers = sorted(set(part.names) - set(index))
        if strangers:
            raise Error(
                f"{name}: class {listing(strangers)} in {split} is not in train: a model cannot "
                "learn it; rename it, or remove it"
            )
        labels = [index[label] for label in part.names]
        shown, ignored = list(Keys(classes)), list(Keys(part.ignored))
        sources[split] = FileSource(name, root, part.paths, labels, shown, ignored)
    return sources


def _deeper(source: Source) -> str:
    """A hint for an archive that was unpacked into a folder of its own."""
    if not isinstance(source, FileSource):
        return ""
    inner = Path(source.root) / source.classes[0]
    if inner.is_dir() and any(child.is_dir() for child in inner.iterdir()):
        return f"; if the class folders lie deeper, give {inner}"
    return "; put images of each class into a folder of its own"
