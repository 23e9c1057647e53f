"""The state of a run: the model, what moves it, and how far it has come.

Together with the recipe and the data this is all that decides the next step, so a checkpoint of
it and nothing else makes a resumed run equal to one that was never stopped.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from vitrail.models.base import ImageClassifier
from vitrail.models.lora import merge, merged
from vitrail.models.parts import drop_paths
from vitrail.models.zoo import describe
from vitrail.training.batchnorm import statistics_of
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
        rollbacks: how often the run went back to a checkpoint because of such a step.
        passed_over: batches of the stream that such a return left out.
        accumulate: micro-batches a step that memory was found to have room for; 0 if it was never
            found too small.
        skipped: reason by key of the training pictures that could not be read.
    """

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    bad_steps: int = 0
    rollbacks: int = 0
    passed_over: int = 0
    accumulate: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def over(self, patience: int | None) -> bool:
        """Whether it is time to stop early."""
        return patience is not None and self.stale >= patience

    @property
    def batches(self) -> int:
        """Batches of the stream that are behind."""
        return self.step + self.passed_over


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
        self.learner = Learner(self.model, objective, recipe.compile)
        self._plain = copy.deepcopy(self.model).cpu() if engine.sharded else None
        # First of all, since parameters may become shares.
        self.runner = engine.wrap(self.learner, varies=recipe.tuning.part == "head_then_all")
        self.optimizer = make_optimizer(self.model, recipe.optim, objective)
        engine.suit(self.optimizer)
        self.ema = None
        if recipe.ema is not None:
            self.ema = EMA(self.model, recipe.ema, recipe.ema_warmup)
        self.progress = Progress()
        self.trained = [p for p in self.learner.parameters() if p.requires_grad]
        self.drop_sites = len(drop_paths(self.model))
        self.statistics = statistics_of(self.model)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[ImageClassifier]:
        """The model with the weights to evaluate and keep, whole: the averaged ones, if any, with
        what LoRA adds to them.

        Where the weights are shared out, that is a second model, and every process must ask.
        """
        if self._plain is not None:
            twin = self._gathered(self._plain)
            merge(twin)
            yield twin
            return
        average = contextlib.nullcontext() if self.ema is None else self.ema.applied()
        with average, merged(self.model):
            yield self.model

    def final(self) -> ImageClassifier:
        """The model at the end of its training, in float32, with the weights to keep, for good."""
        if self._plain is not None:
            model = self._gathered(self._plain)
        else:
            model = self.model
            if self.ema is not None:
                model.load_state_dict({**model.state_dict(), **self.ema.state()})
        merge(model)
        return model.float().eval()

    def _gathered(self, plain: ImageClassifier) -> ImageClassifier:
        """A whole model with the weights of now; ``plain`` is as it was before it was shared."""
        twin = copy.deepcopy(plain).to(self.engine.device)
        tensors = {**self.model.state_dict(), **({} if self.ema is None else self.ema.state())}
        twin.load_state_dict({name: self.engine.whole(t.detach()) for name, t in tensors.items()})
        return twin

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
        """Be as the run was when this checkpoint was made, by whatever number of processes."""
        if checkpoint.shares is None:
            tensors = {
                name: self.engine.share(tensor, self._like(name, tuple(tensor.shape)))
                for name, tensor in checkpoint.tensors.items()
            }
        else:
            tensors = self.engine.load_shares(checkpoint.shares, self._like)
        self.model.load_state_dict(unnamed("model", tensors))
        self.learner.objective.load_state_dict(unnamed("objective", tensors))
        restore_optimizer(self.optimizer, tensors)
        if self.ema is not None:
            self.ema.load(unnamed("ema", tensors))
        state: Mapping[str, Any] = checkpoint.state
        self.progress = Progress(**state["progress"])
        if state["scaler"]:
            self.engine.scaler.load_state_dict(state["scaler"])

    def _like(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """A live tensor that is shared out as the one of this name in a checkpoint is."""
        if not self.engine.sharded:
            return None
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            order = [p for group in self.optimizer.param_groups for p in group["params"]]
            found = order[int(rest.partition(".")[0])]
        else:
            owner = self.learner.objective if kind == "objective" else self.model
            try:
                found = owner.get_parameter(rest)
            except AttributeError:  # a buffer: those are whole everywhere
                return None
        return found if tuple(found.shape) == shape else None
