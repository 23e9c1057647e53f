"""Sources: what the user calls DATA, opened.

A class folder, a CSV or JSONL table, tar shards, parquet, a data set of the Hugging Face hub,
`demo:fashion`, or arrays; in splits called train, val and test. All give the same examples for
the same pictures. Classes are numbered by one rule (`labels`): unless the data or the user
say otherwise, sorted by the code points of their names ("10" before "2", "Z" before "a"), on
every machine and whatever the locale.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitrail.data import fashion
from vitrail.data.decode import SUFFIXES as PICTURES
from vitrail.data.examples import ArraySource, Example, FileSource, Keys, Source
from vitrail.data.folder import SPLITS, Listing, list_folder
from vitrail.data.hub import list_hub, parse
from vitrail.data.labels import Classes, Make, Part, Parts, read_classes, settle
from vitrail.data.parquet import list_parquet
from vitrail.data.pieces import is_pattern, of_file, of_folder, of_pattern
from vitrail.data.shards import list_shards, refuse_remote
from vitrail.data.table import SUFFIXES as TABLES
from vitrail.data.table import list_table
from vitrail.kit.errors import Error, did_you_mean, listing

__all__ = [
    "ArraySource",
    "Example",
    "Source",
    "hold_out",
    "is_stream",
    "open_source",
    "open_splits",
]

DEMOS = {fashion.NAME: fashion.load}
PIECES = {".tar": list_shards, ".parquet": list_parquet}
Spec = (
    str
    | Path
    | Source
    | Mapping[str, Source]
    | tuple[np.ndarray, np.ndarray | Sequence[int] | Sequence[str]]
)


def open_source(
    spec: Spec,
    split: str = "train",
    *,
    val_fraction: float = 0.0,
    seed: int = 0,
    classes: Classes | None = None,
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
    classes: Classes | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    least_classes: int = 2,
) -> dict[str, Source]:
    """All splits of the data, in the order train, val, test; those that there are.

    Args:
        spec: a class folder, a CSV or JSONL file, tar shards or parquet files (a folder of them,
            a pattern such as ``shards/{000..012}.tar``, or one), ``hf:NAME``, ``demo:fashion``, a
            source, sources by split, or (images, labels) with images uint8 [n h w 3] or [n h w].
            Data without splits are all train.
        val_fraction: the share of every class of train that becomes val, if the data have no val
            of their own; 0: none is cut off.
        seed: of that cut.
        classes: class names to count labels in, such as a model's, or a file of them (see
            `labels.read_classes`); None: the data's own.
        image_column, label_column: other names for a table's ``path`` and ``label``, for the
            columns of parquet, or for the fields of shards.
        least_classes: how many it takes: 2 to learn from, 1 to be measured on.

    Raises:
        Error: there is no such data, it is not usable (one class only, a class with one image to
            cut in two, a test class that train lacks, ...), or of a kind that is not read.
    """
    splits = _found(
        spec, image_column, label_column, None if classes is None else read_classes(classes)
    )
    if val_fraction:
        splits = hold_out(splits, val_fraction, seed)
    for source in splits.values():
        if len(source.classes) < least_classes:
            raise Error(
                f"{source.name}: one class only ({listing(list(source.classes))}), so there is "
                f"nothing to tell apart{_deeper(source)}"
            )
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


def is_stream(spec: str) -> bool:
    """Whether a spec asks for pictures in turn (``hf:NAME?stream=1``).

    Raises:
        Error: an option that is none.
    """
    return spec.startswith("hf:") and parse(spec).stream


def hold_out(splits: dict[str, Source], fraction: float, seed: int) -> dict[str, Source]:
    """The splits with a share of every class of train as val, where the data have no val."""
    if "val" in splits or "train" not in splits:
        return splits
    train, val = splits["train"].split(fraction, seed)
    held = {**splits, "train": train, "val": val}
    return {name: held[name] for name in ("train", "val", "test") if name in held}


def _found(
    spec: Spec,
    image: str | None,
    label: str | None,
    classes: Sequence[str] | None,
) -> dict[str, Source]:
    if isinstance(spec, Source):
        return {"train": spec if classes is None else spec.with_classes(classes)}
    if isinstance(spec, Mapping):
        return {
            split: source if classes is None else source.with_classes(classes)
            for split, source in spec.items()
        }
    if isinstance(spec, tuple):
        return {"train": ArraySource(*spec, classes=classes)}
    name = str(spec)
    if name.startswith("demo:"):
        if name not in DEMOS:
            raise Error(f"no such data: {name!r} (there is {listing(list(DEMOS))})")
        demos = DEMOS[name]()
        if classes is None:
            return dict(demos)
        return {split: source.with_classes(classes) for split, source in demos.items()}
    return settle(_parts(spec, name, image, label), classes)


def _parts(spec: str | Path, name: str, image: str | None, label: str | None) -> Parts:
    """What the reader of this kind of data finds."""
    if name.startswith("hf:"):
        return list_hub(parse(name), image, label)
    refuse_remote(name)
    path = Path(spec).expanduser()
    if path.is_dir():
        for suffix, read in PIECES.items():
            pieces = of_folder(path, suffix)
            if pieces is not None:
                return read(name, pieces, image, label)
        return _listed(name, path, list_folder(path))
    suffix = path.suffix.lower()
    if not path.exists():
        if is_pattern(name):
            return _of_pattern(name, image, label)
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, beside) or did_you_mean(name, DEMOS)
        raise Error(f"{name}: no such folder or file{near}")
    if suffix in TABLES:
        return _listed(name, path.parent, list_table(path, image, label))
    if suffix in PIECES:
        return PIECES[suffix](name, of_file(path), image, label)
    if suffix in PICTURES:
        raise Error(f"{name}: one picture, where DATA is a folder with a folder for each class")
    raise Error(
        f"{name}: a file of an unknown kind; DATA is a class folder, or a file that ends in "
        f"{listing([*TABLES, *PIECES], 9)}"
    )


def _of_pattern(name: str, image: str | None, label: str | None) -> Parts:
    pieces = of_pattern(name)
    kinds = {file.suffix.lower() for files in pieces.splits.values() for file in files}
    if len(kinds) > 1 or not kinds <= set(PIECES):
        raise Error(
            f"{name}: stands for {listing(sorted(kinds))} files, where {' or '.join(PIECES)} files "
            "are read so"
        )
    return PIECES[kinds.pop()](name, pieces, image, label)


def _listed(name: str, root: Path, listings: dict[str, Listing]) -> Parts:
    """Sources of files from listings."""
    found = Parts(name, several=any(part.several for part in listings.values()))
    for split, part in listings.items():
        found.splits[split] = Part(part.names, _files(name, root, part))
    return found


def _files(name: str, root: Path, part: Listing) -> Make:
    paths, ignored = Keys(part.paths), list(Keys(part.ignored))
    part.paths = []

    def make(labels: np.ndarray, classes: Sequence[str]) -> Source:
        return FileSource(name, root, paths, labels, list(Keys(classes)), ignored)

    return make


def _deeper(source: Source) -> str:
    """A hint for an archive that was unpacked into a folder of its own."""
    if not isinstance(source, FileSource):
        return ""
    inner = Path(source.root) / source.classes[0]
    if inner.is_dir() and any(child.is_dir() for child in inner.iterdir()):
        return f"; if the class folders lie deeper, give {inner}"
    return "; put images of each class into a folder of its own"
