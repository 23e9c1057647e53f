"""What a study is: a frozen list of runs, in plain values, with a hash.

A `Point` is one run: a model, what is changed of it and of its recipe, which pictures it learns
from, how long, and its seed. A `Definition` holds all of a study's points and what is measured of
each. Equal definitions have equal hashes, and a study's folder belongs to one of them, so a study
that was killed goes on and another one is refused, with what differs.

A kind of study (`Kind`) is two functions: one from what was asked for to a definition, one from
records to what is shown. Everything between (`runner`, `folder`) is the same for all kinds.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vitrail.kit.errors import Error, did_you_mean, listing
from vitrail.models.zoo import FAMILIES, resolve

RUN, TRIAL = "run", "trial"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a study.

    Args:
        id: its name among the study's runs, and that of its folder: letters, digits, ``-._``.
        line: what it is compared as: a line of the charts, a row of the tables.
        model: a name of the zoo.
        config: fields of the model's config that are changed.
        recipe: a name of `recipes.RECIPES`, with its variant.
        settings: fields of the recipe that are changed, by dotted names.
        images: how many of the training pictures, a nested subset with as many of every class
            (`subsets`); None for all.
        rest: it learns from the training pictures that this subset does not hold.
        image_size: pixels; None for the model's own.
        duration: ``500 steps``, ``3 epochs`` or ``20000 examples``; empty for the recipe's own.
        seed: of the weights, the order and the subset.
        axes: what the figures place it by, as ``{"images": 500}``.
        start: the id of the run whose weights it starts from; None for fresh ones.
        choose: ids of trials. The settings of the one that is best on validation are added to its
            own (``settings`` of its own win), and its record says which.
        role: ``run``, or ``trial``: a run that only others choose from.
        which: the weights that are measured: ``final``, or ``best`` on validation.
        test: whether it is measured on the test pictures; trials are not.
    """

    id: str
    line: str
    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = "scratch"
    settings: Mapping[str, Any] = field(default_factory=dict)
    images: int | None = None
    rest: bool = False
    image_size: int | None = None
    duration: str = ""
    seed: int = 0
    axes: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    choose: tuple[str, ...] = ()
    role: str = RUN
    which: str = "final"
    test: bool = True

    @property
    def needs(self) -> tuple[str, ...]:
        """The ids of the runs that have to be done before."""
        return (*([self.start] if self.start else []), *self.choose)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A whole study.

    Args:
        kind: the name of its `Kind`.
        points: its runs; each one's needs stand before it.
        shots: images a class of the few-shot linear accuracy; none to leave it out.
        held_out: the share of every class of train that validation has, where the data have no
            validation pictures of their own. It is the same for every run, and no subset holds any
            of it.
        most_test: at most so many test pictures are measured on, evenly spaced; None for all.
        facts: what else the kind wants to know again when it shows its records.
    """

    kind: str
    points: tuple[Point, ...]
    shots: tuple[int, ...] = ()
    held_out: float = 0.1
    most_test: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not self.points:
            raise Error("a study of no runs: give at least one model, one size and one seed")
        known: set[str] = set()
        for point in self.points:
            if point.id in known:
                raise Error(f"two runs of the study are the same: {point.id}")
            for needed in point.needs:
                if needed not in known:
                    raise ValueError(f"{point.id} needs {needed}, which does not stand before it")
            known.add(point.id)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def sha256(self) -> str:
        """The hash of everything in it."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def select(self, **axes: Any) -> list[Point]:
        """The points that have these values of their axes."""
        return [p for p in self.points if all(p.axes.get(k) == v for k, v in axes.items())]


def from_json(value: Mapping[str, Any]) -> Definition:
    """The inverse of `Definition.to_json`."""
    fields: dict[str, Any] = dict(value)
    points = [Point(**_with_tuples(point, "choose")) for point in fields.pop("points")]
    return Definition(points=tuple(points), **_with_tuples(fields, "shots"))


def _with_tuples(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Fields from JSON with the list of this name as the tuple that it was."""
    return {key: tuple(one) if key == name else one for key, one in fields.items()}


@dataclass(frozen=True)
class Candidate:
    """A model of a study, as the user gives it: ``NAME``, ``LABEL=NAME`` with ``:KEY=VALUE`` each.

    ``ViT=vit_nano_patch4_32:width=96:optim.lr=0.002`` is the model with its width changed, trained
    at another rate; a key with a dot, or one of the recipe's own, belongs to the recipe.

    Args:
        label: what it is called.
        model: a name of the zoo.
        config: changed fields of its config.
        settings: changed fields of its recipe.
    """

    label: str
    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The family of the model, as the zoo calls it."""
        return resolve(self.model)[1].family


RECIPE_WORDS = ("ema", "batch_size", "precision", "normalize", "patience", "fit", "sampling")


def candidate(words: str) -> Candidate:
    """Read one of ``--models``.

    Raises:
        Error: an unknown model, or a change without a value.
    """
    name, *changes = words.split(":")
    label, equals, model = name.rpartition("=")
    full, entry = resolve(model)
    fields = FAMILIES[entry.family][0].__dataclass_fields__
    config: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for change in changes:
        key, sign, value = change.partition("=")
        if not sign:
            raise Error(f"{words}: {change!r} has no value; write KEY=VALUE")
        if key.startswith("model."):
            key = key.removeprefix("model.")
        elif "." in key or key in RECIPE_WORDS:
            settings[key] = plain(value)
            continue
        if key not in fields:
            near = did_you_mean(key, fields) or f"; it has {listing(list(fields), 9)}"
            raise Error(f"{words}: {full} has no field {key!r}{near}")
        config[key] = plain(value)
    return Candidate(label if equals else words, full, config, settings)


def plain(text: str) -> Any:
    """A command line's word as the number, truth value, null or list that it spells."""
    spelled = {"none": "null", "true": "true", "false": "false"}.get(text.lower(), text)
    try:
        return json.loads(spelled)
    except ValueError:
        return text


def tupled(value: Any) -> Any:
    """Lists as the tuples that configurations hold, however deep."""
    return tuple(map(tupled, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a study is asked to be: the command line's words, for every kind.

    Args:
        models: the models, as of `candidate`; empty for the kind's or the preset's own.
        sizes: numbers of training pictures; 0 for all of them.
        durations: lengths of runs, as of `Point.duration`.
        seeds: how many, from ``first_seed`` on.
        mode: a variant of the kind, such as ``tuned`` or ``fixed`` of data-size.
        axes: which comparisons, of ablation.
        recipe, settings, image_size, batch_size: of every run.
        preset: the name of one of the kind's own lists.
        limit: of search, in multiply-adds.
        changes: lists of changes of the user's own, of ablation: ``LABEL:KEY=VALUE:...``.
        samples: how many architectures, of search.
        train_images: how many training pictures there are, validation apart.
        classes: how many classes there are.
        validation: how many validation pictures there are, the data's own or held out.
        test: how many test pictures there are.
        side: of the pictures in pixels, where it is known.
    """

    models: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    durations: tuple[str, ...] = ()
    seeds: int = 3
    first_seed: int = 0
    mode: str = ""
    axes: tuple[str, ...] = ()
    recipe: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    batch_size: int | None = None
    preset: str = ""
    limit: float | None = None
    changes: tuple[str, ...] = ()
    samples: int | None = None
    train_images: int = 0
    classes: int = 0
    validation: int = 1
    test: int = 1
    side: int | None = None

    @property
    def all_seeds(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def replace(self, **changes: Any) -> "Ask":
        """A copy with these fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Table:
    """A table of a study's page; `rows` hold what `kit.page` shows, the first names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str


@dataclass(frozen=True)
class Figure:
    """A figure of a study's page: a name for its file, an ``<svg>`` of `kit.chart`, a caption."""

    name: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Shown:
    """What a kind makes of its records.

    Args:
        answer: sentences, the most important first.
        tables, figures: for the page.
        facts: the same in numbers, plain JSON values.
    """

    answer: Sequence[str]
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


Record = Mapping[str, Any]  # {"id", "config", "seed", "metrics"}; config is a point's JSON


@dataclass(frozen=True)
class Kind:
    """A kind of study.

    Args:
        name: as the command line has it.
        title: of its page.
        define: from what was asked for to a definition; raises an Error for what cannot be.
        show: from the definition and the records that there are (some may be missing yet) to what
            is shown; ``intervals`` says whether means have 95 % intervals.
    """

    name: str
    title: str
    define: Callable[[Ask], Definition]
    show: Callable[[Definition, Sequence[Record], bool], Shown]
