"""Watching a run on pictures that it does not learn.

By accuracy; by mean average precision where an image has any number of labels; and without labels
by the mean of the run's own loss.
"""

import contextlib
from collections.abc import Mapping

import torch

from vitrail.data.loader import eval_batches, shares
from vitrail.data.sources import Source
from vitrail.evaluation.accuracy import Accuracy, evaluate, merged
from vitrail.evaluation.multilabel import Answers, MultiLabel, ask, score_all
from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier
from vitrail.training.engine import Engine
from vitrail.training.objectives import Example
from vitrail.training.state import State


def mean_loss(state: State, source: Source, workers: int = 0) -> tuple[float, int]:
    """The objective's loss over all pictures of a source, and how many those are.

    The weights are the averaged ones, if any, within `State.averaged`. What is hidden of a picture
    is the same every time, so the figures of a run can be compared.

    Raises:
        Error: no picture can be read.
    """
    engine, preprocessing = state.engine, state.model.preprocessing
    training = state.model.training
    # `State.averaged` has done so where every process holds all of the weights.
    average = contextlib.nullcontext()
    if engine.sharded and state.ema is not None:
        average = state.ema.exchanged()
    total, count = 0.0, 0
    state.learner.eval()
    try:
        batch_size = max(64, state.recipe.batch_size)
        batches = eval_batches(source, preprocessing, batch_size, workers=workers)
        with average, torch.inference_mode(), engine.forward():
            for batch in batches:
                if not batch.keys:
                    continue
                pixels = engine.place(batch.images)
                example = Example(
                    engine.place(preprocessing.normalize(pixels)),
                    engine.place(batch.labels),
                    pixels=pixels,
                    epochs=batch.epochs,
                    indices=batch.indices,
                )
                total += float(state.learner(example).value) * len(batch.keys)
                count += len(batch.keys)
    finally:
        state.learner.train(training)
        engine.reshard(state.runner)
    if not count:
        raise Error(f"{source.name}: no picture can be read")
    # One figure for all: with another last digit one process alone might stop for want of patience.
    return engine.agree(lambda: total / count), count


def measure(
    model: ImageClassifier, source: Source, batch_size: int, workers: int, engine: Engine
) -> Accuracy | MultiLabel:
    """Accuracy of a live model on a source, by all processes together.

    Classes are matched by name. Each process measures its share; every process gets the whole.
    Where images have any number of labels, it is how well each class is found.

    Raises:
        Error: what `evaluate` or `evaluate_multi_label` raises, in every process.
    """
    batches = eval_batches(
        source,
        model.preprocessing,
        max(64, batch_size),
        workers=workers,
        rank=engine.rank,
        world=engine.world,
    )
    found: list[Accuracy | Answers | Error] = []
    if len(shares(len(source), engine.world)[engine.rank]):
        several = source.labels.ndim == 2
        try:
            found.append((ask if several else evaluate)(model, batches, source.classes))
        except Error as error:
            found.append(error)
    every = engine.gather(found)
    for one in every:
        if isinstance(one, Error):
            raise one
    answers = [one for one in every if isinstance(one, Answers)]
    if answers:
        return score_all(answers)
    return merged([one for one in every if isinstance(one, Accuracy)])


def figures_of(result: Accuracy | MultiLabel) -> dict[str, float | None]:
    """The figures of a measurement for the records."""
    if isinstance(result, Accuracy):
        return {"top1": result.top1, "top5": result.top5, "loss": result.loss}
    return {
        "mean_average_precision": result.mean_average_precision,
        "macro_f1": result.macro_f1,
        "loss": result.loss,
    }


def score_of(result: Accuracy | MultiLabel) -> float:
    """What a run is better by: the higher the better."""
    if isinstance(result, Accuracy):
        return result.top1
    precision = result.mean_average_precision  # none where no class is in any picture
    return 0.0 if precision is None else precision


def in_words(figures: Mapping[str, float | None]) -> str:
    """The figures of a measurement in a line for a person."""
    loss = f"loss {figures['loss']:.3f}"
    if "top1" in figures:
        return f"top-1 {100 * (figures['top1'] or 0):.2f} %, {loss}"
    if "mean_average_precision" in figures:
        precision = figures["mean_average_precision"]
        said = "none" if precision is None else f"{100 * precision:.2f} %"
        return f"mean average precision {said}, {loss}"
    return loss
