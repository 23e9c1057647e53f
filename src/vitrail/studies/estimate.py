"""What a study will cost before it starts, and how far it is: arithmetic counted, speed measured.

A run's arithmetic is that of the ledger, 6 x MACs x pictures, and of its looks at validation and
test. The speed is measured by a few steps on random pictures, of the cheapest and the costliest
model of every family, and what lies between is placed between them; where the study has records,
their own speed is taken. Trials and runs that may stop early count whole: it is an upper bound.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitrail.models.base import checked_config, height_width
from vitrail.models.cost import cost
from vitrail.models.cost.memory import Step
from vitrail.models.zoo import FAMILIES, resolve
from vitrail.recipes.run import choose_recipe
from vitrail.recipes.situation import Situation
from vitrail.studies.data import StudyData
from vitrail.studies.definition import Definition, Point, Record, tupled
from vitrail.training.choices import Model
from vitrail.training.recipe import Recipe, with_settings
from vitrail.training.session import Options, lengths
from vitrail.training.trial import trial

OVERHEAD = 1.5  # seconds of a run besides its arithmetic: to make it, to save it, to open it again


@dataclass(frozen=True)
class Planned:
    """What one run is expected to cost.

    Args:
        family: of its model.
        macs: of a forward pass.
        images: seen in training.
        batch_size: of a step.
        flops: of training.
        forward_flops: of the looks at validation and test.
    """

    family: str
    macs: int
    images: int
    batch_size: int
    flops: float
    forward_flops: float


@dataclass(frozen=True)
class Estimate:
    """What a study costs.

    Args:
        runs: by id.
        rates: (family, MACs) to training operations a second, measured.
    """

    runs: Mapping[str, Planned]
    rates: Mapping[tuple[str, int], float]

    def seconds(self, id: str) -> float:
        """Of one run, on one process."""
        run = self.runs[id]
        # A forward pass alone is about as quick an operation as the rest.
        return OVERHEAD + (run.flops + run.forward_flops) / self.rate(run)

    def step_seconds(self, id: str) -> float:
        """Of its steps alone: it is also made, measured and saved."""
        return self.runs[id].flops / self.rate(self.runs[id])

    def rate(self, run: Planned) -> float:
        """Operations a second: between the measured models of its family, by the MACs."""
        own = sorted((macs, rate) for (family, macs), rate in self.rates.items())
        same = sorted((m, r) for (family, m), r in self.rates.items() if family == run.family)
        own = same or own
        below = [one for one in own if one[0] <= run.macs] or own[:1]
        above = [one for one in own if one[0] >= run.macs] or own[-1:]
        (low, slow), (high, quick) = below[-1], above[0]
        if high == low:
            return slow
        share = (math.log(run.macs) - math.log(low)) / (math.log(high) - math.log(low))
        return math.exp((1 - share) * math.log(slow) + share * math.log(quick))

    def total(self, ids: Iterable[str], jobs: int = 1) -> float:
        """Seconds of these runs, by so many processes."""
        every = [self.seconds(id) for id in ids]
        return max(sum(every) / max(1, jobs), max(every, default=0.0))

    @property
    def exaflops(self) -> float:
        """Of all training."""
        return sum(run.flops for run in self.runs.values()) / 1e18


def recipe_of(point: Point, data: StudyData) -> Recipe:
    """A point's recipe, as its run will have it (but for what it chooses among trials).

    Raises:
        Error: an unknown recipe or setting.
    """
    size = point.image_size
    full, _ = resolve(point.model)
    settings: dict[str, Any] = {key: tupled(value) for key, value in point.settings.items()}
    if point.duration:
        settings["duration"] = point.duration
    early = with_settings(
        Recipe(), {k: v for k, v in settings.items() if k in ("duration", "batch_size")}
    )
    name, _, variant = point.recipe.partition(":")
    situation = Situation(
        model=Model(name=full, image_size=size),
        examples=data.images_of(point.images, point.rest),
        classes=len(data.train.classes),
        duration=early.duration if "duration" in settings else None,
        batch_size=early.batch_size if "batch_size" in settings else None,
        variant=variant,
        image_size=size,
    )
    config = {f"model.{key}": tupled(value) for key, value in point.config.items()}
    return choose_recipe(name, situation, {**settings, **config, "seed": point.seed})


def planned(point: Point, data: StudyData, shots: Sequence[int] = ()) -> Planned:
    """What a run is expected to cost.

    Raises:
        Error: what its model or recipe cannot be; so every run of a study is checked by it.
    """
    recipe = recipe_of(point, data)
    entry = resolve(point.model)[1]
    fields = {**entry.config, **dict(recipe.model.config)}
    if recipe.model.image_size is not None:
        fields["image_size"] = recipe.model.image_size
    config = checked_config(FAMILIES[entry.family][0], fields)
    macs = cost(config).macs
    length = lengths(recipe, data.images_of(point.images, point.rest), Options())
    images = length.total * recipe.batch_size
    looks = math.ceil(length.total / length.eval_every)
    seen = looks * len(data.val) if data.val is not None else 0
    if point.test and data.test is not None:
        seen += len(data.test) * (2 if shots else 1)
        seen += max(shots, default=0) * 3 * len(data.train.classes)
    return Planned(
        entry.family, macs, images, recipe.batch_size, 6 * macs * images, 2 * macs * seen
    )


def estimate(
    definition: Definition,
    data: StudyData,
    records: Sequence[Record] = (),
    device: str | None = None,
) -> Estimate:
    """Count every run, and measure the speed.

    Raises:
        Error: a run that cannot be: it is found before the first one starts.
    """
    runs = {point.id: planned(point, data, definition.shots) for point in definition.points}
    points = {point.id: point for point in definition.points}
    rates: dict[tuple[str, int], float] = {}
    for record in records:
        metrics, run = record["metrics"], runs.get(record["id"])
        if run is not None and metrics.get("seconds") and metrics.get("flops"):
            spent = max(0.1, metrics["seconds"] - OVERHEAD)
            share = metrics["flops"] / run.flops
            rates[run.family, run.macs] = (run.flops + run.forward_flops) * share / spent
    for family in dict.fromkeys(run.family for run in runs.values()):
        if any(known == family for known, _ in rates):
            continue
        own = sorted(((run.macs, id) for id, run in runs.items() if run.family == family))
        for macs, id in {own[0], own[-1]}:
            rates[family, macs] = _measured(points[id], runs[id], data, device)
    return Estimate(runs, rates)


def _measured(point: Point, run: Planned, data: StudyData, device: str | None) -> float:
    recipe = recipe_of(point, data)
    step = Step(batch_size=run.batch_size, precision=recipe.precision, ema=recipe.ema is not None)
    # A rough figure is enough, and a large batch takes long: a few pictures tell nearly as much.
    side = recipe.model.image_size
    pixels = math.prod(height_width(side)) if side else 224 * 224
    most = max(4, 2**21 // max(1, pixels))
    step = Step(batch_size=min(step.batch_size, most), precision=step.precision, ema=step.ema)
    config = dict(recipe.model.config)
    found = trial(recipe.model.name, step, side, device=device, steps=3, **config)
    return 6 * run.macs * found.images_per_second
