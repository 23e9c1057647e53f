"""A few real training steps on random pictures, timed and weighed.

The steps are those of the loop (`engine`, `optim`, `ema`, `objectives`), without the data. Memory
on a GPU is what torch allocated at the most; on the CPU it is by how much the process grew, so
that a trial there wants a process of its own: `in_a_process`, or

    echo '{"model": "vit_tiny_patch16_224", "batch_size": 8}' | python -m vitrail.training.trial
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier, Size
from vitrail.models.cost.memory import Step
from vitrail.models.zoo import create_model
from vitrail.training.ema import EMA
from vitrail.training.engine import Engine
from vitrail.training.objectives import Example, Learner, Supervised
from vitrail.training.optim import make_optimizer
from vitrail.training.recipe import Optim

SMALLEST = "vit_mu_patch7_28"
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Trial:
    """What some steps took.

    Args:
        seconds: of the quickest step.
        images_per_second: of the quickest step.
        inference_images_per_second: of the same batch without a way back.
        bytes: the most memory there was at once; None where this system does not say.
        growth: on the CPU, the same as ``bytes``; on a GPU what the process reserved there.
    """

    seconds: float
    images_per_second: float
    inference_images_per_second: float
    bytes: int | None
    growth: int | None


def trial(
    model: str,
    step: Step,
    image_size: Size | None = None,
    *,
    device: str | None = None,
    steps: int = 3,
    compile: bool = False,
    **config: Any,
) -> Trial:
    """Train a model of the zoo for a few steps on random pictures, in this process.

    Args:
        step: what a step is; ``batch_size`` pictures a pass.
        steps: how many; the first is not timed.
        config: fields of the model's config, such as ``drop_path``.

    Raises:
        torch.OutOfMemoryError: on a GPU.
        Error: an unknown model, or a size that it cannot take.
    """
    engine = Engine(device, step.precision)
    cuda = engine.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(engine.device)
    else:
        forget_peak()
    before = None if cuda else resident("VmRSS")
    built = create_model(model, image_size=image_size, **config)
    built = built.to(engine.device, engine.dtype).train()
    built.checkpointing = step.checkpointing
    optimizer = make_optimizer(built, Optim(name=step.optimizer))
    ema = EMA(built, 0.9999) if step.ema else None
    learner = Learner(built, Supervised(), compile)
    trained = [p for p in learner.parameters() if p.requires_grad]
    height, width = built.preprocessing.size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(step.batch_size, 3, height, width, generator=generator)
    batch = Example(engine.place(images), engine.place(torch.zeros(len(images), dtype=torch.long)))
    del images
    quickest = float("inf")
    for number in range(max(2, steps)):
        began = time.perf_counter()
        for _ in range(step.accumulation):
            with engine.forward():
                loss = learner(batch)
            engine.backward(loss.value / step.accumulation)
            del loss
        engine.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        engine.scaler.step(optimizer)
        engine.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if ema is not None:
            ema.update(number)
        if cuda:
            torch.cuda.synchronize(engine.device)
        if number:
            quickest = min(quickest, time.perf_counter() - began)
    if cuda:
        most = torch.cuda.max_memory_allocated(engine.device)
        growth = torch.cuda.max_memory_reserved(engine.device)
    else:
        after = resident("VmHWM")
        most = growth = None if before is None or after is None else after - before
    rate = step.batch_size * step.accumulation / quickest
    return Trial(quickest, rate, step.batch_size / _inference(engine, built, batch), most, growth)


def _inference(engine: Engine, model: ImageClassifier, batch: Example) -> float:
    """Seconds of the quicker of two forward passes."""
    taken = []
    model.eval()
    for _ in range(2):
        began = time.perf_counter()
        with torch.inference_mode(), engine.forward():
            model(batch.images)
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        taken.append(time.perf_counter() - began)
    return min(taken)


def in_a_process(
    model: str,
    step: Step,
    image_size: Size | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> Trial:
    """`trial` in a process of its own, whose memory nothing else has used.

    Args:
        environment: variables that it gets besides this process's own.
        options: the rest of `trial`'s.

    Raises:
        Error: the process did not come to its end (out of memory, most of the time).
    """
    asked = {"model": model, "image_size": image_size, **asdict(step), **options}
    words = [sys.executable, "-m", "vitrail.training.trial"]
    variables = {**os.environ, **(environment or {})}
    ran = subprocess.run(
        words, input=json.dumps(asked), capture_output=True, text=True, env=variables
    )
    if ran.returncode:
        last = ran.stderr.strip().splitlines()[-1:] or ["it was ended from outside"]
        raise Error(f"a trial of {model} failed: {last[0]}")
    return Trial(**json.loads(ran.stdout))


def resident(field: str) -> int | None:
    """Bytes of a field of this process's status: ``VmRSS`` now, ``VmHWM`` at the most."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
    return None


def forget_peak() -> None:
    """Begin the ``VmHWM`` of this process anew, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Read what is asked as JSON, and print the trial as JSON."""
    asked = json.load(sys.stdin)
    fields = {name: asked.pop(name) for name in Step.__dataclass_fields__ if name in asked}
    step = Step(**fields)
    # What torch and its libraries take on first use is not the model's.
    trial(SMALLEST, replace(step, batch_size=1), device=asked.get("device"))
    found = trial(asked.pop("model"), step, **asked)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
