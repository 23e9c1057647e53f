"""``hf:NAME``: data sets of the Hugging Face hub, or of a folder, through `datasets`.

``hf:NAME`` or ``hf:./folder``, with ``?config=...&revision=...&split=...`` where they are needed.
`datasets` writes pictures and labels into Arrow files below VITRAIL_CACHE (by default
~/.cache/vitrail), once; they are then mapped into memory, so that a picture is reached at once and
worker processes share them. Version 4 and later run no code of a data set; what still asks for it
is refused. A folder that `save_to_disk` wrote is opened as it is.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from vitrail.data.columns import Columns, choose, written
from vitrail.data.examples import Source, as_labels, read_file
from vitrail.data.folder import SPLITS
from vitrail.data.keys import Keys
from vitrail.data.labels import Part, Parts
from vitrail.kit.errors import Error, did_you_mean, listing

OPTIONS = ("config", "revision", "split", "stream")
_FROM_FOLDERS = ("imagefolder",)


@dataclass(frozen=True)
class Address:
    """What ``hf:...`` says.

    Attributes:
        spec: as the user wrote it.
        path: a name on the hub, or a folder.
        config, revision, split: where they are given.
        stream: whether nothing is to be copied to this machine.
    """

    spec: str
    path: str
    config: str | None = None
    revision: str | None = None
    split: str | None = None
    stream: bool = False

    @property
    def local(self) -> bool:
        """Whether it is a folder or file of this machine."""
        return self.path.startswith((".", "/", "~")) or Path(self.path).exists()


def parse(spec: str) -> Address:
    """Read ``hf:NAME?config=...``.

    Raises:
        Error: no name, or an option that is none.
    """
    path, _, query = spec.removeprefix("hf:").partition("?")
    if not path:
        raise Error(f"{spec}: hf: is followed by the name of a data set, or by a folder")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in OPTIONS:
            near = did_you_mean(option, OPTIONS) or f"; there are {listing(list(OPTIONS))}"
            raise Error(f"{spec}: unknown option {option!r}{near}")
    stream = options.pop("stream", None)
    if stream not in (None, "", "1", "true", "0", "false"):
        raise Error(f"{spec}: stream is 1 or 0, not {stream!r}")
    given = {name: value for name, value in options.items() if value}
    return Address(spec, path, **given, stream=stream in ("", "1", "true"))


def list_hub(
    address: Address, image_column: str | None = None, label_column: str | None = None
) -> Parts:
    """The rows of a data set, split by split.

    Raises:
        Error: it is not there or cannot be reached, or its columns hold no pictures and labels.
    """
    if address.stream:
        raise Error(
            f"{address.spec}: only train reads a stream; this needs pictures that it can reach by "
            "number: leave ?stream out (in Python there is vitrail.data.stream.open_stream)"
        )
    library = library_of(address.spec)
    loaded = _loaded(library, address)
    found, first = Parts(address.spec, numbers=True), None
    ignored = [f"split {name}" for name in loaded if split_of(address, name) is None]
    for name, dataset in loaded.items():
        split = split_of(address, name)
        if split is None:
            continue
        where = f"{address.spec} {name}"
        features = dataset.features.to_dict()
        columns = choose(where, dataset.data.schema, features, image_column, label_column)
        first = first or columns
        if columns != first:
            raise Error(f"{where}: its columns or class names are others than those before")
        texts = list(written(where, columns, dataset.data.column(columns.label)))
        if not texts:
            raise Error(f"{where}: there are no rows")
        pictures = dataset.data.column(columns.image)
        files = has_files(dataset, address)
        keys = Keys(names_of(name, columns, pictures, address.path if files else ""))
        found.splits[split] = Part(
            texts, _maker(address.spec, pictures, columns, keys, ignored, files)
        )
        ignored = []
    if first is None:
        raise no_split(address, loaded)
    found.classes, found.several = first.classes, first.several
    return found


def library_of(spec: str) -> ModuleType:
    """`datasets`, told to be quiet and to stay inside VITRAIL_CACHE.

    Raises:
        Error: it is not installed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        import datasets
    except ImportError:
        raise Error(f"{spec} needs datasets: pip install 'vitrail[hf]'") from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are not news
    return datasets


def has_files(dataset: Any, address: Address) -> bool:
    """Whether paths may be read: only where `datasets` made them of a folder of this machine."""
    return dataset.info.builder_name in _FROM_FOLDERS and address.local


def cache_folder() -> Path:
    """Where `datasets` keeps its files for us."""
    given = os.environ.get("VITRAIL_CACHE")
    return Path(given or "~/.cache/vitrail").expanduser() / "datasets"


def load(library: ModuleType, address: Address, **options: Any) -> Any:
    """`load_dataset` with a user's mistakes, and the network's, in one sentence.

    Raises:
        Error: it is not there, cannot be reached, or wants to run code.
    """
    path = str(Path(address.path).expanduser()) if address.local else address.path
    if address.local and not Path(path).exists():
        raise Error(f"{address.spec}: no such folder: {path}")
    try:
        return library.load_dataset(
            path,
            address.config,
            split=address.split,
            revision=address.revision,
            cache_dir=str(cache_folder()),
            **options,
        )
    except Exception as error:  # of whatever kind: the library has dozens
        raise Error(f"{address.spec}: {_why(error, address)}") from None


class HubSource(Source):
    """Pictures in a column of Arrow's, mapped into memory.

    Args:
        name: what the user called the data.
        pictures: a chunked array of bytes, or of {bytes, path}.
        columns: where pictures and labels are.
        files: whether a picture without bytes may be read from its path: only where `datasets`
            itself made the paths from a folder of this machine.
        keys, labels, classes, ignored: as in `Source`.
    """

    def __init__(
        self,
        name: str,
        pictures: Any,
        columns: Columns,
        files: bool,
        keys: Keys,
        labels: np.ndarray,
        classes: Sequence[str],
        ignored: Sequence[str] = (),
    ):
        self.name, self.columns, self.files = name, columns, files
        self.chunks = pictures.chunks
        self.ends = np.cumsum([len(chunk) for chunk in self.chunks])
        self.keys, self.labels, self.classes = keys, as_labels(labels), tuple(classes)
        self.ignored = tuple(ignored)

    def image(self, i: int) -> bytes:
        """The i-th picture's bytes.

        Raises:
            Error: why it cannot be read.
        """
        chunk, row = self._place(i)
        if not self.columns.nested:
            value = chunk[row].as_py()
        else:
            value = chunk.field("bytes")[row].as_py()
            if value is None and self.files and (path := chunk.field("path")[row].as_py()):
                return read_file(path)
        if value is None:
            raise Error(f"column {self.columns.image} holds no bytes there")
        return value

    def size(self, i: int) -> int:
        """The length of the i-th picture in bytes; -1: it is not there."""
        chunk, row = self._place(i)
        content = chunk.field("bytes") if self.columns.nested else chunk
        if content[row].is_valid:
            return len(content[row].as_buffer())
        try:
            return len(self.image(i))
        except Error:
            return -1

    def _place(self, i: int) -> tuple[Any, int]:
        number = int(np.searchsorted(self.ends, i, side="right"))
        chunk = self.chunks[number]
        return chunk, int(i - self.ends[number] + len(chunk))


def names_of(split: str, columns: Columns, pictures: Any, below: str = "") -> list[str]:
    """A key for each picture: its split with its path, or with its place where it has none.

    Args:
        split: its name.
        columns: where pictures are.
        pictures: the column, a chunked array.
        below: a folder that paths are shortened by.
    """
    names: list[str] = []
    for chunk in pictures.chunks:
        paths = chunk.field("path").to_pylist() if columns.has_path else [None] * len(chunk)
        for path in paths:
            short = _below(path, below) if path and below else path
            names.append(f"{split}/{short}" if short else f"{split}/{len(names):06d}")
    return names


def _below(path: str, folder: str) -> str:
    root = os.path.abspath(os.path.expanduser(folder))
    return os.path.relpath(path, root) if os.path.isabs(path) else path


def _maker(
    name: str, pictures: Any, columns: Columns, keys: Keys, ignored: Sequence[str], files: bool
) -> Any:
    return lambda labels, classes: HubSource(
        name, pictures, columns, files, keys, labels, classes, ignored
    )


def _loaded(library: ModuleType, address: Address) -> dict[str, Any]:
    """Split name to data set."""
    folder = Path(address.path).expanduser()
    if address.local and any((folder / n).is_file() for n in ("dataset_dict.json", "state.json")):
        try:
            found = library.load_from_disk(str(folder))
        except Exception as error:
            raise Error(f"{address.spec}: {_why(error, address)}") from None
        if address.split is not None and isinstance(found, dict):
            if address.split not in found:
                raise Error(f"{address.spec}: there is only {listing(list(found))}")
            found = found[address.split]
    else:
        found = load(library, address)
    return dict(found) if isinstance(found, dict) else {address.split or "train": found}


def split_of(address: Address, name: str) -> str | None:
    """Which of our splits one of theirs is; the one that was asked for is train."""
    return "train" if address.split is not None else SPLITS.get(name.lower())


def no_split(address: Address, names: Iterable[str]) -> Error:
    """The error that says which splits there are instead of ours."""
    return Error(
        f"{address.spec}: none of its splits is train, val or test ({listing(list(names))}): "
        "choose one by ?split=NAME"
    )


def _why(error: Exception, address: Address) -> str:
    """What went wrong, in words of one sentence."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    if "cripts are no longer supported" in text:
        return "it wants to run code of its own, which is never done"
    if kind in ("DatasetNotFoundError", "RepositoryNotFoundError", "GatedRepoError"):
        return f"no such data set, or none that may be read ({text[:200].rstrip('.')})"
    if not address.local and (
        isinstance(error, OSError | ConnectionError) or "onnect" in kind or "HTTP" in kind
    ):
        return f"the hub cannot be reached ({text[:200].rstrip('.')})"
    return f"cannot be opened ({text[:300].rstrip('.') or kind})"
