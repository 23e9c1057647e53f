"""Features once: what a model makes of every picture, kept on the disk and never computed twice.

`extract` gives features [n d] as a memory-mapped array, so a million images fit a small machine.
They are kept in a folder that is named by a hash of what they follow from: the weights, the
model's configuration, the preprocessing, the bytes of every picture in order, the name of the
tensor and the type of the numbers. Labels are not among it: a picture that gets another label keeps
its features.

In that folder, `values.bin` is the bare array and `blocks.jsonl` a journal: a line for each block
of rows, written only once the rows are on the disk, with their checksum. So after a kill all whole
blocks are kept and the rest goes on from there; a block whose bytes are not those of its line is
computed again. (A block ends with a batch, so an interrupted run and a whole one give the same
bytes at the same batch size.)
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.data.loader import eval_batches
from vitrail.data.scan import digest
from vitrail.data.sources import Source
from vitrail.kit.errors import Error, did_you_mean
from vitrail.kit.files import write_text_whole
from vitrail.models.base import ImageClassifier
from vitrail.models.tape import Tape
from vitrail.models.zoo import describe

FORMAT = 1
# A block ends at whichever comes first.
BLOCK_ROWS, BLOCK_SECONDS, BLOCK_BYTES = 4096, 10.0, 2**26
TYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Features:
    """Features of the pictures of a source that could be read, row by row with their labels.

    Attributes:
        values: [n d] (or [n ...] for a tensor of a tape), float32 or float16, memory-mapped and
            read-only where there is a cache.
        labels: int64 [n], indices into `classes`.
        keys: n names.
        indices: int64 [n], places in the source; ascending.
        classes: the source's class names.
        skipped: (key, reason) of the pictures that could not be read; they have no row.
        seconds: that the extraction took, over all the times that it was begun.
        forward_seconds: of these, in the model.
        computed: how many pictures this call had to compute; 0: all were in the cache.
        path: the folder of the cache, or None.
    """

    values: np.ndarray
    labels: np.ndarray
    keys: Sequence[str]
    indices: np.ndarray
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    seconds: float
    forward_seconds: float
    computed: int
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, rows: np.ndarray) -> "Features":
        """Some rows, copied into memory."""
        picked = np.asarray(rows, np.int64)
        return dataclasses.replace(
            self,
            values=self.values[picked],
            labels=self.labels[picked],
            keys=[self.keys[i] for i in picked.tolist()],
            indices=self.indices[picked],
        )


def cache_folder() -> Path:
    """Where features are kept: ``features`` in `VITRAIL_CACHE`, or in ``~/.cache/vitrail``."""
    root = os.environ.get("VITRAIL_CACHE") or "~/.cache/vitrail"
    return Path(root).expanduser() / "features"


def extract(
    model: ImageClassifier,
    source: Source,
    *,
    name: str = "features",
    dtype: str = "float32",
    cache: bool | str | Path = True,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
    data: str | None = None,
) -> Features:
    """The features of every picture of a source, in its order.

    Pictures go through ``model.preprocessing`` as in evaluation; the model is in evaluation mode
    meanwhile, and back in its own afterwards. For another resolution give a model of that one.

    Args:
        name: ``features`` for `model.features` [n d], or any name of the model's tape
            (``pooled``, ``blocks.3.out``), then [n ...].
        dtype: ``float32`` or ``float16`` of the values.
        cache: True for `cache_folder`, a folder, or False to keep them in memory.
        batch_size: pictures at a time.
        workers: processes that decode.
        progress: called with (pictures done, pictures in all) after each batch.
        data: the source's `data_digest`, where it is known already.

    Raises:
        Error: a name that the model's tape does not have, no picture that can be read, features
            that are not finite, or a folder that cannot be written.
    """
    if dtype not in TYPES:
        raise Error(f"dtype of features is {' or '.join(TYPES)}, not {dtype!r}")
    shape = _shape(model, name)
    work = _Extraction(model, source, name, TYPES[dtype], shape, batch_size, workers, progress)
    if cache is False:
        return work.in_memory()
    root = cache_folder() if cache is True else Path(cache).expanduser()
    about = {
        "format": FORMAT,
        "model": _without_labels(describe(model)),
        "weights": weights_digest(model),
        "data": data or data_digest(source),
        "images": len(source),
        "name": name,
        "dtype": dtype,
        "shape": list(shape),
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    try:
        return work.in_folder(root / key, about)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = f"no space left for {len(source):,} features"
        else:
            why = (error.strerror or str(error)).lower()
        raise Error(
            f"features cannot be kept in {root} ({why}): set VITRAIL_CACHE to a folder with room"
        ) from None


def weights_digest(model: ImageClassifier) -> str:
    """A SHA-256 of every tensor of the state dict: names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        total.update(json.dumps([name, str(plain.dtype), list(plain.shape)]).encode())
        total.update(plain.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def data_digest(source: Source) -> str:
    """A SHA-256 of the bytes of every picture, in order; one that cannot be read says so."""
    total = hashlib.sha256()
    for i in range(len(source)):
        try:
            total.update(b"%016x" % digest(source.image(i)))
        except Error as error:
            total.update(f"<{error}>".encode())
    return total.hexdigest()


def _without_labels(description: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description.items() if key != "labels"}


def _shape(model: ImageClassifier, name: str) -> tuple[int, ...]:
    """The shape of one picture's tensor, and whether there is one of this name.

    Raises:
        Error: there is none; the nearest names are given.
    """
    with _evaluating(model):
        weight = next(model.parameters())
        height, width = model.preprocessing.size
        channels = len(model.preprocessing.mean)
        one = torch.zeros(1, channels, height, width, dtype=weight.dtype, device=weight.device)
        if name == "features":
            return tuple(model.features(one).shape[1:])
        tape = Tape()
        model(one, tape=tape)
    if name not in tape:
        near = did_you_mean(name, tape) or f"; it has features and {', '.join(list(tape)[:6])}, ..."
        raise Error(f"the model makes nothing called {name!r}{near}")
    return tuple(tape[name].shape[1:])


@contextlib.contextmanager
def _evaluating(model: ImageClassifier) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


@dataclass
class _Block:
    """Some rows in a line of the journal.

    Attributes:
        start, stop: places in the source.
        row: where the rows begin in the array.
        skipped: (place, reason).
        sha256: of the rows' bytes.
        seconds, forward_seconds: what they took.
    """

    start: int
    stop: int
    row: int
    skipped: list[tuple[int, str]]
    sha256: str
    seconds: float
    forward_seconds: float

    @property
    def rows(self) -> int:
        return self.stop - self.start - len(self.skipped)


@dataclass
class _Extraction:
    """One call of `extract`."""

    model: ImageClassifier
    source: Source
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    batch_size: int
    workers: int
    progress: Progress | None

    def in_memory(self) -> Features:
        """Compute everything, and keep nothing."""
        parts, blocks = [], []
        for values, block in self._blocks(0, len(self.source), 0):
            parts.append(values)
            blocks.append(block)
        return self._result(np.concatenate(parts), blocks, len(self.source), None)

    def in_folder(self, folder: Path, about: dict[str, Any]) -> Features:
        """Take from the folder what is whole there, compute the rest, and leave all of it."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process at the same features is waited for
            if not (folder / "about.json").exists():
                write_text_whole(folder / "about.json", json.dumps(about, indent=1))
            with (folder / "values.bin").open("a+b"):
                pass
            computed = 0
            with (folder / "values.bin").open("r+b") as file:
                blocks, damaged = self._kept(folder, file)
                for place in damaged:
                    computed += self._again(blocks, place, file)
                if damaged:
                    _write_journal(folder, blocks)
                computed += self._go_on(folder, blocks, file)
            rows = sum(block.rows for block in blocks)
            values = np.zeros((0, *self.shape), self.dtype)
            if rows:  # an empty file cannot be mapped
                values = np.memmap(file.name, self.dtype, "r", shape=(rows, *self.shape))
        return self._result(values, blocks, computed, folder)

    def _kept(self, folder: Path, file: Any) -> tuple[list[_Block], list[int]]:
        """The blocks of the journal, and which of them have other bytes now."""
        blocks: list[_Block] = []
        damaged: list[int] = []
        for block in _read_journal(folder):
            begin = blocks[-1] if blocks else None
            follows = (begin.stop, begin.row + begin.rows) if begin else (0, 0)
            whole = block.start < block.stop <= len(self.source)
            if (block.start, block.row) != follows or not whole or block.rows < 0:
                break  # the journal itself is damaged from here on
            file.seek(block.row * self._row_bytes)
            if _checksum(file.read(block.rows * self._row_bytes)) != block.sha256:
                damaged.append(len(blocks))
            blocks.append(block)
        return blocks, damaged

    def _again(self, blocks: list[_Block], place: int, file: Any) -> int:
        """Compute a damaged block again, where it stood."""
        old = blocks[place]
        for values, block in self._blocks(old.start, old.stop, old.row, whole=True):
            if block.rows != old.rows:  # pictures became readable: all that follows would shift
                raise Error(f"{file.name}: the pictures changed while they were read: try again")
            blocks[place] = block
            _put(file, values, block.row * self._row_bytes)
        return old.stop - old.start

    def _go_on(self, folder: Path, blocks: list[_Block], file: Any) -> int:
        start = blocks[-1].stop if blocks else 0
        row = blocks[-1].row + blocks[-1].rows if blocks else 0
        file.truncate(row * self._row_bytes)
        # Cuts off what a kill left of a line, and lines that do not fit.
        _write_journal(folder, blocks)
        with (folder / "blocks.jsonl").open("a", encoding="utf-8") as journal:
            for values, block in self._blocks(start, len(self.source), row):
                _put(file, values, block.row * self._row_bytes)
                journal.write(_line(block))
                journal.flush()
                os.fsync(journal.fileno())
                blocks.append(block)
        return len(self.source) - start

    @property
    def _row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def _blocks(
        self, start: int, stop: int, row: int, whole: bool = False
    ) -> Iterator[tuple[np.ndarray, _Block]]:
        """Compute pictures start to stop of the source, in blocks; ``whole`` makes it one."""
        if start == stop:
            return
        part = self.source.subset(np.arange(start, stop))
        values: list[np.ndarray] = []
        skipped: list[tuple[int, str]] = []
        begin, done, forward, since = start, start, 0.0, time.monotonic()
        batches = eval_batches(
            part, self.model.preprocessing, self.batch_size, workers=self.workers
        )
        for batch in batches:
            end = min(done + self.batch_size, stop)
            missing = np.setdiff1d(np.arange(done, end), batch.indices.numpy() + start)
            reasons = [reason for _, reason in batch.skipped]
            skipped += zip(missing.tolist(), reasons, strict=True)
            if len(batch.keys):
                clock = time.monotonic()
                values.append(self._forward(batch.images, batch.keys))
                forward += time.monotonic() - clock
            done = end
            if self.progress is not None:
                self.progress(done, len(self.source))
            full = (
                done - begin >= BLOCK_ROWS
                or (done - begin) * self._row_bytes >= BLOCK_BYTES
                or time.monotonic() - since >= BLOCK_SECONDS
            )
            if done == stop or (full and not whole):
                rows = np.concatenate([np.zeros((0, *self.shape), self.dtype), *values])
                spent = time.monotonic() - since
                sha = _checksum(rows.tobytes())
                yield rows, _Block(begin, done, row, skipped, sha, spent, forward)
                row += len(rows)
                values, skipped = [], []
                begin, forward, since = done, 0.0, time.monotonic()

    def _forward(self, images: Tensor, keys: Sequence[str]) -> np.ndarray:
        with _evaluating(self.model):
            weight = next(self.model.parameters())
            ready = self.model.preprocessing.normalize(images.to(weight.device)).to(weight.dtype)
            if self.name == "features":
                made = self.model.features(ready)
            else:
                tape = Tape(only=self.name)
                self.model(ready, tape=tape)
                made = tape[self.name]
            made = made.float().cpu()
        with np.errstate(over="ignore"):
            rows = made.numpy().astype(self.dtype)
        good = np.isfinite(rows).reshape(len(rows), -1).all(1)
        if not good.all():
            key = keys[int(np.argmin(good))]
            if torch.isfinite(made).all():
                raise Error(f"features of {key} are too large for float16: take float32")
            raise Error(
                f"the model's features of {key} are not finite numbers: its weights are broken"
            )
        return rows

    def _result(
        self, values: np.ndarray, blocks: list[_Block], computed: int, path: Path | None
    ) -> Features:
        skipped = [pair for block in blocks for pair in block.skipped]
        keys = self.source.keys
        if not len(values):
            place, reason = skipped[0] if skipped else (0, "")
            why = f" ({keys[place]}: {reason})" if skipped else ""
            raise Error(f"{self.source.name}: no picture can be read{why}")
        lost = np.array([place for place, _ in skipped], np.int64)
        indices = np.setdiff1d(np.arange(len(self.source)), lost)
        return Features(
            values=values,
            labels=self.source.labels[indices],
            keys=keys if not skipped else self.source.subset(indices).keys,
            indices=indices,
            classes=self.source.classes,
            skipped=tuple((keys[place], reason) for place, reason in skipped),
            seconds=sum(block.seconds for block in blocks),
            forward_seconds=sum(block.forward_seconds for block in blocks),
            computed=computed,
            path=path,
        )


def _put(file: Any, values: np.ndarray, offset: int) -> None:
    """Write rows at their place; on the disk when this returns."""
    file.seek(offset)
    file.write(values.tobytes())
    file.flush()
    os.fsync(file.fileno())


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _line(block: _Block) -> str:
    return json.dumps(dataclasses.asdict(block)) + "\n"


def _write_journal(folder: Path, blocks: list[_Block]) -> None:
    write_text_whole(folder / "blocks.jsonl", "".join(map(_line, blocks)))


def _read_journal(folder: Path) -> Iterator[_Block]:
    """The journal's lines up to the first that is cut short or none."""
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        for line in (folder / "blocks.jsonl").read_text(encoding="utf-8").splitlines():
            fields = json.loads(line)
            fields["skipped"] = [(place, reason) for place, reason in fields["skipped"]]
            yield _Block(**fields)
