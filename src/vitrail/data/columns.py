"""Columns: which ones of a table of Arrow's hold pictures and labels, and what they say.

Tables of `datasets` carry their features with them (in parquet's schema under ``huggingface``,
as JSON): which column is an ``Image`` and the names of a ``ClassLabel``. Without them an ``image``
column and a ``label`` column are looked for. pyarrow comes with the extra ``[hf]``.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from vitrail.kit.errors import Error, did_you_mean, listing

Json = Any


@dataclass(frozen=True)
class Columns:
    """The columns of a table that matter.

    Attributes:
        image, label: their names.
        nested: whether a picture is {bytes, path}, and not bytes alone.
        has_path: whether it has a path.
        classes: names of the class numbers, where the table has them.
        several: whether an example has a list of labels.
    """

    image: str
    label: str
    nested: bool
    has_path: bool
    classes: tuple[str, ...] | None
    several: bool


def arrow(what: str) -> ModuleType:
    """pyarrow, with its parquet reader.

    Raises:
        Error: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Error(f"{what} needs pyarrow: pip install 'vitrail[hf]'") from None
    return pyarrow


def features_of(schema: Any) -> dict[str, Json]:
    """The features that `datasets` wrote into a schema; empty: there are none, or none to read."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        features = about["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def choose(
    where: str, schema: Any, features: dict[str, Json], image: str | None, label: str | None
) -> Columns:
    """Find the columns.

    Args:
        where: for messages.
        schema: pyarrow's.
        features: as `features_of` reads them.
        image, label: the user's choice, or None.

    Raises:
        Error: there are none, several, or of a type that holds no pictures or labels.
    """
    import pyarrow.types as types

    columns = list(schema.names)
    image = _pick(where, columns, "picture", image, _of_type(features, "Image"), ("image", "img"))
    labels = [name for name in columns if _names(features.get(name)) is not None]
    label = _pick(where, columns, "label", label, labels, ("label", "labels"))
    kind = schema.field(image).type
    nested = types.is_struct(kind)
    inner = (
        {kind.field(k).name: kind.field(k).type for k in range(kind.num_fields)} if nested else {}
    )
    content = inner.get("bytes") if nested else kind
    if content is None or not (types.is_binary(content) or types.is_large_binary(content)):
        raise Error(
            f"{where}: column {image} holds {kind}, where a picture is bytes or {{bytes, path}}"
        )
    held = schema.field(label).type
    several = types.is_list(held) or types.is_large_list(held) or types.is_fixed_size_list(held)
    held = held.value_type if several else held
    held = held.value_type if types.is_dictionary(held) else held
    if not (types.is_integer(held) or types.is_string(held) or types.is_large_string(held)):
        raise Error(f"{where}: column {label} holds {held}, where labels are whole numbers or text")
    names = _names(features.get(label)) if types.is_integer(held) else None
    has_path = "path" in inner and (
        types.is_string(inner["path"]) or types.is_large_string(inner["path"])
    )
    return Columns(image, label, nested, has_path, names, several)


def written(where: str, columns: Columns, values: Any) -> Iterator[str | tuple[str, ...]]:
    """Each row's label as text, or its labels; class numbers become their names.

    Args:
        where: for messages.
        columns: what `choose` found.
        values: the label column, a chunked array.

    Raises:
        Error: a row without a label, or with a number that is no class.
    """
    known: dict[Any, str] = {}

    def text(value: Any, row: int) -> str:
        found = known.get(value)
        if found is None:
            found = known[value] = sys.intern(text_of(where, columns, value, row))
        return found

    row = 0
    for chunk in values.chunks:
        for value in chunk.to_pylist():
            if columns.several:
                yield tuple(dict.fromkeys(text(one, row) for one in value or ()))
            else:
                yield text(value, row)
            row += 1


def same(where: str, first: Columns, other: Columns) -> None:
    """Raise where two files of one data set disagree."""
    if (first.nested, first.several, first.classes) != (other.nested, other.several, other.classes):
        raise Error(f"{where}: its columns or class names are others than those of the first file")


def text_of(where: str, columns: Columns, value: Any, row: int) -> str:
    """One label of a row as text: of a class number its name.

    Raises:
        Error: there is none, or it is no class.
    """
    if value is None:
        raise Error(f"{where}: row {row} has no {columns.label}")
    if columns.classes is not None:
        if not 0 <= value < len(columns.classes):
            raise Error(
                f"{where}: row {row} has label {value}, which is none of {len(columns.classes)} "
                "classes (data whose labels are kept back have -1 there)"
            )
        return columns.classes[value]
    text = str(value).strip()
    if not text or (not isinstance(value, str) and value < 0):
        raise Error(f"{where}: the label of row {row} is {text or 'empty'}")
    return text


def _pick(
    where: str,
    columns: list[str],
    what: str,
    wanted: str | None,
    typed: Sequence[str],
    usual: Sequence[str],
) -> str:
    flag = "--image-column" if what == "picture" else "--label-column"
    if wanted is not None:
        if wanted not in columns:
            near = did_you_mean(wanted, columns)
            raise Error(f"{where}: no column {wanted!r} (there are {listing(columns)}){near}")
        return wanted
    found = [name for name in usual if name in columns] or [n for n in typed if n in columns]
    if not found:
        raise Error(f"{where}: which column is the {what}? say {flag} (of {listing(columns)})")
    if len(found) > 1 and found[0] not in usual:
        raise Error(f"{where}: several columns hold a {what} ({listing(found)}): say {flag}")
    return found[0]


def _of_type(features: dict[str, Json], kind: str) -> list[str]:
    return [
        name
        for name, about in features.items()
        if isinstance(about, dict) and about.get("_type") == kind
    ]


def _names(about: Json) -> tuple[str, ...] | None:
    """The names of a ClassLabel, or of the ClassLabel in a list (``List``, ``Sequence``, [...])."""
    if isinstance(about, list) and len(about) == 1:
        about = about[0]
    if isinstance(about, dict) and about.get("_type") in ("List", "LargeList", "Sequence"):
        about = about.get("feature")
    if not isinstance(about, dict) or about.get("_type") != "ClassLabel":
        return None
    names = about.get("names")
    if isinstance(names, dict):  # {"0": "cat", ...}, as a dataset card has it
        names = [names.get(str(k)) for k in range(len(names))]
    if not isinstance(names, list):
        return None
    words = tuple(name for name in names if isinstance(name, str))
    return words if len(words) == len(names) else None
