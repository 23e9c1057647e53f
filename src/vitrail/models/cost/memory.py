"""How much memory a training step takes, by formula: nothing is built and nothing is run.

The step is walked through layer by layer. Going forward, each layer leaves what it keeps for the
way back (`Layer.activations`); going back, that is freed as the gradients of the parameters come
in. At each layer there are also the gradients that are on their way: of what went into the layer
and of what left it. The peak is the largest sum that the walk meets:

    weights + averages + optimiser's states + pictures
    + kept by the layers up to this one + gradients of the parameters from this one on
    + gradients on their way

Under activation checkpointing a block keeps its input alone, and the walk goes forward through the
block once more before it goes back. Under 16-bit autocast what is kept has 2 bytes an element but
for the norms' inputs, and each weight has a 16-bit copy from its use to its gradient (so has a
standardised filter in any precision). Where gradients are accumulated all of them are there from
the second pass on. Stochastic depth keeps less than this; how much is up to chance.

It is the sum of what tensors hold in eager mode. An allocator rounds up and fragments, and
libraries use scratch space: `docs/planning.md` has the formula beside what was measured.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from vitrail.models.base import ImageClassifier, ModelConfig, Size
from vitrail.models.cost import cost
from vitrail.models.cost.anatomy import Layer

BYTES = {"fp32": 4, "bf16": 4, "fp16": 4, "fp64": 8}  # of a weight
HALF = ("bf16", "fp16")
# Numbers that an optimiser keeps for each one that it trains; Adafactor's are sums over rows and
# columns, a few thousandths of a model.
STATES = {"adamw": 2.0, "sgd": 1.0, "lamb": 2.0, "adafactor": 0.0}
# glibc's malloc keeps the space of tensors that come and go, up to 32 MiB each, and what comes next
# does not quite fit into it: a process on the CPU is larger than its tensors by about as much as
# the largest block keeps, so many times. Measured (benchmarks/plan.py), not derived.
HELD = {False: 2.0, True: 2.5}  # without and with checkpointing
LARGEST_HELD = 32 * 2**20
# Where a layer belongs to a block that is checkpointed; a first stage is 0 on the tape and may be
# 1 in the state dict.
BLOCK = re.compile(
    r"(?:stages?\.?(?P<s0>\d+)\.)?blocks\.(?P<b0>\d+)\."
    r"|(?:block|layer)(?P<s1>\d+)\.(?P<b1>\d+)\."
    r"|tokens_to_token\.attention(?P<t1>\d+)\.|tokens\.(?P<t0>\d+)\."
)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a training step on one device.

    Attributes:
        weights, averages, states, gradients: of all parameters; averages are the EMA's, states
            the optimiser's.
        pictures: the batch that goes in.
        activations: kept for the way back, at the end of the way forward.
        peak: the most there is at once.
        evaluation: the most there is at once when 64 pictures are evaluated.
        held: what glibc's malloc is taken to hold on to beside them; see `HELD`.
    """

    weights: int
    averages: int
    states: int
    gradients: int
    pictures: int
    activations: int
    peak: int
    evaluation: int
    held: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step is, as far as its memory depends on it.

    Args:
        batch_size: pictures in one pass on one device.
        precision: ``fp32``, ``fp64``, or ``bf16``/``fp16`` for autocast over float32 weights.
        optimizer: one of `STATES`.
        checkpointing: whether blocks are computed again on the way back.
        ema: whether an average of the weights is kept.
        accumulation: passes a step; from 2 on gradients stay between them.
        shards: over how many devices weights, averages, states and gradients are shared out
            (FSDP, which gathers a block's weights when it needs them); 1 for none.
    """

    batch_size: int = 64
    precision: str = "fp32"
    optimizer: str = "adamw"
    checkpointing: bool = False
    ema: bool = True
    accumulation: int = 1
    shards: int = 1


def memory(
    model: ImageClassifier | ModelConfig, step: Step, image_size: Size | None = None
) -> Memory:
    """What a training step takes, all parameters being trained.

    Args:
        model: a model of the zoo, on any device, or its config.
        step: what is asked of it.
        image_size: pixels, or (height, width); None for the model's own.

    Raises:
        Error: the model cannot take pictures of that size.
    """
    layers = cost(model, image_size).layers
    wide = BYTES[step.precision]
    numbers = sum(layer.parameters for layer in layers)
    pictures = step.batch_size * prod(layers[0].shape) * wide
    weights = numbers * wide // step.shards
    states = round(weights * STATES[step.optimizer])
    averages = weights * step.ema
    walk = _Walk(layers, step)
    base = weights + averages + states + pictures
    # FSDP gathers one block ahead of the one that computes.
    largest = max((sum(p.parameters for p in group) for group in walk.groups), default=0)
    gathered = 2 * largest * wide if step.shards > 1 else 0
    return Memory(
        weights=weights,
        averages=averages,
        states=states,
        gradients=weights,
        pictures=pictures,
        activations=walk.kept,
        peak=base + gathered + max(walk.peak, weights),
        evaluation=weights + averages + states + gathered + walk.evaluation(64),
        held=round(HELD[step.checkpointing] * walk.largest_block()),
    )


def block_of(name: str) -> tuple[str, int, int] | None:
    """The block that a layer of this name belongs to, as its kind, stage and index, if any."""
    found = BLOCK.search(name)
    if found is None:
        return None
    if found["t1"] or found["t0"]:
        return "tokens", 0, int(found["t0"] or int(found["t1"]) - 1)
    if found["s1"]:
        return "stages", int(found["s1"]) - 1, int(found["b1"])
    return (
        ("blocks", 0, int(found["b0"]))
        if found["s0"] is None
        else (
            "stages",
            int(found["s0"]),
            int(found["b0"]),
        )
    )


def grouped(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers in order, those of one block together and every other one by itself."""
    groups: list[list[Layer]] = []
    before = None
    for layer in layers:
        at = block_of(layer.name)
        if at is not None and at == before:
            groups[-1].append(layer)
        else:
            groups.append([layer])
        before = at
    return groups


class _Walk:
    """The walk through a step: what it keeps, and the most that it meets."""

    def __init__(self, layers: Sequence[Layer], step: Step):
        self.step = step
        self.wide = BYTES[step.precision]
        self.narrow = 2 if step.precision in HALF else self.wide
        self.groups = grouped(layers)
        self.kept = self.peak = 0
        self._forward()
        self._backward()

    def held(self, layer: Layer) -> int:
        """Bytes that a layer keeps of the batch."""
        full, all_of_it = layer.full, layer.activations
        return self.step.batch_size * (full * self.wide + (all_of_it - full) * self.narrow)

    def cast(self, layer: Layer) -> int:
        """Bytes of the copy of a layer's weights: in 16 bits, or standardised."""
        copied = layer.copied or (self.narrow < self.wide and layer.macs > 0)
        return self.narrow * layer.parameters * copied

    def passed(self, layer: Layer, before: Layer) -> int:
        """Bytes of gradients on their way through a layer: out, in, and of the residual sum."""
        inside, outside = prod(before.shape), prod(layer.shape)
        if layer.name.endswith("attention"):  # of queries, keys and values, and of them stacked
            inside, outside = 0, 2 * layer.macs // max(1, prod(layer.shape[1:]))
        return self.step.batch_size * (inside + outside) * self.narrow

    def _kept_by(self, group: list[Layer]) -> int:
        if self.step.checkpointing and block_of(group[0].name) is not None:
            return self.held(next(layer for layer in group if layer.activations))
        return sum(map(self.held, group))

    def _forward(self) -> None:
        casts, before = 0, self.groups[0][0]
        for group in self.groups:
            inside = 0
            for layer in group:
                casts += self.cast(layer)
                inside += self.held(layer)
                self._meet(self.kept + inside + casts + self.passed(layer, before))
                before = layer
            self.kept += self._kept_by(group)
        self.casts = casts

    def _backward(self) -> None:
        kept, gradients = self.kept, 0
        numbers = sum(layer.parameters for group in self.groups for layer in group)
        if self.step.accumulation > 1:
            gradients = numbers * self.wide // self.step.shards
        casts = 0 if self.step.checkpointing else self.casts
        flat = [layer for group in self.groups for layer in group]
        previous = dict(zip(map(id, flat[1:]), flat, strict=False))
        for group in reversed(self.groups):
            kept -= self._kept_by(group)
            again = sum(map(self.held, group))
            if self.step.checkpointing:
                casts = sum(map(self.cast, group))
            for layer in reversed(group):
                if self.step.accumulation == 1:
                    gradients += layer.parameters * self.wide // self.step.shards
                before = previous.get(id(layer), layer)
                self._meet(kept + again + casts + gradients + self.passed(layer, before))
                again -= self.held(layer)
                casts -= self.cast(layer)

    def largest_block(self) -> int:
        """Bytes that the largest block keeps in tensors that malloc holds on to."""
        blocks = (group for group in self.groups if block_of(group[0].name) is not None)
        return max((sum(map(self._small, block)) for block in blocks), default=0)

    def _small(self, layer: Layer) -> int:
        tensor = self.step.batch_size * prod(layer.shape) * self.narrow
        return self.held(layer) if tensor <= LARGEST_HELD else 0

    def _meet(self, sum_of_it: int) -> None:
        self.peak = max(self.peak, sum_of_it)

    def evaluation(self, batch_size: int) -> int:
        """Bytes of a forward pass that keeps nothing: what goes in, what comes out, a residual."""
        flat = [layer for group in self.groups for layer in group]
        most = max(
            prod(a.shape) + 2 * prod(b.shape)
            for a, b in pairwise(flat)
            if not b.name.endswith("attention")
        )
        return batch_size * (prod(flat[0].shape) * self.wide + most * self.narrow)
