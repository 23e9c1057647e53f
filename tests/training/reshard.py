"""Run by torchrun: open the newest checkpoint of one run's folder and save it again in another.

``python -m tests.training.reshard FROM TO ddp|fsdp PRECISION``
"""

import sys
from pathlib import Path

from vitrail.models.zoo import from_description
from vitrail.training.checkpoint import Checkpoints
from vitrail.training.engine import Engine
from vitrail.training.recipe import Recipe
from vitrail.training.state import State

if __name__ == "__main__":
    source, target, parallel, precision = sys.argv[1:]
    engine = Engine("cpu", precision, parallel)
    checkpoint, _ = Checkpoints(Path(source), engine=engine).newest()
    model = from_description(checkpoint.state["model"])
    with engine.together():
        state = State(Recipe(precision=precision), model, engine)
        state.restore(checkpoint)
        Checkpoints(Path(target), engine=engine).save(state.checkpoint())
