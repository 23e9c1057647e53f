"""Watching a run that accuracy does not fit, on pictures it does not learn.

Without labels it is the mean of its own loss; with several labels a picture it is the ranking of
each class too.
"""

import torch

from vitrail.data.loader import eval_batches
from vitrail.data.sources import Source
from vitrail.evaluation.multilabel import evaluate_multi_label
from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier
from vitrail.training.objectives import Example
from vitrail.training.state import State


def mean_loss(state: State, source: Source, workers: int = 0) -> tuple[float, int]:
    """The objective's loss over all pictures of a source, and how many those are.

    What is hidden of a picture is the same every time, so the figures of a run can be compared.

    Raises:
        Error: no picture can be read.
    """
    engine, preprocessing = state.engine, state.model.preprocessing
    training = state.model.training
    total, count = 0.0, 0
    state.learner.eval()
    try:
        batch_size = max(64, state.recipe.batch_size)
        batches = eval_batches(source, preprocessing, batch_size, workers=workers)
        with torch.inference_mode(), engine.forward():
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
    if not count:
        raise Error(f"{source.name}: no picture can be read")
    return total / count, count


def ranking(
    model: ImageClassifier, source: Source, batch_size: int, workers: int = 0
) -> dict[str, float | None]:
    """How well a live model finds each class of a source with several labels a picture.

    Every process measures all of it.

    Returns:
        ``mean_average_precision`` (None where no class has a picture), ``macro_f1``, ``micro_f1``
        and ``n``.

    Raises:
        Error: what `evaluate_multi_label` raises.
    """
    batches = eval_batches(source, model.preprocessing, max(64, batch_size), workers=workers)
    found = evaluate_multi_label(model, batches, source.classes)
    return {
        "mean_average_precision": found.mean_average_precision,
        "macro_f1": found.macro_f1,
        "micro_f1": found.micro_f1,
        "n": found.n,
    }
