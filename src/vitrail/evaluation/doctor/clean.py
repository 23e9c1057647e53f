"""A clean list: what `train` and `evaluate` take in place of the data, without what is wrong.

Pictures that are files are listed in a CSV of path, label and split. Pictures that lie in something
else (parquet, shards, arrays) are copied into a folder of parquet files, one a split.
"""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vitrail.data.examples import FileSource, Subset
from vitrail.data.sources import Source
from vitrail.kit.errors import Error
from vitrail.kit.files import write_text_whole, write_whole

ROWS = 1000  # pictures in a row group


def check_clean(path: Path, splits: Mapping[str, Source]) -> bool:
    """Whether `write_clean` will write a list (True) or a folder of copies.

    Raises:
        Error: the wrong kind of path, a folder that is in use, or pictures with several labels.
    """
    if any(source.labels.ndim > 1 for source in splits.values()):
        raise Error("--write-clean lists pictures with one label each; these have several")
    if all(file_of(source, 0) is not None for source in splits.values() if len(source)):
        if path.suffix.lower() != ".csv":
            raise Error(f"--write-clean {path}: the list is a CSV; name it so")
        return True
    if path.suffix:
        raise Error(
            f"--write-clean {path}: these pictures are no files, so that a folder with copies of "
            "them is written; name one"
        )
    if path.exists() and any(path.iterdir()):
        raise Error(f"--write-clean {path} is not empty; give a folder of its own")
    return False


def write_clean(path: Path, splits: Mapping[str, Source], kept: Mapping[str, np.ndarray]) -> str:
    """Write the list or the folder.

    Args:
        path: a ``.csv`` for pictures in files; a folder otherwise.
        splits: what was looked at.
        kept: places by split, int64.

    Returns:
        What was written, in words.

    Raises:
        Error: what `check_clean` raises, or no room.
    """
    listed = check_clean(path, splits)
    total = sum(map(len, kept.values()))
    if listed:
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(("path", "label", "split"))
        for name, source in splits.items():
            for i in kept[name].tolist():
                writer.writerow((file_of(source, i), source.classes[int(source.labels[i])], name))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(path, lines.getvalue())
        return f"{path} lists {total:,} pictures; train and evaluate take it as their data"
    path.mkdir(parents=True, exist_ok=True)
    for name, source in splits.items():
        _write_parquet(path / f"{name}.parquet", source, kept[name])
    return f"{path} holds {total:,} pictures; train and evaluate take it as their data"


def file_of(source: Source, i: int) -> str | None:
    """Where the i-th picture lies, if it is a file of its own."""
    while isinstance(source, Subset):
        i, source = int(source.indices[i]), source.source
    return str(Path(source.path(i)).absolute()) if isinstance(source, FileSource) else None


def _write_parquet(path: Path, source: Source, kept: np.ndarray) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise Error("writing parquet takes pyarrow: pip install 'vitrail[hf]'") from None
    about = {
        "info": {
            "features": {
                "image": {"_type": "Image"},
                "label": {"names": list(source.classes), "_type": "ClassLabel"},
            }
        }
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={b"huggingface": json.dumps(about).encode()},
    )

    def write(staged: Path) -> None:
        with pq.ParquetWriter(staged, schema) as writer:
            for start in range(0, len(kept), ROWS):
                places = kept[start : start + ROWS].tolist()
                rows = [
                    {"bytes": _encoded(source.image(i)), "path": source.keys[i]} for i in places
                ]
                labels = [int(source.labels[i]) for i in places]
                writer.write_table(pa.table({"image": rows, "label": labels}, schema=schema))

    write_whole(path, write)


def _encoded(image: bytes | np.ndarray) -> bytes:
    if isinstance(image, bytes):
        return image
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()
