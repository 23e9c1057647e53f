"""Predictions for any number of pictures: to stdout, to one file, or to a folder of pieces.

A picture that cannot be read becomes a record with the reason, never the end of the run.
"""

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrail.data.keys import Keys
from vitrail.kit.errors import Error
from vitrail.serving.classifier import Classifier
from vitrail.serving.forms import Tally, opened
from vitrail.serving.images import Share
from vitrail.serving.pieces import Pieces, put_in_place
from vitrail.serving.stream import Prediction

Told = Callable[[int, int, int], None]  # pictures done before this run, done now, and all


@dataclass(frozen=True)
class Plan:
    """What is to be predicted, and how.

    Args:
        names: all pictures.
        share: which part of them.
        top: labels a picture.
        form: of `forms.FORMS`.
        workers: threads that decode; None for one a core.
        piece: pictures in a piece, where a folder is written.
    """

    names: Keys
    share: Share = field(default_factory=Share)
    top: int = 5
    form: str = "jsonl"
    workers: int | None = None
    piece: int = 2000

    @property
    def places(self) -> range:
        """Which of the names are predicted."""
        return self.share.of(len(self.names))

    def paths(self, places: Iterable[int]) -> Iterator[str]:
        """The names at these places, as the file system has them."""
        return (self.names.path(i) for i in places)


def predict_to_file(classify: Classifier, plan: Plan, out: Path | None, told: Told) -> Tally:
    """Write all predictions to a file, whole or not at all, or to stdout where there is none.

    What is no regular file, a pipe for instance, is written to as it goes.

    Raises:
        Error: the file cannot be written, or the form is none for stdout.
    """
    rows = _counted(classify.stream(plan.paths(plan.places), plan.top, plan.workers), plan, told)
    if out is None:
        return _written(rows, plan.form, sys.stdout)
    try:
        if out.exists() and not out.is_file():
            with out.open("w", newline="", encoding="utf-8") as file:
                return _written(rows, plan.form, file)
        staged = out.with_name(f".{out.name}.{os.getpid()}.part")
        try:
            tally = _written(rows, plan.form, staged)
            put_in_place(staged, out)
        finally:
            staged.unlink(missing_ok=True)
        return tally
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Error(f"{out} cannot be written: {reason}") from None


def predict_to_folder(classify: Classifier, plan: Plan, out: Path, told: Told) -> tuple[Tally, int]:
    """Write the pieces that a folder lacks.

    Args:
        classify: the classifier.
        plan: what is to be predicted.
        out: the folder, new or begun by the same plan and model.
        told: is called now and then.

    Returns:
        What the whole share has come to, and how many pictures of it were there before.

    Raises:
        Error: see `Pieces`.
    """
    about = {**identity(classify), "top": min(plan.top, len(classify.labels))}
    pieces = Pieces(out, plan.names, plan.share, plan.form, plan.piece, about)
    with pieces.begun() as tally:
        before = tally.records
        missing = pieces.missing()
        # One stream for all pieces, so that the threads never wait for one to be written.
        places = itertools.chain.from_iterable(pieces.pieces[number] for number in missing)
        stream = classify.stream(plan.paths(places), plan.top, plan.workers)
        rows = _counted(stream, plan, told, before)
        try:
            for number in missing:
                tally += pieces.write(number, itertools.islice(rows, len(pieces.pieces[number])))
        except KeyboardInterrupt:
            count = len(plan.places)
            done = count - sum(len(pieces.pieces[number]) for number in pieces.missing())
            raise KeyboardInterrupt(
                f"stopped: {done:,} of {count:,} pictures are done in {out}, and the same command "
                "goes on from there"
            ) from None
    return tally, before


def identity(classify: Classifier) -> dict[str, Any]:
    """What must be equal for equal predictions: JSON values by the keys of `pieces.SAID`."""
    if classify.manifest is not None and classify.runtime != "torch":
        files = json.dumps(classify.manifest.files, sort_keys=True)  # name to hash
        digest = hashlib.sha256(files.encode()).hexdigest()
    else:
        digest = _digest_of_weights(classify.model)
    return {
        "model": digest,
        "merge_tokens": 0 if classify.manifest is None else classify.manifest.merge_tokens,
        "several": classify.several,
        "labels": hashlib.sha256(json.dumps(classify.labels).encode()).hexdigest(),
        "preprocessing": classify.preprocessing.to_json(),
        "temperature": classify.temperature,
    }


def _digest_of_weights(model: Any) -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _written(rows: Iterable[Prediction], form: str, target: Any) -> Tally:
    tally = Tally()
    with opened(form, target) as write:
        for row in rows:
            write(row)
            tally.add(row.path, row.error)
    return tally


def _counted(
    rows: Iterable[Prediction], plan: Plan, told: Told, before: int = 0
) -> Iterator[Prediction]:
    for done, row in enumerate(rows, start=1):
        told(before, done, len(plan.places))
        yield row
