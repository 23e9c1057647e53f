"""Which step of making a bundle lost the accuracy: the figure after each of them, in order."""

import itertools
from collections.abc import Sequence

import numpy as np

from vitrail.export.check import Gate, Logits, Samples, Step, folded_of, measured, reference_of
from vitrail.export.fold import fold
from vitrail.export.merging import fold_merging
from vitrail.models.base import ImageClassifier

MERGING = "merging tokens"
Chain = Sequence[tuple[str, Logits]]


def explained(gate: Gate, samples: Samples, chain: Chain, labels: Sequence[str]) -> Gate:
    """A finding with what each step did; where it refuses, with the one to blame.

    Args:
        chain: the model first and the bundle last, each step with all before it.
        labels: of the model.
    """
    steps, last = [], None
    for name, logits in chain:
        rows, figure = measured(samples, logits, labels)
        moved = 0.0 if last is None else float(np.abs(rows - last).max())
        steps.append(Step(name, figure, moved))
        last = rows
    return gate.walked(steps, None if gate.passed else blamed(steps))


def explained_merging(
    gate: Gate, samples: Samples, model: ImageClassifier, tokens: int, labels: Sequence[str]
) -> Gate:
    """`explained` for a torch bundle that merges tokens."""
    chain = [
        ("the model", reference_of(model, model.preprocessing)),
        ("folding", folded_of(fold(model))),
        (MERGING, folded_of(fold_merging(model, tokens))),
    ]
    return explained(gate, samples, chain, labels)


def blamed(steps: Sequence[Step]) -> str | None:
    """The step that lost most, in words; where no figure fell, the one that moved logits most."""
    pairs = list(itertools.pairwise(steps))
    if not pairs:
        return None
    before, after = max(pairs, key=lambda pair: pair[0].figure - pair[1].figure)
    if before.figure > after.figure:
        return (
            f"what loses most is {after.name}: {100 * before.figure:.2f} % before it, "
            f"{100 * after.figure:.2f} % after"
        )
    _, after = max(pairs, key=lambda pair: pair[1].moved)
    return f"what moves the logits most is {after.name}: by up to {after.moved:.2g}"
