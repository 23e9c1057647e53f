"""One run of a study: trained by `recipes.run.train`, measured, and put into a record.

The run's folder is an ordinary one. A killed run goes on from its own checkpoints, so the record
is the same as if it had not been killed, but for the seconds.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.data.loader import eval_batches
from vitrail.data.sources import Source
from vitrail.evaluation.accuracy import evaluate
from vitrail.evaluation.features import extract
from vitrail.evaluation.fewshot import fewshot
from vitrail.kit.errors import Error
from vitrail.kit.records import Records
from vitrail.models.base import ImageClassifier
from vitrail.recipes.run import train
from vitrail.recipes.several import diverged
from vitrail.studies.data import StudyData
from vitrail.studies.definition import Definition, Point, Record, tupled
from vitrail.studies.folder import StudyFolder
from vitrail.studies.grid import FINAL
from vitrail.studies.subsets import subset_rows
from vitrail.training.checkpoint import FOLDER
from vitrail.training.display import Display
from vitrail.weights.folder import load_model
from vitrail.weights.read import BEST_FILE

BATCH = 256
SHOT_SEED = -1  # of the pool of few shots
DRAWS = 3  # of the few shots, for each of which a run's accuracy is the mean


def chosen_settings(point: Point, trials: Sequence[Record]) -> dict[str, Any]:
    """The settings of the trial whose last weights are best on validation; of equals the first.

    Raises:
        Error: there is no trial that came to a figure.
    """
    known = [trial for trial in trials if trial["metrics"].get(FINAL) is not None]
    if not known:
        raise Error(f"{point.id} chooses among runs none of which has an accuracy on validation")
    best = max(known, key=lambda trial: trial["metrics"][FINAL])
    return dict(best["config"]["settings"])


def words_of(point: Point, trials: Sequence[Record] = ()) -> dict[str, Any]:
    """The words that `recipes.run.train` is called with for a point.

    Args:
        trials: the records of the runs that it chooses from.
    """
    settings = {**(chosen_settings(point, trials) if point.choose else {}), **point.settings}
    if point.duration:
        settings["duration"] = point.duration
    settings |= {f"model.{key}": tupled(value) for key, value in point.config.items()}
    return {
        "model": None if point.start else point.model,
        "recipe": point.recipe,
        "image_size": point.image_size,
        "seed": point.seed,
        "set": {key: tupled(value) for key, value in settings.items()},
    }


def perform(
    point: Point,
    definition: Definition,
    data: StudyData,
    folder: StudyFolder,
    device: str | None = None,
    display: Display | None = None,
) -> Record:
    """Do a run, or go on with it, and return its record.

    Where the run whose weights it starts from failed, or all of those that it chooses from, it has
    failed with them: the study goes on.

    Args:
        display: what shows it to a person; nothing does by default.

    Raises:
        Error: the run cannot be done.
        Interrupted: asked to stop, with everything saved.
    """
    display = display or Display(quiet=True)
    trials = [folder.record(id) for id in point.choose]
    before = [] if point.start is None else [folder.record(point.start)]
    if _all_failed(before) or _all_failed(trials):
        return _failed(point, "what it starts from failed")
    words = words_of(point, trials)
    out = folder.runs / point.id
    splits = {"train": data.subset(point.images, point.seed, point.rest)}
    if data.val is not None:
        splits["val"] = data.val
    start = None if point.start is None else folder.runs / point.start
    if start is not None:
        words["set"] = {k: v for k, v in words["set"].items() if not k.startswith("model.")}
    try:
        train(
            splits,
            out=out,
            weights=start,
            device=device,
            val_fraction=0.0,
            report=False,
            display=display,
            **words,
        )
    except Error:
        if not diverged(out):
            raise
        return _failed(point, "its numbers were no longer finite")
    about = json.loads((out / "config.json").read_text())["vitrail"]
    with display.busy("measuring"):
        metrics = {**_told(out, about), **_measured(point, definition, data, out)}
    if point.choose:
        metrics["chosen"] = chosen_settings(point, trials)
    return {"id": point.id, "config": point.to_json(), "seed": point.seed, "metrics": metrics}


def _all_failed(records: Sequence[Record]) -> bool:
    return bool(records) and all(record["metrics"].get("failed") for record in records)


def _failed(point: Point, why: str) -> Record:
    metrics = {"failed": why, "top1": None}
    return {"id": point.id, "config": point.to_json(), "seed": point.seed, "metrics": metrics}


def tidy(folder: StudyFolder, id: str, keep: str) -> None:
    """Remove what a recorded run no longer needs: its checkpoints, or all of it.

    Args:
        keep: ``models``, or ``nothing``.
    """
    run = folder.runs / id
    shutil.rmtree(run if keep == "nothing" else run / FOLDER, ignore_errors=True)


def _told(out: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What the run itself says of itself."""
    records = Records(out / "metrics.jsonl")
    ledger, best = about["ledger"], about["best"]
    losses = [record["loss"] for record in records.read("step")]
    last = [loss for loss in losses[-max(1, len(losses) // 10) :] if loss is not None]
    done = next(iter(records.read("done")))
    total = next(iter(records.read("start")))["steps"]
    val = about["metrics"].get("val", {})
    return {
        "val_top1": (best.get("val") or {}).get("top1"),
        FINAL: val.get("top1"),
        "val_loss": val.get("loss"),
        "best_step": best.get("step"),
        "train_loss": float(np.mean(last)) if last else None,
        "steps": done["steps"],
        "stopped_early": done["steps"] < total,
        "images": ledger["images"],
        "flops": ledger["flops"],
        "exaflops": ledger["exaflops"],
        "macs": ledger["macs_per_image"],
        "seconds": done["seconds"],
        "images_per_second": ledger["training_rate"],
        "device": ledger["device"],
        "threads": torch.get_num_threads(),
        # Whole, since the point says what was changed only; without places on this machine.
        "recipe": {k: v for k, v in about["recipe"].items() if k not in ("weights", "teacher")},
    }


def _measured(point: Point, definition: Definition, data: StudyData, out: Path) -> dict[str, Any]:
    """Accuracy on test, and few-shot accuracy, of the weights that the point means."""
    best = point.which == "best" and (out / BEST_FILE).exists()
    model = load_model(out, which="best" if best else "final")
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    if data.test is not None and point.test and model.num_classes:
        result = evaluate(
            model, eval_batches(data.test, model.preprocessing, BATCH), data.test.classes
        )
        found |= {"top1": result.top1, "top5": result.top5, "loss": result.loss, "n": result.n}
    if definition.shots and data.test is not None and point.test:
        pool, where = shot_pool(data, definition.shots)
        found["fewshot"] = _few_shots(model, definition.shots, pool, data.test)
        found["fewshot_from"] = where
    return found


def shot_pool(data: StudyData, shots: Sequence[int]) -> tuple[Source, str]:
    """The pictures that few shots are drawn from, the same for every run: (source, ``val``).

    Validation pictures, since no run learns from them. What a model has learned with its labels is
    told apart better than what is new to it, and a subset's share of the training pictures differs
    from size to size. Where validation has too few of a class it is ``train`` after all.
    """
    present = data.train.counts() > 0
    enough = data.val is not None and data.val.counts()[present].min() >= max(shots)
    source, where = (data.val, "val") if data.val is not None and enough else (data.train, "train")
    most = min(len(source), DRAWS * max(shots) * int(present.sum()))
    # A seed that no run has: a run's own subset would hold the whole pool.
    return source.subset(subset_rows(source, most, SHOT_SEED)), where


def _few_shots(
    model: ImageClassifier, shots: Sequence[int], pool: Source, test: Source
) -> dict[str, float]:
    """Linear accuracy on a few images a class."""
    least = int(pool.counts()[pool.counts() > 0].min())
    fitting = [shot for shot in shots if shot <= least]
    if not fitting:
        return {}
    x, tests = (extract(model, part, cache=False, batch_size=BATCH) for part in (pool, test))
    result = fewshot(x.values, x.labels, tests.values, tests.labels, shots=fitting, seeds=DRAWS)
    return {str(k): float(mean) for k, mean in zip(result.shots, result.mean, strict=True)}
