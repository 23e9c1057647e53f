"""The state of a run: the model, what moves it, and how far it has come.

Together with the recipe and the data this is all that decides the next step, so a checkpoint of
it and nothing else makes a resumed run equal to one that was never stopped.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vitrail.models.base import ImageClassifier
from vitrail.models.lora import merged
from vitrail.models.parts import drop_paths
from vitrail.models.zoo import describe
from vitrail.training.checkpoint import (
    Checkpoint,
    named,
    optimizer_tensors,
    restore_optimizer,
    unnamed,
)
from vitrail.training.ema import EMA
from vitrail.training.engine import Engine
from vitrail.training.objectives import Learner, Objective, make_objective
from vitrail.training.optim import make_optimizer
from vitrail.training.recipe import Recipe


@dataclass
class Progress:
    """The numbers that go on counting over restarts.

    Args:
        step: steps done.
        images: seen in training.
        seconds: spent, in all restarts together.
        best: the best validation accuracy (top-1) and the step it was measured after; without
            labels, minus the lowest loss.
        stale: looks at the validation set since then.
        bad_steps: steps in a row that were not applied because a number was not finite.
        skipped: reason by key of the training pictures that could not be read.
    """

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    bad_steps: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def over(self, patience: int | None) -> bool:
        """Whether it is time to stop early."""
        return patience is not None and self.stale >= patience


class State:
    """A model in training.

    Args:
        recipe: what the run is.
        model: with its starting weights; moved to the engine's device and precision.
        engine: where it runs.
        objective: what it is taught; None for the one that the recipe alone decides.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: ImageClassifier,
        engine: Engine,
        objective: Objective | None = None,
    ):
        self.recipe = recipe
        self.engine = engine
        self.model = model.to(engine.device, engine.dtype)
        self.model.checkpointing = recipe.checkpointing
        objective = objective or make_objective(recipe, self.model)
        objective.to(engine.device, engine.dtype)
        self.optimizer = make_optimizer(self.model, recipe.optim, objective)
        self.ema = None
        if recipe.ema is not None:
            self.ema = EMA(self.model, recipe.ema, recipe.ema_warmup)
        self.progress = Progress()
        self.learner = Learner(self.model, objective, recipe.compile)
        self.trained = [p for p in self.learner.parameters() if p.requires_grad]
        self.drop_sites = len(drop_paths(self.model))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this the model has the weights to evaluate and keep: the averaged ones, if any,
        with what LoRA adds to them."""
        average = contextlib.nullcontext() if self.ema is None else self.ema.applied()
        with average, merged(self.model):
            yield

    def checkpoint(self) -> Checkpoint:
        """Everything of the run, to be saved."""
        tensors = named("model", self.model.state_dict()) | optimizer_tensors(self.optimizer)
        tensors |= named("objective", self.learner.objective.state_dict())
        if self.ema is not None:
            tensors |= named("ema", self.ema.state())
        state = {
            "progress": asdict(self.progress),
            "scaler": self.engine.scaler.state_dict(),
            # What was loaded may have brought its own numerics and preprocessing.
            "model": describe(self.model),
        }
        return Checkpoint(self.progress.step, tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Be as the run was when this checkpoint was made."""
        self.model.load_state_dict(unnamed("model", checkpoint.tensors))
        self.learner.objective.load_state_dict(unnamed("objective", checkpoint.tensors))
        restore_optimizer(self.optimizer, checkpoint.tensors)
        if self.ema is not None:
            self.ema.load(unnamed("ema", checkpoint.tensors))
        state: Mapping[str, Any] = checkpoint.state
        self.progress = Progress(**state["progress"])
        if state["scaler"]:
            self.engine.scaler.load_state_dict(state["scaler"])
