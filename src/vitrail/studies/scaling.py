"""`study scaling`: accuracy against compute, models x durations (ViT paper, section 4.4).

Every run sees the same pictures; what differs is the model and how long it learns. Shown are each
family's accuracy over exaFLOPs, the Pareto front of all, a power law of each family's own front
with its bootstrap interval, and how many times the compute one family takes for the accuracy of
another.

Besides, the largest model of every family learns for the longest duration from half of the
pictures. So what twice the data, twice the time and a larger model bring is measured, each with all
else equal, and the answer in words is the one that brings most: ``more data``, ``train longer`` or
``larger model``.
"""

import itertools
from collections.abc import Sequence

from vitrail.kit.errors import Error
from vitrail.models.base import checked_config
from vitrail.models.cost import cost
from vitrail.models.zoo import FAMILIES, resolve
from vitrail.studies.definition import Ask, Candidate, Definition, Kind, Point, tupled
from vitrail.studies.folder import safe_id
from vitrail.studies.grid import candidates, check_test, check_words, fixed_settings
from vitrail.studies.presets import SCALING
from vitrail.studies.scaling_page import show
from vitrail.studies.sides import side_for

FAMILY_NAMES = {
    "vit": "ViT",
    "bit": "BiT ResNet",
    "resnet": "ResNet",
    "hybrid": "hybrid",
    "cvt": "CvT",
    "botnet": "BoTNet",
    "t2t": "T2T-ViT",
    "pvt": "PVT",
    "pvt_v2": "PVT v2",
}


def define(ask: Ask) -> Definition:
    """The runs of a scaling study.

    Raises:
        Error: an unknown preset or model, no test pictures, or what this kind does not take.
    """
    if ask.sizes:
        raise Error("scaling uses all of the pictures: --sizes belongs to data-size")
    check_words(ask, "scaling")
    check_test(ask, "scaling")
    factors = SCALING.get(ask.preset).factors
    ask = SCALING.applied(ask)
    models = candidates(ask, SCALING.models)
    durations = ask.durations or _doublings(ask)
    points = []
    largest, longest = _largest(models, ask), _longest(durations)
    for one, duration, seed in itertools.product(models, durations, ask.all_seeds):
        duration = times(duration, factors.get(one.label, 1))
        common = {
            "line": one.label,
            "model": one.model,
            "config": one.config,
            "recipe": ask.recipe or "scratch",
            "image_size": side_for(one, ask),
            "duration": duration,
            "seed": seed,
            "settings": {**fixed_settings(ask), **one.settings},
        }
        axes = {"family": FAMILY_NAMES[one.family], "duration": duration, "data": "all"}
        id = safe_id(one.label, duration, f"seed{seed}")
        points.append(Point(id=id, axes=axes, **common))
        at_length = duration == times(longest, factors.get(one.label, 1))
        if one.label in largest and at_length and ask.train_images // 2 >= ask.classes:
            # The same pictures seen in all, from half as many.
            halved = {**common, "images": ask.train_images // 2}
            if duration.endswith("epochs"):
                halved["duration"] = times(duration, 2)
            points.append(Point(id=f"{id}-half", axes={**axes, "data": "half"}, **halved))
    return Definition(
        kind="scaling", points=tuple(points), facts={"train_images": ask.train_images}
    )


def times(duration: str, factor: float) -> str:
    """A duration, longer."""
    value, unit = duration.split()
    return f"{float(value) * factor:.12g} {unit}"


def _doublings(ask: Ask) -> tuple[str, ...]:
    """Three durations, each twice the one before; the longest is 20 epochs or half a million."""
    most = min(500_000, 20 * ask.train_images)
    return tuple(f"{most // part} examples" for part in (4, 2, 1))


def macs_of(one: Candidate, image_size: int | None) -> int:
    """Multiply-adds of a model's forward pass."""
    entry = resolve(one.model)[1]
    fields = {**entry.config, **{k: tupled(v) for k, v in one.config.items()}}
    if image_size is not None:
        fields["image_size"] = image_size
    return cost(checked_config(FAMILIES[entry.family][0], fields)).macs


def _largest(models: Sequence[Candidate], ask: Ask) -> set[str]:
    """The label of each family's costliest model."""
    found: dict[str, tuple[int, str]] = {}
    for one in models:
        macs = macs_of(one, side_for(one, ask))
        found[one.family] = max(found.get(one.family, (0, "")), (macs, one.label))
    return {label for _, label in found.values()}


def _longest(durations: Sequence[str]) -> str:
    """The longest of durations; the last, where their units differ."""
    values, units = zip(*(duration.split() for duration in durations), strict=True)
    return durations[-1 if len({*units}) > 1 else values.index(max(values, key=float))]


KIND = Kind("scaling", "Accuracy and compute", define, show)
