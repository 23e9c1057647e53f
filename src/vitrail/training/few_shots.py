"""Few-shot accuracy while a run pre-trains: the ViT paper's way to see whether it gets anywhere.

Its own loss says little of how well a model will transfer, and with masked patches nothing that can
be compared. Every so many steps the averaged weights make features of another, small data set,
and a ridge regression on a few images a class says what they are worth (facts of the protocol:
`evaluation.fewshot`). It changes nothing of the run.
"""

from dataclasses import dataclass

from vitrail.data.sources import Source
from vitrail.evaluation.features import extract
from vitrail.evaluation.fewshot import SHOTS, fewshot
from vitrail.kit.errors import Error
from vitrail.training.session import Session

SEEDS = 3


@dataclass(frozen=True)
class FewShots:
    """What a run is watched on.

    Args:
        train, test: with the same classes; shots are taken from the one, accuracy is on the other.
        every: steps between two looks.
    """

    train: Source
    test: Source
    every: int

    def __post_init__(self):
        if self.every < 1:
            raise Error(f"few-shot accuracy is measured every step at the most, not {self.every}")
        if self.train.labels.ndim > 1:
            raise Error(f"{self.train.name}: few-shot accuracy takes one label a picture")

    def due(self, step: int, at_end: bool) -> bool:
        """Whether a look follows on this step."""
        return at_end or step % self.every == 0

    def shots(self) -> tuple[int, ...]:
        """The usual numbers of images a class, as far as every class has so many."""
        counts = self.train.counts()
        least = counts[counts > 0].min()
        return tuple(shot for shot in SHOTS if shot <= least)


def look_at_few_shots(session: Session, watched: FewShots) -> None:
    """Measure, and record as ``fewshot``: ``step``, and accuracy as ``1-shot``, ``5-shot``, ...

    Every process measures the same, so that none of them waits for another.
    """
    state = session.state
    batch_size, workers = max(64, state.recipe.batch_size), session.options.workers
    training = state.model.training
    try:
        with state.averaged() as model:
            (x, y), (test_x, test_y) = (
                (found.values, found.labels)
                for source in (watched.train, watched.test)
                for found in (
                    extract(model, source, cache=False, batch_size=batch_size, workers=workers),
                )
            )
            result = fewshot(x, y, test_x, test_y, shots=watched.shots(), seeds=SEEDS)
    except Error as error:  # the run has lost nothing by it
        session.display.say(f"step {state.progress.step:,}: no few-shot accuracy, because {error}")
        return
    finally:
        state.model.train(training)
    means = {f"{k}-shot": float(m) for k, m in zip(result.shots, result.mean, strict=True)}
    session.output.metrics.write("fewshot", step=state.progress.step, **means)
    said = ", ".join(f"{name} {100 * mean:.1f} %" for name, mean in means.items())
    session.display.say(f"step {state.progress.step:,}: {watched.test.name}: {said}")
