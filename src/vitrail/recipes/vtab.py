"""VTAB-1k of one model: every task that is on the disk, the rest named, means over whole groups.

Two protocols. ``finetune`` is the ViT paper's (appendix B.1.1, D): each task is fine-tuned on its
1,000 training images for 2,500 steps of 512 at 384 pixels, SGD at 0.01, BiT's exceptions to flips
and crops, and measured on the whole test set. ``linear`` asks in minutes what the features are
worth: logistic regression on frozen features, its penalty chosen on the 200 and learnt again from
all 1,000.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.loader import eval_batches
from vitrail.data.sources import Source
from vitrail.data.vtab import GROUPS, Missing, Task, find_task, open_task, where
from vitrail.evaluation.accuracy import evaluate
from vitrail.evaluation.features import extract
from vitrail.evaluation.linear import LinearProbe
from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier
from vitrail.recipes.run import train
from vitrail.weights.folder import load_model

PROTOCOLS = ("linear", "finetune")
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TaskResult:
    """One task's accuracy on its test set, 0..1."""

    task: Task
    top1: float
    n: int


@dataclass(frozen=True)
class VTAB:
    """What was measured.

    Attributes:
        protocol: one of `PROTOCOLS`.
        results: of the tasks that were there.
        missing: the others.
        failed: (task, why) of those whose files cannot be read.
    """

    protocol: str
    results: tuple[TaskResult, ...]
    missing: tuple[Missing, ...]
    failed: tuple[tuple[Task, str], ...]

    def group(self, name: str) -> float | None:
        """The mean over a group, or None where it is not whole."""
        own = [r.top1 for r in self.results if r.task.group == name]
        whole = sum(m.task.group == name for m in self.missing) == 0
        whole = whole and not any(task.group == name for task, _ in self.failed)
        return float(np.mean(own)) if own and whole else None

    @property
    def mean(self) -> float | None:
        """The mean over all 19 tasks, or None where one is missing (arXiv 1910.04867)."""
        whole = not self.missing and not self.failed
        return float(np.mean([r.top1 for r in self.results])) if whole and self.results else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; accuracies 0..1, None where a mean is not over all of its tasks."""
        return {
            "protocol": self.protocol,
            "tasks": [
                {
                    "name": r.task.name,
                    "group": r.task.group,
                    "top1": r.top1,
                    "n": r.n,
                    "classes": r.task.classes,
                    "note": r.task.note,
                }
                for r in self.results
            ],
            "groups": {name: self.group(name) for name in GROUPS},
            "mean": self.mean,
            "missing": [
                {
                    "name": m.task.name,
                    "files": m.task.files,
                    "folder": str(m.folder),
                    "published": m.task.published,
                }
                for m in self.missing
            ],
            "failed": [{"name": task.name, "reason": reason} for task, reason in self.failed],
        }


def vtab(
    model: str,
    root: str | Path,
    *,
    protocol: str = "linear",
    out: Path | None = None,
    tasks: Sequence[str] = (),
    name: str | None = None,
    settings: dict[str, Any] | None = None,
    progress: Progress | None = None,
    cache: bool | str | Path = True,
    device: str | None = None,
    workers: int = 0,
) -> VTAB:
    """Run the tasks that are under a folder.

    Args:
        model: a model folder or a checkpoint file (with ``name``).
        root: with a folder for each task, see `data.vtab`.
        protocol: ``linear`` or ``finetune``.
        out: where ``finetune`` leaves a run for each task; the same call goes on with them.
        tasks: only these; all by default.
        settings: for ``finetune``, as of ``train --set``, over the protocol's.
        progress: called with what is being done, how much of it is done, and of how much.
        cache, workers: as of `extract`.

    Raises:
        Error: an unknown protocol or task, no task that is there, or no ``out``.
    """
    if protocol not in PROTOCOLS:
        raise Error(f"the protocol of VTAB is {' or '.join(PROTOCOLS)}, not {protocol!r}")
    if protocol == "finetune" and out is None:
        raise Error("VTAB by fine-tuning leaves a run for each task: give --out a folder")
    wanted = {find_task(one).name for one in tasks}
    there, missing = where(root)
    if wanted:
        there = [task for task in there if task.name in wanted]
        missing = [one for one in missing if one.task.name in wanted]
    if not there:
        raise Error(f"{root} holds no task of VTAB yet; for a start: {missing[0]}")
    opened = load_model(model, name=name) if protocol == "linear" else None
    results, failed = [], []
    for number, task in enumerate(there):
        if progress is not None:
            progress(f"VTAB, {task.name}", number, len(there))
        try:
            parts = open_task(root, task.name)
        except Error as error:
            failed.append((task, str(error)))
            continue
        if opened is not None:
            top1 = _linear(opened, parts, cache, workers)
        else:
            assert out is not None
            run = {"name": name, "settings": settings or {}, "device": device, "workers": workers}
            top1 = _finetuned(model, task, parts, out / task.name, **run)
        results.append(TaskResult(task, top1, len(parts["test"])))
    return VTAB(protocol, tuple(results), tuple(missing), tuple(failed))


def _linear(
    model: ImageClassifier, parts: dict[str, Source], cache: bool | str | Path, workers: int
) -> float:
    found = {
        part: extract(model, parts[part], cache=cache, workers=workers)
        for part in ("train800", "val200", "test")
    }
    x, y = found["train800"].values, found["train800"].labels
    held, truth = found["val200"].values, found["val200"].labels
    right = [_probe(l2).fit(x, y).score(held, truth) for l2 in PENALTIES]
    best = PENALTIES[int(np.argmax(right))]
    probe = _probe(best).fit(np.concatenate([x, held]), np.concatenate([y, truth]))
    return float(probe.score(found["test"].values, found["test"].labels))


def _probe(l2: float) -> LinearProbe:
    return LinearProbe(solver="lbfgs", l2=l2)


def _finetuned(
    model: str,
    task: Task,
    parts: dict[str, Source],
    out: Path,
    *,
    name: str | None,
    settings: dict[str, Any],
    device: str | None,
    workers: int,
) -> float:
    own = {} if task.flip else {"augment.flip": 0.0}
    if not task.crop:  # the whole picture, squeezed to the size
        own |= {"augment.crop": "none"}
    train(
        parts["train800val200"],
        name,
        out=out,
        weights=model,
        recipe="vit_finetune:vtab",
        val_fraction=0.0,
        device=device,
        workers=workers,
        set=own | settings,
    )
    tuned = load_model(out)
    test = parts["test"]
    batches = eval_batches(test, tuned.preprocessing, 64, workers=workers)
    return evaluate(tuned, batches, test.classes).top1
