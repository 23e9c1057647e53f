"""`study ablation`: one thing changed at a time, and what each change is worth.

Which comparisons there are stands in `comparisons`; a user's own are lists of changes. Every
variant has the same pictures, budget and seeds, so differences to the baseline are taken seed by
seed. Where rates are swept, every rate is a run of every seed, so that the whole curve can be seen
(ViT paper, figure 9), and the table has the rate that is best on validation, never on test.
Variants that are the same run (baselines, mostly) are done once.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitrail.kit.errors import Error, did_you_mean
from vitrail.models.base import checked_config
from vitrail.models.zoo import FAMILIES, resolve
from vitrail.recipes.run import choose_recipe
from vitrail.recipes.situation import Situation
from vitrail.studies.comparisons import COMPARISONS, Comparison, Variant
from vitrail.studies.definition import (
    TRIAL,
    Ask,
    Candidate,
    Definition,
    Kind,
    Point,
    candidate,
    tupled,
)
from vitrail.studies.effects import show
from vitrail.studies.folder import safe_id
from vitrail.studies.grid import (
    candidates,
    check_size,
    check_validation,
    check_words,
    fixed_settings,
)
from vitrail.studies.sides import side_for
from vitrail.training.recipe import Duration, Model, Recipe, with_settings

OWN = "changes"  # the name of the user's own comparison
AS_IT_IS = "as it is"  # its baseline
SEEN = 20  # how often every picture is seen, where nobody says how long, up to
MOST_SEEN = 500_000  # so many pictures in all
LABELLED = 10  # this part of the pictures has labels, where something comes before the labels


def define(ask: Ask) -> Definition:
    """The runs of the comparisons that were asked for.

    Raises:
        Error: an unknown comparison, a model that it cannot be put to, a change that cannot be.
    """
    check_words(ask, "ablation")
    wanted = [_known(name) for name in dict.fromkeys(ask.axes)]
    if ask.changes:
        wanted.append(_own(ask.changes))
    if not wanted:
        raise Error(
            f"ablation takes --axis, one or several of {', '.join(COMPARISONS)}, or --change "
            "LABEL:KEY=VALUE for changes of your own"
        )
    if len(ask.sizes) > 1:
        raise Error("ablation trains on one number of pictures: give one of --sizes")
    check_size(ask)
    plan = _Plan(ask)
    for comparison, base in _bases(wanted, ask):
        plan.add(comparison, base)
    return Definition(
        kind="ablation",
        points=tuple(plan.points.values()),
        facts={"comparisons": plan.rows, "duration": plan.duration},
    )


def _known(name: str) -> Comparison:
    if name not in COMPARISONS:
        near = did_you_mean(name, COMPARISONS) or f"; there are {', '.join(COMPARISONS)}"
        raise Error(f"ablation has no comparison {name!r}{near}")
    return COMPARISONS[name]


def _own(changes: Sequence[str]) -> Comparison:
    """The user's own changes as a comparison: ``LABEL:KEY=VALUE ...``, or files of JSON.

    Raises:
        Error: changes without a label or a value, or a file that is not {label: {key: value}}.
    """
    told: dict[str, list[str]] = {}
    for words in changes:
        if words.endswith(".json"):
            told |= {
                label: [f"{k}={_spelled(v)}" for k, v in said.items()]
                for label, said in _read(Path(words), {*told, AS_IT_IS}).items()
            }
            continue
        label, *pairs = [word for word in re.split(r"[:\s]+(?=[\w.]+=)", words.strip()) if word]
        if "=" in label or not pairs:
            raise Error(
                f"--change {words!r}: write LABEL:KEY=VALUE, with as many KEY=VALUE as there are"
            )
        if label in told or label == AS_IT_IS:
            raise Error(f"--change {words!r}: there is a variant {label!r} already; name it apart")
        told[label] = pairs

    def variants(fields: Mapping[str, Any]) -> Sequence[Variant]:
        made = [Variant(label=AS_IT_IS)]
        for label, pairs in told.items():
            one = candidate(":".join((f"{label}={fields['model']}", *pairs)))
            made.append(Variant(label=label, config=one.config, settings=one.settings))
        return made

    return Comparison(
        name=OWN,
        asks="What is each change worth?",
        source="your own changes",
        families=tuple(FAMILIES),
        fields=(),
        default=COMPARISONS["pooling"].default,
        variants=variants,
    )


def _read(path: Path, known: Collection[str]) -> Mapping[str, Mapping[str, Any]]:
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise Error(f"--change {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise Error(f"--change {path} is no JSON") from None
    fine = isinstance(found, dict) and found and all(isinstance(v, dict) for v in found.values())
    if not fine:
        raise Error(f'--change {path}: it holds {{"LABEL": {{"KEY": VALUE}}}}')
    for label in found:
        if label in known:
            raise Error(f"--change {path}: there is a variant {label!r} already; name it apart")
    return found


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _bases(wanted: Sequence[Comparison], ask: Ask) -> Iterable[tuple[Comparison, Candidate]]:
    """Each comparison with each model that it is put to."""
    side = ask.image_size or ask.side or 224
    given = candidates(ask, ()) if ask.models else []
    used: set[str] = set()
    for comparison in wanted:
        if not given:
            yield comparison, candidate(comparison.default(side))
            continue
        fitting = [one for one in given if one.family in comparison.families]
        if not fitting:
            families = " or ".join(comparison.families)
            raise Error(
                f"comparison {comparison.name} is of the family {families}, and "
                f"{given[0].model} is of {given[0].family}: leave --models out, or give such a one"
            )
        used |= {one.label for one in fitting}
        yield from ((comparison, one) for one in fitting)
    for one in given:
        if one.label not in used:
            raise Error(f"no comparison that was asked for can be put to {one.model}")


@dataclass(frozen=True)
class _Put:
    """A comparison that is put to a base.

    Args:
        title: what the two are called.
        base: the model.
        recipe: what it would learn by itself.
        fields: its whole config, and its name as ``model``.
    """

    comparison: Comparison
    title: str
    base: Candidate
    recipe: Recipe
    fields: Mapping[str, Any]


class _Plan:
    """The runs as they are put together, and which of them answer what."""

    def __init__(self, ask: Ask):
        self.ask = ask
        self.points: dict[str, Point] = {}
        self.ids: dict[str, str] = {}  # what a run is, to its id
        self.rows: list[dict[str, Any]] = []
        self.images = ask.sizes[0] if ask.sizes and ask.sizes[0] else None
        seen = SEEN * (self.images or ask.train_images)
        self.duration = ask.durations[0] if ask.durations else f"{min(MOST_SEEN, seen)} examples"
        self.before = ask.durations[1] if len(ask.durations) > 1 else self.duration
        if len(ask.durations) > 2:
            raise Error("ablation takes one of --durations, and a second one for pre-training")

    def add(self, comparison: Comparison, base: Candidate) -> None:
        """All runs of a comparison on one base.

        Raises:
            Error: a variant that is no model.
        """
        several = any(row["name"] == comparison.name for row in self.rows)
        title = f"{comparison.name} of {base.label}" if several else comparison.name
        put = _Put(comparison, title, base, *self._base(base))
        variants = comparison.variants(put.fields)
        if len(variants) < 2:
            raise Error(f"comparison {comparison.name} has no variant for {base.model}")
        if any(len(variant.rates) > 1 for variant in variants):
            check_validation(self.ask, f"comparison {comparison.name}")
        labelled = self._images(put)
        if comparison.few_labels and labelled == self.ask.train_images:
            raise Error(
                f"comparison {comparison.name} learns first from the pictures that --sizes leaves "
                f"without labels, and {labelled:,} are all: give fewer"
            )
        self.rows.append(
            {
                "name": comparison.name,
                "title": title,
                "asks": comparison.asks,
                "source": comparison.source,
                "model": base.label,
                "variants": [self._variant(put, variant) for variant in variants],
            }
        )

    def _base(self, base: Candidate) -> tuple[Recipe, dict[str, Any]]:
        """The recipe that a base would have by itself, and its whole config."""
        size = side_for(base, self.ask) or base.config.get("image_size")
        named, _, variant = (self.ask.recipe or "scratch").partition(":")
        settings = {**fixed_settings(self.ask), **base.settings}
        situation = Situation(
            model=Model(name=base.model, image_size=size, config=dict(base.config)),
            examples=self.images or self.ask.train_images,
            classes=self.ask.classes,
            variant=variant,
            duration=_duration(self.duration),
            batch_size=settings.pop("batch_size", None),
        )
        recipe = choose_recipe(named, situation, settings)
        fields = {**situation.fields, "model": base.model}
        return recipe, fields if size is None else {**fields, "image_size": size}

    def _variant(self, put: _Put, variant: Variant) -> dict[str, Any]:
        """The runs of a variant, and what `effects.show` wants to know of it."""
        changes = {k: value for k, value in variant.config.items() if put.fields[k] != value}
        config = {**put.base.config, **changes}
        self._check(put, config)
        settings = {**fixed_settings(self.ask), **put.base.settings}
        settings |= {**put.comparison.common(put.recipe), **variant.settings}
        with_settings(put.recipe, settings)  # what is wrong is said before any run
        rates: dict[str, list[str]] = {}
        for multiple in variant.rates or (None,):
            rate, swept = settings.get("optim.lr", put.recipe.optim.lr), dict(settings)
            if multiple is not None and multiple != 1:
                rate = swept["optim.lr"] = float(f"{multiple * put.recipe.optim.lr:.2g}")
            run = Point(
                id=safe_id(put.title, variant.label, *([f"{rate:.2g}"] if multiple else [])),
                line=f"{put.title}: {variant.label}",
                model=put.base.model,
                config=config,
                recipe=self.ask.recipe or "scratch",
                settings=swept,
                images=self._images(put),
                image_size=side_for(put.base, self.ask),
                duration=self.duration,
                axes={"comparison": put.title, "variant": variant.label, "rate": rate},
            )
            rates[f"{rate:.2g}"] = [
                self._run(run, seed, put, variant) for seed in self.ask.all_seeds
            ]
        return {
            "label": variant.label,
            "rates": rates,
            "cell": None if variant.cell is None else list(variant.cell),
            "published": variant.published,
        }

    def _check(self, put: _Put, config: Mapping[str, Any]) -> None:
        """Whether there is such a model; an Error says why not."""
        size = side_for(put.base, self.ask)
        whole = {**resolve(put.base.model)[1].config, **config}
        whole |= {} if size is None else {"image_size": size}
        checked_config(FAMILIES[put.base.family][0], {k: tupled(v) for k, v in whole.items()})

    def _images(self, put: _Put) -> int | None:
        """How many pictures have labels; None for all."""
        if put.comparison.few_labels and self.images is None:
            return max(self.ask.classes, self.ask.train_images // LABELLED)
        return self.images

    def _run(self, run: Point, seed: int, put: _Put, variant: Variant) -> str:
        """The id of a run with a seed, and of the one before it where there is one."""
        start = None
        if variant.pretrained:
            before = replace(
                run,
                id=f"{safe_id(put.title, variant.label, 'before')}-seed{seed}",
                line=f"{run.line}, before",
                rest=True,
                duration=self.before,
                seed=seed,
                axes={"comparison": put.title, "variant": variant.label, "stage": "before"},
                role=TRIAL,
                test=False,
                **_before(variant.pretrained, run, put),
            )
            start = self._add(before)
        return self._add(replace(run, id=f"{run.id}-seed{seed}", seed=seed, start=start))

    def _add(self, point: Point) -> str:
        """Keep a run unless the same one, whatever it is called, is there already."""
        told = {**point.to_json(), "id": "", "line": "", "axes": {}}
        what = json.dumps(told, sort_keys=True)
        if what not in self.ids:
            id, number = point.id, 2
            while id in self.points:  # labels that differ in what no folder's name can have
                id, number = f"{point.id}-{number}", number + 1
            self.ids[what] = id
            self.points[id] = replace(point, id=id)
        return self.ids[what]


def _before(recipe: str, run: Point, put: _Put) -> dict[str, Any]:
    """What a run that comes before has otherwise: its own objective, at the base's batch and rate.

    The model stays as it is, also where the recipe would have another one (MAE's fixed positions);
    MAE's decoder is as much narrower and shallower as the model is than the paper's ViT-B.
    """
    base, fields = put.recipe, put.fields
    settings = {**run.settings, "optim.lr": base.optim.lr, "batch_size": base.batch_size}
    if recipe == "scratch":
        return {"settings": settings}
    if recipe == "mae":
        width = 32 * max(1, round(fields["width"] / 48))
        settings |= {
            "masked.decoder_width": width,
            "masked.decoder_heads": width // 32,
            "masked.decoder_depth": max(1, min(8, round(fields["depth"] * 2 / 3))),
        }
    kept = {name: fields[name] for name in ("position", "pool", "class_token")}
    return {"recipe": recipe, "settings": settings, "config": {**run.config, **kept}}


def _duration(text: str) -> Duration:
    return with_settings(Recipe(), {"duration": text}).duration


KIND = Kind("ablation", "What each choice is worth", define, show)
