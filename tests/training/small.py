"""A run of a tiny model on a few random pictures, in this process, at the level of the loop."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.data.examples import ArraySource
from vitrail.models.zoo import create_model
from vitrail.training.display import Display
from vitrail.training.engine import Engine
from vitrail.training.objectives import Objective
from vitrail.training.output import Output
from vitrail.training.recipe import Duration, Optim, Recipe
from vitrail.training.session import Data, Options, Session
from vitrail.training.state import State

CLASSES = 3
VIT = ("vit_mu_patch7_28", {"depth": 1, "drop_path": 0.1})
CVT = ("cvt_13_224", {"depths": (1, 1, 1), "widths": (16, 32, 32), "heads": (1, 1, 2)})


def pictures(n: int = 48, white: tuple[int, ...] = (), side: int = 28) -> ArraySource:
    """n random pictures; those at the places of ``white`` are white all over."""
    images = np.random.default_rng(0).integers(0, 200, (n, side, side, 3), dtype=np.uint8)
    images[list(white)] = 255
    return ArraySource(images, np.arange(n) % CLASSES, ["a", "b", "c"])


def session(
    out: Path,
    source: ArraySource,
    *,
    objective: Objective | None = None,
    model: tuple[str, dict[str, Any]] = VIT,
    options: Options | None = None,
    steps: int = 12,
    **changes: Any,
) -> Session:
    """A session at its first step, or where the folder's newest checkpoint stands."""
    name, config = model
    torch.manual_seed(0)
    built = create_model(name, CLASSES, source.image(0).shape[0], **config)
    built.set_labels(source.classes)
    recipe = Recipe(
        **{
            "duration": Duration(steps),
            "batch_size": 8,
            "optim": Optim(lr=1e-3),
            "ema": 0.9,
            **changes,
        }
    )
    state = State(recipe, built, Engine("cpu", recipe.precision))
    if objective is not None:
        state.learner.objective = objective
    output = Output(out)
    if not (out / "checkpoints").exists():
        out.mkdir(exist_ok=True)
        output.claim({}, {})
    made = Session(
        state, Data(source), output, options or Options(save_every=4), Display(quiet=True)
    )
    checkpoint, _ = made.checkpoints.newest()
    if checkpoint is not None:
        state.restore(checkpoint)
    return made


def weights(state: State) -> dict[str, Tensor]:
    """Copies of everything that a step may change: weights, averages, optimiser, statistics."""
    return {name: tensor.clone() for name, tensor in state.checkpoint().tensors.items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


class CutOff(Display):
    """Ends the loop after so many steps, as a kill would: nothing is saved."""

    class Now(Exception):
        pass

    def __init__(self, steps: int):
        super().__init__(quiet=True)
        self.left = steps

    def step(self, *figures) -> None:
        self.left -= 1
        if not self.left:
            raise self.Now
