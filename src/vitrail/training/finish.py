"""The end of a run: the model folder that every verb opens, and the page that a person reads."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail import __version__
from vitrail.evaluation.accuracy import Accuracy
from vitrail.evaluation.multilabel import MultiLabel
from vitrail.kit.errors import listing
from vitrail.models.base import ImageClassifier
from vitrail.training.display import Display, duration
from vitrail.training.ledger import Ledger
from vitrail.training.output import Output
from vitrail.training.report import attention_looks, write_report
from vitrail.training.session import Session
from vitrail.training.validation import figures_of, in_words, mean_loss, measure
from vitrail.weights.folder import save_model
from vitrail.weights.read import BEST_FILE

PICTURES = 12  # attention pictures in a report


@dataclass(frozen=True)
class Run:
    """What a training run left behind.

    Args:
        folder: the model folder.
        steps: of the whole run.
        steps_this_run: taken by this call; 0 when there was nothing left to do.
        metrics: top-1, top-5 and loss by split, as far as there is one (fractions 0..1); of a run
            without labels the loss alone.
        seconds: of the whole run, restarts included.
        report: the page; None after a dry run.
    """

    folder: Path
    steps: int
    steps_this_run: int
    metrics: Mapping[str, Mapping[str, Any]]
    seconds: float
    report: Path | None

    @property
    def top1(self) -> float | None:
        """Accuracy on the test set, else on the validation set, else None."""
        return self._figure("top1")

    @property
    def score(self) -> float | None:
        """What the run is better by: `top1`, or the mean average precision of several labels."""
        return self._figure("mean_average_precision") if self.top1 is None else self.top1

    def _figure(self, name: str) -> float | None:
        known = (self.metrics.get(split, {}).get(name) for split in ("test", "val"))
        return next((figure for figure in known if figure is not None), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "folder": str(self.folder),
            "steps": self.steps,
            "steps_this_run": self.steps_this_run,
            "top1": self.top1,
            "metrics": {split: dict(figures) for split, figures in self.metrics.items()},
            "seconds": self.seconds,
            "report": None if self.report is None else str(self.report),
        }

    def summary(self) -> str:
        """A few lines for a person."""
        lines = [
            f"{split:<5} {in_words(figures).replace(', ', '   ')}   on {figures['n']:,} images"
            for split, figures in self.metrics.items()
        ]
        lines.append(f"model  {self.folder}   ({self.steps:,} steps, {duration(self.seconds)})")
        if self.report is not None:
            lines.append(f"report {self.report}")
        return "\n".join(lines)


def finish(
    session: Session,
    *,
    steps_before: int,
    ledger: Ledger,
    data: Mapping[str, Any],
    command: str,
    record: Mapping[str, Any] | None = None,
    report: bool = True,
) -> Run:
    """Measure the final weights, write the model folder and the report, and record the end.

    Args:
        session: at the end of its steps.
        steps_before: where this process began.
        ledger: what the run has cost.
        data: what it learned from, for the folder and the report.
        command: to be shown as the way to go on.
        record: more facts for the model folder.
        report: whether to write the page.
    """
    state, output, progress = session.state, session.output, session.state.progress
    recipe, workers = state.recipe, session.options.workers
    splits = {
        split: source
        for split, source in (("test", session.data.test), ("val", session.data.val))
        if source is not None
    }
    labelled = state.learner.objective.labelled
    metrics: dict[str, dict[str, float | None]] = {}
    if not labelled:  # while the objective's parts have the run's precision
        with state.averaged():
            for split, source in splits.items():
                loss, count = mean_loss(state, source, workers)
                metrics[split] = {"loss": loss, "n": count}
    model = state.final()
    results = {
        split: measure(model, source, recipe.batch_size, workers, state.engine)
        for split, source in (splits.items() if labelled else ())
    }
    metrics |= {split: {**figures_of(result), "n": result.n} for split, result in results.items()}
    if state.engine.first:
        details = {
            "name": recipe.model.name,
            "recipe": recipe.to_json(),
            "data": dict(data),
            "metrics": metrics,
            "best": {"step": progress.best_step, "val": _best(session)},
            "ledger": ledger.to_json(),
            "skipped": progress.skipped,
            "several_labels": session.data.train.multi_label,
            **(record or {}),
        }
        if progress.best_step == progress.step:
            (output.path / BEST_FILE).unlink(missing_ok=True)  # it is the final one
        save_model(model, output.path, model.labels, details=details)
        if report:
            _report(session, model, results, ledger, data, command)
    unread = [f"{key} ({reason})" for key, reason in progress.skipped.items()]
    if unread:
        session.display.say(
            f"{len(unread):,} picture{'s' * (len(unread) > 1)} could not be read in training; "
            "left out: "
            f"{listing(unread, 3)}"
        )
    run = Run(
        folder=output.path,
        steps=progress.step,
        steps_this_run=progress.step - steps_before,
        metrics=metrics,
        seconds=session.seconds(),
        report=output.path / "report.html" if report else None,
    )
    output.metrics.write(
        "done",
        steps_this_run=run.steps_this_run,
        steps=run.steps,
        top1=run.top1,
        seconds=run.seconds,
        metrics=metrics,
        time=time.time(),
    )
    return run


def _best(session: Session) -> dict[str, float | None]:
    """The best validation figure: accuracy, mean average precision where there are several labels,
    or the loss of an objective without any.
    """
    best = session.state.progress.best
    if session.state.learner.objective.labelled:
        several = session.data.train.multi_label
        return {"mean_average_precision" if several else "top1": best}
    return {"loss": None if best is None else -best}


def nothing_left(output: Output, end: Mapping[str, Any], display: Display) -> Run:
    """The run that is there already, when its command is given again.

    Args:
        end: its last record.
    """
    display.say(f"{output.path} holds this very run, finished after {end['steps']:,} steps")
    fields = {key: value for key, value in end.items() if key != "kind"}
    output.metrics.write("done", **{**fields, "steps_this_run": 0})
    return Run(
        folder=output.path,
        steps=end["steps"],
        steps_this_run=0,
        metrics=end["metrics"],
        seconds=end["seconds"],
        report=output.path / "report.html",
    )


def _report(
    session: Session,
    model: ImageClassifier,
    results: Mapping[str, Accuracy | MultiLabel],
    ledger: Ledger,
    data: Mapping[str, Any],
    command: str,
) -> None:
    state, progress = session.state, session.state.progress
    split = next(iter(results), "test")
    result = results.get(split)
    attention = []
    if isinstance(result, Accuracy):
        attention = attention_looks(model, result, most=PICTURES)
    write_report(
        session.output.path / "report.html",
        model=state.recipe.model.name,
        records=session.output.metrics.read(),
        result=result,
        split=split,
        weights="the averaged weights of the last step"
        if state.ema is not None
        else "the weights of the last step",
        parameters=sum(p.numel() for p in model.parameters()),
        attention=attention,
        data={**data, "skipped": list(progress.skipped.items())},
        settings=state.recipe.to_json(),
        ledger=ledger.to_json(),
        command=command,
        footer=f"Vitrail {__version__}",
    )
