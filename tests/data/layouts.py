"""The same pictures laid out as publishers of data lay them out.

Tar members by `tarfile` in WebDataset's layout; parquet by pyarrow with the schema metadata that
`datasets` writes, or by `datasets` itself.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Sample = tuple[str, dict[str, bytes | str]]  # key, field to contents


def write_shard(path: Path, samples: Iterable[Sample], form: int = tarfile.PAX_FORMAT) -> Path:
    """One shard: for each sample its fields as ``key.field``, one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for key, fields in samples:
            for field, content in fields.items():
                add(archive, f"{key}.{field}", content)
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes | str = b"", **fields) -> None:
    """A member of any kind."""
    data = content.encode() if isinstance(content, str) else content
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(data))


def class_label(names: Sequence[str]) -> dict:
    return {"names": list(names), "_type": "ClassLabel"}


def write_parquet(
    path: Path,
    pictures: Sequence[bytes],
    labels: Sequence,
    feature: dict | list | None = None,
    *,
    image: str = "image",
    label: str = "label",
    paths: Sequence[str | None] | None = None,
    nested: bool = True,
    **options,
) -> Path:
    """A parquet file; with ``feature`` (of the label) it carries the metadata of `datasets`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"bytes": data, "path": name}
        for data, name in zip(pictures, paths or [None] * len(pictures), strict=True)
    ]
    table = pa.table(
        {
            image: pa.array(rows, struct) if nested else pa.array(pictures, pa.binary()),
            label: pa.array(labels),
        }
    )
    if feature is not None:
        features = {image: {"_type": "Image"}, label: feature}
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    pq.write_table(table, path, **options)
    return path
