"""Watching a run that has no labels: the mean of its own loss over pictures it does not learn."""

import torch

from vitrail.data.loader import eval_batches
from vitrail.data.sources import Source
from vitrail.kit.errors import Error
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
