"""Streams: pictures that can only be read in turn, such as a data set on the hub, not copied here.

A stream has parts (files), each read from its beginning. An epoch takes the parts in a random
order, and cuts that sequence into windows, each shuffled by itself: so the order is a function of
(seed, epoch), as that of a `Source` is, and no state but the number of samples consumed is
needed to go on. Going on costs reading over what lies before in one part, and counting the
parts once (of a parquet file that is its label column). A picture's draws depend on its place in
the epoch's sequence.

The one who reads is the main process of each rank; workers decode and augment. So every rank
reads the whole stream and decodes its share.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from vitrail.data.columns import Columns, choose, text_of
from vitrail.data.draws import order, window_order
from vitrail.data.examples import Source, read_file
from vitrail.data.hub import Address, has_files, library_of, load, no_split, parse, split_of
from vitrail.data.labels import Classes, read_classes
from vitrail.kit.errors import Error, listing

WINDOW = 1_000  # samples, whose files are all in memory


@dataclass(frozen=True)
class Item:
    """One sample of a stream.

    Attributes:
        image: the encoded file; None: it is missing.
        label: class number, or multi-hot uint8 [k].
        key: its name.
        index: its place in the epoch's sequence of parts.
    """

    image: bytes | None
    label: int | np.ndarray
    key: str
    index: int


class Handful(Source):
    """A few samples of a stream, by index."""

    def __init__(self, stream: "Stream | Handful", items: Sequence[Item]):
        self.name, self.classes = stream.name, stream.classes
        self.items = list(items)
        self.images = [item.image for item in items]
        self.keys = [item.key for item in items]
        kind = (np.uint8, (0, len(self.classes))) if stream.multi_label else (np.int64, (0,))
        labels = [item.label for item in items]
        self.labels = np.array(labels, kind[0]) if labels else np.zeros(kind[1], kind[0])

    def rows(self, places: np.ndarray) -> "Handful":
        """Some of them."""
        return Handful(self, [self.items[i] for i in places])

    def image(self, i: int) -> bytes:
        """The i-th picture's bytes."""
        data = self.images[i]
        if data is None:
            raise Error("there are no bytes of it")
        return data

    def size(self, i: int) -> int:
        """The length of the i-th picture."""
        return len(self.images[i] or b"")


class Stream:
    """Labelled pictures in turn.

    Args:
        name: what the user called it.
        classes: the class names.
        multi_label: whether a picture has any number of labels.
        parts: for each part a function that reads it from its beginning: (file, label, key).
        counts: for each part a function that counts its samples.
        window: how many samples are shuffled together.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        multi_label: bool,
        parts: Sequence[Callable[[], Iterator[tuple[bytes | None, Any, str]]]],
        counts: Sequence[Callable[[], int]],
        window: int = WINDOW,
    ):
        self.name, self.classes, self.multi_label = name, tuple(classes), multi_label
        self.parts, self.counts, self.window = parts, counts, window
        self._sizes: dict[int, int] = {}

    def size(self, part: int) -> int:
        """How many samples a part has; counted once."""
        if part not in self._sizes:
            self._sizes[part] = self.counts[part]()
        return self._sizes[part]

    def count(self) -> int:
        """How many samples there are: every part is counted."""
        return sum(map(self.size, range(len(self.parts))))

    def __len__(self) -> int:
        return self.count()

    def in_memory(self) -> Handful:
        """All samples as they lie, by index: for a split that is small enough."""
        return Handful(self, list(self._sequence(list(range(len(self.parts))), 0)))

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Item]:
        """The samples of one epoch, from place ``start`` of its order on."""
        turn = order(seed, epoch, len(self.parts)).tolist()
        window, inside = divmod(start, self.window)
        sequence = self._sequence(turn, window * self.window)
        while block := list(itertools.islice(sequence, self.window)):
            for place in window_order(seed, epoch, window, len(block))[inside:].tolist():
                yield block[place]
            window, inside = window + 1, 0

    def batches(
        self, batch_size: int, seed: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[np.ndarray, list[Item], int]]:
        """Epoch after epoch: (epoch of each sample, samples, place of the first in its epoch).

        Args:
            batch_size: samples a batch; one may reach over the end of an epoch.
            seed: of the order.
            start: samples consumed before; unless it is 0, all parts are counted.
            stop: where the stream ends; None: never.

        Raises:
            Error: there are no samples.
        """
        first, position = divmod(start, self.count() or 1) if start else (0, 0)
        pairs = self._endless(seed, first, position)
        if stop is not None:
            pairs = itertools.islice(pairs, max(0, stop - start))
        return _batched(pairs, batch_size, position)

    def in_turn(self, batch_size: int) -> Iterator[tuple[np.ndarray, list[Item], int]]:
        """Every sample once, as they lie, in batches like those of `batches`."""
        whole = self._sequence(list(range(len(self.parts))), 0)
        return _batched(((0, item) for item in whole), batch_size, 0)

    def _endless(self, seed: int, epoch: int, start: int) -> Iterator[tuple[int, Item]]:
        while True:
            item = None
            for item in self.epoch(seed, epoch, start):
                yield epoch, item
            if item is None:
                raise Error(f"{self.name}: there are no images")
            epoch, start = epoch + 1, 0

    def _sequence(self, turn: list[int], start: int) -> Iterator[Item]:
        index = 0
        for part in turn:
            if index < start and index + self.size(part) <= start:
                index += self.size(part)
                continue
            samples = self.parts[part]()
            for image, label, key in itertools.islice(samples, max(0, start - index), None):
                index = max(index, start)
                yield Item(image, label, key, index)
                index += 1


def _batched(
    pairs: Iterator[tuple[int, Item]], batch_size: int, position: int
) -> Iterator[tuple[np.ndarray, list[Item], int]]:
    last = None
    while taken := list(itertools.islice(pairs, batch_size)):
        epochs = np.array([epoch for epoch, _ in taken])
        if last is not None and epochs[0] != last:  # the batch before ended with its epoch
            position = 0
        yield epochs, [item for _, item in taken], position
        began, last = epochs[0], epochs[-1]
        position = int((epochs == last).sum()) + (position if last == began else 0)


def open_stream(
    spec: str,
    split: str = "train",
    *,
    classes: Classes | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    window: int = WINDOW,
) -> Stream:
    """A data set of the hub (``hf:NAME``), or of a folder, read in turn by `datasets`.

    Args:
        spec: see `hub`.
        split: as the data set calls it (train, validation, test, ...).
        classes: class names in order; needed where the data do not bring them.
        image_column, label_column: the columns; None: the ones that hold such a thing.
        window: how many samples are shuffled together (their files are held in memory).

    Raises:
        Error: it cannot be reached, has no such split, or does not say its classes.
    """
    address = parse(spec)
    library = library_of(spec)
    given = replace(address, split=address.split or split)
    data = load(library, given, streaming=True)
    return _stream_of(library, given, data, classes, (image_column, label_column), window)


def open_streams(
    spec: str,
    *,
    classes: Classes | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    window: int = WINDOW,
) -> dict[str, Stream]:
    """Its splits, in the order train, val, test; those that there are. See `open_stream`.

    Raises:
        Error: what `open_stream` raises; or none of its splits is one of these, or they have
            other classes.
    """
    address, library = parse(spec), library_of(spec)
    loaded = load(library, address, streaming=True)
    if not isinstance(loaded, Mapping):
        loaded = {address.split or "train": loaded}
    found: dict[str, Stream] = {}
    for name, data in loaded.items():
        split = split_of(address, name)
        if split is not None:
            columns = (image_column, label_column)
            given = replace(address, split=name)
            found[split] = _stream_of(library, given, data, classes, columns, window)
    if not found:
        raise no_split(address, loaded)
    every = {stream.classes for stream in found.values()}
    if len(every) > 1:
        raise Error(f"{spec}: its splits have other classes each: give them by --classes")
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _stream_of(
    library: ModuleType,
    address: Address,
    data: Any,
    classes: Classes | None,
    wanted: tuple[str | None, str | None],
    window: int,
) -> Stream:
    spec = address.spec
    if data.features is None:
        raise Error(f"{spec}: a stream has to say what its columns are, and this one does not")
    schema, features = data.features.arrow_schema, data.features.to_dict()
    columns = choose(spec, schema, features, *wanted)
    names = columns.classes
    if classes is not None:
        names = read_classes(classes)
    if names is None:
        raise Error(f"{spec}: a stream does not say its classes beforehand: give --classes")
    index = {name: k for k, name in enumerate(names)}
    files = data.cast_column(columns.image, library.Image(decode=False))
    shards = [files.shard(files.num_shards, k) for k in range(files.num_shards)]
    readable = has_files(data, address)
    return Stream(
        spec,
        names,
        columns.several,
        [_reader(spec, shard, k, columns, index, readable) for k, shard in enumerate(shards)],
        [_counter(shard, columns) for shard in shards],
        window,
    )


def _reader(
    spec: str, shard: Any, part: int, columns: Columns, index: Mapping[str, int], files: bool
) -> Callable[[], Iterator[tuple[bytes | None, Any, str]]]:
    def number(value: Any, row: int) -> int:
        text = text_of(f"{spec} part {part}", columns, value, row)
        if text in index:
            return index[text]
        if columns.classes is None and text.isdigit() and int(text) < len(index):
            return int(text)
        raise Error(
            f"{spec}: row {row} of part {part} is of class {text!r}, which is not among the "
            f"{len(index)} known ones ({listing(list(index))})"
        )

    def read() -> Iterator[tuple[bytes | None, Any, str]]:
        for row, one in enumerate(shard):
            picture, label = one[columns.image], one[columns.label]
            path = picture.get("path") if isinstance(picture, dict) else None
            data = picture.get("bytes") if isinstance(picture, dict) else picture
            if data is None and path and files:
                data = _content(path)
            if columns.several:
                hot = np.zeros(len(index), np.uint8)
                hot[[number(value, row) for value in label or ()]] = 1
                yield data, hot, f"{part:05d}/{path or f'{row:06d}'}"
            else:
                yield data, number(label, row), f"{part:05d}/{path or f'{row:06d}'}"

    return read


def _content(path: str) -> bytes | None:
    try:
        return read_file(path)
    except Error:
        return None


def _counter(shard: Any, columns: Columns) -> Callable[[], int]:
    return lambda: sum(1 for _ in shard.select_columns([columns.label]))
