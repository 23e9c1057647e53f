"""The classifier as a Ray Data pipeline: the same answers, on as many machines as there are.

`predict_dataset` maps a `ray.data.Dataset` of pictures, or files and folders, to one with the
columns of `vitrail predict --format parquet`. Each actor opens the model once and keeps it, and
decodes ahead of it as `Classifier.stream` does; nothing is computed before the result is asked for.
Ray is the extra ``cluster``, and imported by nothing else.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.data.keys import Keys
from vitrail.export.bundle import is_bundle, read_manifest
from vitrail.kit.errors import Error
from vitrail.kit.extras import needed
from vitrail.serving.classifier import Classifier, Picture
from vitrail.serving.forms import record_of, schema
from vitrail.serving.images import find_images
from vitrail.serving.stream import Prediction

if TYPE_CHECKING:
    import pyarrow
    import ray.data

FILES = "_file"  # names as the file system has them: bytes, for they need not be UTF-8
COLUMNS = ("bytes", "image", "path")  # where pictures are looked for, the first that is there
BLOCK = 512  # file names in a block: what one actor is given at a time
CALL = 8  # batches in a call of an actor, so that it can decode ahead


def predict_dataset(
    pictures: "ray.data.Dataset | str | Path | Sequence[str | Path]",
    bundle: str | Path,
    *,
    top_k: int = 5,
    column: str | None = None,
    keep: Sequence[str] = (),
    batch_size: int = 32,
    actors: int | None = None,
    cpus: int = 1,
    gpus: float = 0,
    ordered: bool = True,
) -> "ray.data.Dataset":
    """Predictions for the pictures of a data set, or of files, folders and globs.

    Args:
        pictures: a data set, or names as `vitrail predict` takes them: each machine must see the
            files, and the bundle, under the same names.
        bundle: a bundle or a model folder.
        top_k: how many labels a picture.
        column: where the data set's pictures are: encoded files as bytes, names of files, uint8
            arrays [h w 3], or ``{"bytes", "path"}`` as Hugging Face has it. By default the first
            of `COLUMNS` that is there.
        keep: columns of the data set to carry over, an identifier for instance.
        batch_size: pictures at a time.
        actors: how many, each with the model in its memory; None lets Ray find out.
        cpus: cores for each: for the arithmetic, and as many threads that decode.
        gpus: graphics cards for each; a share of one will do.
        ordered: keep the order of the pictures, which may cost some waiting.

    Returns:
        A data set, not computed yet: ``path`` (null where nobody knows it), ``predictions``
        [{label, probability}] and ``error`` (null, or why the picture could not be read).

    Raises:
        Error: Ray is not installed, no such bundle, pictures or column.
    """
    needed("cluster", "ray", "pyarrow")
    import ray.data

    if top_k < 1:
        raise Error(f"top_k must be at least 1, not {top_k}")
    if is_bundle(bundle):
        read_manifest(bundle)  # what is wrong with it is better said here than by an actor
    elif not str(bundle).startswith("hf-hub:") and not Path(bundle).expanduser().exists():
        raise Error(f"no model folder or bundle {bundle}")
    if not isinstance(pictures, ray.data.Dataset):
        if column or keep:
            raise Error("column and keep are a data set's, and these are names of files")
        pictures, column = _listed(pictures), FILES
    found = pictures.map_batches(
        _Predictor,
        fn_constructor_kwargs={
            "source": str(bundle),
            "top_k": top_k,
            "column": _column(pictures, column, keep),
            "keep": tuple(keep),
            "options": {
                "batch_size": batch_size,
                "threads": cpus,
                "device": "cuda" if gpus else "cpu",
            },
        },
        batch_size=CALL * batch_size,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=cpus,
        num_gpus=gpus,
        udf_modifying_row_count=False,
    )
    found.context.execution_options.preserve_order = ordered
    return found


class _Predictor:
    """What an actor does: it opens the classifier once and answers for batches of rows."""

    def __init__(
        self,
        source: str,
        top_k: int,
        column: str,
        keep: tuple[str, ...],
        options: dict[str, Any],
    ):
        self.classify = Classifier(source, **options)
        self.top_k, self.column, self.keep, self.workers = top_k, column, keep, options["threads"]

    def __call__(self, rows: Mapping[str, np.ndarray]) -> "pyarrow.Table":
        import pyarrow

        values = rows[self.column]
        pictures = map(os.fsdecode, values) if self.column == FILES else _pictures(values)
        stream = self.classify.stream(pictures, self.top_k, self.workers)
        records = [record_of(row) for row in _named(stream, rows, self.column)]
        table = pyarrow.Table.from_pylist(records, schema=schema())
        for name in self.keep:
            table = table.append_column(name, pyarrow.array(rows[name].tolist()))
        return table


def _listed(names: str | Path | Sequence[str | Path]) -> "ray.data.Dataset":
    """A data set of the names of files."""
    import pyarrow
    import ray.data

    several = [names] if isinstance(names, str | Path) else names
    paths: Keys = find_images([str(name) for name in several])
    blocks = [
        pyarrow.table({FILES: pyarrow.array([paths.raw(i) for i in block], pyarrow.binary())})
        for at in range(0, len(paths), BLOCK)
        if (block := range(at, min(at + BLOCK, len(paths))))
    ]
    return ray.data.from_arrow(blocks)


def _column(pictures: "ray.data.Dataset", column: str | None, keep: Sequence[str]) -> str:
    """The column of the pictures.

    Raises:
        Error: it, or one that is to be kept, is not there.
    """
    there = pictures.columns() or []
    found = column or next((name for name in COLUMNS if name in there), None)
    if found is None:
        raise Error(
            f"no column of pictures among {', '.join(there) or 'none'}: give column=, or call it "
            f"one of {', '.join(COLUMNS)}"
        )
    for name in (found, *keep):
        if name not in there:
            raise Error(f"the data set has no column {name!r}: it has {', '.join(there)}")
        if name in keep and name in schema().names:
            raise Error(f"the predictions have a column {name!r} already: rename yours")
    return found


def _pictures(values: np.ndarray) -> Iterator[Picture]:
    """A column's values as the classifier takes them; what it does not take it says itself."""
    for value in values:
        if isinstance(value, Mapping):  # as Hugging Face's data sets have pictures
            yield value["bytes"] if value.get("bytes") is not None else str(value.get("path"))
        else:
            yield str(value) if isinstance(value, np.str_) else value


def _named(
    stream: Iterator[Prediction], rows: Mapping[str, np.ndarray], column: str
) -> Iterator[Prediction]:
    """The predictions with the names that the data set has for its pictures."""
    names = rows.get("path")
    if names is None and len(rows[column]) and isinstance(rows[column][0], Mapping):
        names = [value.get("path") for value in rows[column]]
    for i, row in enumerate(stream):
        yield (
            row
            if names is None or row.path is not None
            else Prediction(
                None if names[i] is None else _printable(names[i]), row.labels, row.error
            )
        )


def _printable(name: str | bytes) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
