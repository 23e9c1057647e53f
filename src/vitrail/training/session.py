"""A session: one process's part of a run, and what it may be told that cannot change the result."""

import time
from dataclasses import dataclass, field

from vitrail.data.sources import Source
from vitrail.data.stream import Stream
from vitrail.kit.errors import Error
from vitrail.training.checkpoint import Checkpoints
from vitrail.training.display import Display
from vitrail.training.optim import Rates
from vitrail.training.output import Output
from vitrail.training.recipe import Recipe
from vitrail.training.state import State

MAX_CORRUPT = 0.05


@dataclass(frozen=True)
class Data:
    """What a run learns from and is measured on; `val` and `test` may be missing.

    `unreadable` are (key, reason) of the training pictures that were left out from the start.
    """

    train: Source | Stream
    val: Source | None = None
    test: Source | None = None
    unreadable: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run may be told that cannot change its result.

    Args:
        save_every: steps between checkpoints; None for about ten in a run.
        keep: how many of the newest checkpoints to keep.
        workers: processes that decode, for each process that trains; 0 for that one itself.
        record_keys: whether to write the order of the samples to ``keys.jsonl``.
        accumulate: micro-batches that each process cuts its share of a batch into. It does change
            what dropout draws, and what batch norm takes for a batch.
        max_corrupt: the share of the training pictures that may turn out unreadable.
    """

    save_every: int | None = None
    keep: int = 2
    workers: int = 0
    record_keys: bool = False
    accumulate: int = 1
    max_corrupt: float = MAX_CORRUPT

    def __post_init__(self):
        for name in ("keep", "accumulate", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise Error(f"{name} must be at least 1, not {value}")
        if self.workers < 0:
            raise Error(f"workers cannot be {self.workers}")
        if not 0 <= self.max_corrupt <= 1:
            raise Error(f"max_corrupt is a share from 0 to 1, not {self.max_corrupt}")


@dataclass(frozen=True)
class Lengths:
    """The lengths of a run, in steps."""

    total: int
    warmup: int
    eval_every: int
    save_every: int


@dataclass
class Session:
    """One process's part of a run: its state, and what it works with.

    Args:
        state: where the run stands; changed in place.
        data: what it learns from.
        output: where records, weights and checkpoints go.
        options: what cannot change the result.
        display: what a person sees.
    """

    state: State
    data: Data
    output: Output
    options: Options
    display: Display
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        recipe, engine = self.state.recipe, self.state.engine
        examples = len(self.data.train)
        self.lengths = lengths(recipe, examples, self.options)
        self.rates = Rates(recipe, examples, self.lengths.total)
        self.before = self.state.progress.seconds
        self.checkpoints = Checkpoints(self.output.path, self.options.keep, engine)
        share = recipe.batch_size // engine.world
        if share < self.options.accumulate:
            parts = f"{engine.world} processes x {self.options.accumulate} micro-batches"
            raise Error(
                f"a batch of {recipe.batch_size} cannot be cut into {parts}; give a --batch-size "
                f"of at least {engine.world * self.options.accumulate}"
            )

    @property
    def accumulate(self) -> int:
        """Micro-batches a step: as asked for, or as many as memory was found to need."""
        share = self.state.recipe.batch_size // self.state.engine.world
        return min(share, max(self.options.accumulate, self.state.progress.accumulate))

    def seconds(self) -> float:
        """Spent on the run so far, in all restarts together."""
        return self.before + time.monotonic() - self.began


def lengths(recipe: Recipe, examples: int, options: Options) -> Lengths:
    """How long a recipe runs on this many examples.

    Raises:
        Error: a run of no steps.
    """
    if recipe.duration.value == 0:
        raise Error(f"a run of {recipe.duration} has no step; ask for at least one")
    total = max(1, recipe.duration.steps(examples, recipe.batch_size))
    return Lengths(
        total=total,
        warmup=recipe.schedule.warmup.steps(examples, recipe.batch_size, total),
        eval_every=max(1, recipe.eval_every.steps(examples, recipe.batch_size, total)),
        save_every=options.save_every or max(1, min(500, total // 10)),
    )
