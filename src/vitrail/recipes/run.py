"""From words to a run: what `vitrail train` and `vitrail evaluate` do with what they are given.

Opens the data, says what it found and what it will do, picks the recipe, makes or loads the
model, and hands over to the loop.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrail.data.labels import Classes
from vitrail.data.sources import Source, Spec
from vitrail.data.statistics import pixel_statistics
from vitrail.kit.errors import Error, did_you_mean
from vitrail.models.base import ImageClassifier, Size, height_width
from vitrail.models.cost import cost
from vitrail.models.zoo import config_of, create_model, from_config, from_description, resolve
from vitrail.recipes import DEFAULT_MODEL, DEFAULT_MODELS, NEEDS_WEIGHTS, RECIPES
from vitrail.recipes.opening import Opened, check_place, open_data, open_watched
from vitrail.recipes.plan import recipe_lines
from vitrail.recipes.several import over_rates, over_seeds
from vitrail.recipes.situation import Situation
from vitrail.recipes.teaching import objective_for
from vitrail.recipes.tiny import tiny as shrunk
from vitrail.training.checkpoint import Checkpoint, Checkpoints
from vitrail.training.display import Display
from vitrail.training.engine import Engine, first_process
from vitrail.training.finish import Run, finish, nothing_left
from vitrail.training.ledger import account
from vitrail.training.loop import run as run_loop
from vitrail.training.output import Output
from vitrail.training.recipe import Duration, Model, Recipe, with_settings
from vitrail.training.session import MAX_CORRUPT, Options, Session, lengths
from vitrail.training.state import State
from vitrail.training.track import check_tracker, tracked
from vitrail.weights.load import load_weights
from vitrail.weights.read import description_of, fingerprint_of, labels_of

VAL_FRACTION = 0.1
MEANT_FOR_WEIGHTS = ("finetune", "vit_finetune", "bit")


def train(
    data: Spec,
    model: str | None = None,
    *,
    out: str | Path,
    weights: str | Path | None = None,
    recipe: str | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    image_size: Size | None = None,
    lr: float | None = None,
    seed: int = 0,
    workers: int = 0,
    save_every: int | None = None,
    keep: int = 2,
    val_fraction: float | None = None,
    classes: Classes | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_corrupt: float = MAX_CORRUPT,
    device: str | None = None,
    parallel: str | None = None,
    accumulate: int = 1,
    precision: str = "fp32",
    compile: bool = False,
    ema: bool = True,
    patience: int | None = None,
    record_keys: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    seeds: int = 1,
    teacher: str | Path | None = None,
    tiny: bool = False,
    accept_other_data: bool = False,
    set: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    report: bool = True,
    quiet: bool = True,
    display: Display | None = None,
    command: str = "",
    track: str | None = None,
    watch: Spec | None = None,
    watch_every: int | None = None,
) -> Run:
    """Train a model; the same call again continues an interrupted run, or does nothing.

    Args:
        data: a class folder, a CSV or JSONL with path and label, tar shards, parquet,
            ``hf:NAME``, ``demo:fashion``, a source, sources by split, or (images, labels) as
            arrays.
        model: a name of the zoo; None for the one that ``weights`` holds, else
            ``vit_tiny_patch16_224``.
        out: the folder for the model, the records and the report.
        classes: class names in order, {name: number}, or a file of either.
        record: more facts for the ``vitrail`` section of the model folder's `config.json`.
        report: write the page; a study of many short runs does without.
        quiet: say nothing on stderr.
        display: what says it, where that is not `training.display.Display` but a kind of it.
        command: what the report gives as the way to go on.
        watch: another data set, whose few-shot accuracy is measured every ``watch_every`` steps (a
            twentieth of the run by default).
        track: ``tensorboard`` to have the records there too, in ``out``; None for nowhere else.
        The rest: as `vitrail train --help` says.

    Raises:
        Error: anything that the user can mend; nothing was changed.
        Interrupted: Ctrl-C, after saving (a KeyboardInterrupt).
    """
    given = locals().copy()
    first = first_process()
    display, output = display or Display(quiet or not first), Output(out, first)
    if seeds < 1:
        raise Error(f"seeds must be at least 1, not {seeds}")
    if seeds > 1:
        return over_seeds(train, given, display)
    check_tracker(track)
    options = Options(
        save_every=save_every,
        keep=keep,
        workers=workers,
        record_keys=record_keys,
        accumulate=accumulate,
        max_corrupt=max_corrupt,
    )
    words = _words(set or {}, seed=seed, precision=precision, batch_size=batch_size)
    check_place(data, output.path)
    name, _, variant = (recipe or ("finetune" if weights else "scratch")).partition(":")
    if name in NEEDS_WEIGHTS and weights is None:
        raise Error(f"recipe {name} starts from a trained model: give one by --weights")
    start = _starting_model(
        words.get("model.name", model), weights, words.get("model.image_size", image_size), name
    )
    held_out = VAL_FRACTION if val_fraction is None else val_fraction
    with display.busy("looking at the data"):
        opened = open_data(
            data,
            max_corrupt,
            val_fraction=held_out,
            seed=words["seed"],
            classes=classes,
            image_column=image_column,
            label_column=label_column,
        )
    situation = Situation(
        model=start,
        examples=len(opened.parts.train),
        classes=len(opened.parts.train.classes),
        duration=words.get("duration") or _duration(epochs, steps),
        batch_size=words["batch_size"],
        variant=words.get("variant", variant),
        image_size=words.get("model.image_size", image_size),
        pictures=opened.pictures,
    )
    changes = {
        "compile": compile,
        **({} if ema else {"ema": None}),
        **({} if lr is None else {"optim.lr": lr}),
        **({} if patience is None else {"patience": patience}),
        **(set or {}),
        "seed": words["seed"],
        "precision": words["precision"],
        "weights": None if weights is None else str(weights),
        "teacher": None if teacher is None else str(teacher),
    }
    changes.pop("variant", None)
    chosen = choose_recipe(name, situation, changes, tiny)
    if chosen.target.loss == "softmax" and opened.parts.train.multi_label:
        chosen = with_settings(chosen, {"target.loss": "sigmoid"})
        opened.lines.append("loss:  a yes or no for each class, since images have several labels")
    if chosen.rates and "optim.lr" not in changes and chosen.masked.kind == "none":
        return over_rates(train, given, chosen, opened.own_val, display)
    if chosen.patience is not None and opened.parts.val is None:
        raise Error("patience needs a validation set, and there is none")
    total = lengths(chosen, len(opened.parts.train), options).total
    watched = open_watched(watch, watch_every or max(1, total // 20))
    engine = Engine(device, chosen.precision, parallel)
    settings = {
        "recipe": chosen.to_json(),
        "weights_sha256": None if weights is None else fingerprint_of(weights),
        "teacher_sha256": None if teacher is None else fingerprint_of(teacher),
        "val_fraction": held_out,
    }
    resumed = engine.agree(
        lambda: output.continues(settings, opened.prints, overwrite, accept_other_data)
    )
    end = engine.agree(output.finished) if resumed and not dry_run else None
    if end:
        with engine.together():
            return nothing_left(output, end, display)
    checkpoints = Checkpoints(output.path, keep, engine)
    checkpoint, notes = checkpoints.newest() if resumed else (None, [])
    if checkpoint is not None:
        built = from_description(checkpoint.state["model"])
    else:
        built = build(chosen, opened.sample)
    told = [*opened.lines, *_plan(chosen, built, opened, options, engine)]
    if weights is None and name in MEANT_FOR_WEIGHTS:
        told.append(f"note:  {name} is meant to start from --weights; these are random")
    if dry_run:
        examples = len(opened.parts.train)
        told += recipe_lines(chosen, examples, lengths(chosen, examples, options).total)
    if checkpoint is None and weights is not None:
        told += _load(built, str(weights))
    if checkpoint is None and chosen.fit is not None:
        built.preprocessing = built.preprocessing.fitted(chosen.fit)
    objective, more = objective_for(chosen, built, opened.parts.train)
    told += more
    told += [f"{note}; going back to the one before" for note in notes]
    if dry_run:
        with engine.together():
            display.say(*told)
        return Run(output.path, total, 0, {}, 0.0, None)
    with output.locked(), engine.together(), tracked(output, track if first else None):
        if not resumed and engine.first:
            output.claim(settings, opened.prints)
        display.say(*told)  # only now: until here a mistake is one sentence and nothing else
        state = State(chosen, built, engine, objective)
        session = _begin(Session(state, opened.parts, output, options, display), checkpoint)
        before = state.progress.step
        run_loop(session, watched)
        ledger = account(
            state.learner,
            engine,
            images=state.progress.images,
            seconds=session.seconds(),
            records=output.metrics.read("step"),
            head_share=min(1.0, session.rates.head_steps / max(1, state.progress.step)),
        )
        facts = {**opened.facts, "val_fraction": held_out, "split_seed": words["seed"]}
        with display.busy("measuring"):
            return finish(
                session,
                steps_before=before,
                ledger=ledger,
                data=facts,
                command=command,
                record=record or {},
                report=report,
            )


def choose_recipe(
    name: str, situation: Situation, settings: Mapping[str, Any], tiny: bool = False
) -> Recipe:
    """A recipe by name for a situation, shrunk if it shall be, with single settings changed.

    Raises:
        Error: an unknown recipe or setting (the nearest is named), or a bad value.
    """
    if name not in RECIPES:
        near = did_you_mean(name, RECIPES) or f"; there are {', '.join(RECIPES)}"
        raise Error(f"unknown recipe {name!r}{near}")
    recipe = RECIPES[name](situation)
    if tiny:
        small = shrunk(recipe.replace(weights=settings.get("weights")))
        given = {"duration": situation.duration, "batch_size": situation.batch_size}
        recipe = small.replace(**{name: value for name, value in given.items() if value})
        if situation.image_size is not None:
            size = situation.image_size
            recipe = recipe.replace(model=dataclasses.replace(recipe.model, image_size=size))
    return with_settings(recipe, settings)


def build(recipe: Recipe, data: Source) -> ImageClassifier:
    """A recipe's model for these data, with fresh weights from the recipe's seed.

    Raises:
        Error: what `create_model` raises.
    """
    torch.manual_seed(recipe.seed)
    choice, classes = recipe.model, len(data.classes)
    if "num_classes" in choice.config:
        raise Error(f"num_classes follows from the data, which have {classes} classes")
    if recipe.masked.kind != "none":
        classes = 0  # no labels are learned, so there is no head
    if choice.family is not None:
        fields = {"num_classes": classes, "image_size": choice.image_size}
        model = from_config(choice.family, {**choice.config, **fields})
    else:
        model = create_model(choice.name, classes, choice.image_size, **dict(choice.config))
    if classes:
        model.set_labels(data.classes)
        for layer in (model.get_submodule(model.head_name), getattr(model, "head_dist", None)):
            bias = layer.bias if isinstance(layer, nn.Linear | nn.Conv2d) else None
            if recipe.target.head_bias and bias is not None:
                nn.init.constant_(bias, recipe.target.head_bias)
    if recipe.normalize == "data" and recipe.weights is None:
        mean, std = pixel_statistics(data, model.preprocessing)
        model.preprocessing = model.preprocessing.replace(mean=mean, std=std)
    return model


# What `--set` may say of things that decide the rest of the recipe, and so must be known before.
EARLY = (
    *("seed", "precision", "batch_size", "duration", "variant"),
    *("model.name", "model.image_size"),
)


def _words(settings: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """The early decisions: those of ``--set`` where it has them, else the flags'."""
    for name in ("weights", "teacher"):
        if name in settings:
            raise Error(f"{name} are given by --{name}, not by --set")
    early = {name: value for name, value in settings.items() if name in EARLY}
    read = with_settings(Recipe(), early)
    for name in early:
        owner, _, field = name.rpartition(".")
        given[name] = getattr(getattr(read, owner) if owner else read, field)
    return given


def _starting_model(
    name: str | None, weights: str | Path | None, image_size: Size | None, recipe: str
) -> Model:
    """The model that the user means: by name, or the one that the weights say they are of."""
    if name is None and weights is not None:
        about = description_of(weights)
        if about is None:
            raise Error(f"{weights} does not say which model it is: name it by --model")
        config = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in about["config"].items()
            if key != "num_classes"
        }
        size = config.pop("image_size")
        return Model(
            name=about.get("name") or about["family"],
            family=about["family"],
            image_size=size if image_size is None else image_size,
            config=config,
        )
    full, _ = resolve(name or DEFAULT_MODELS.get(recipe, DEFAULT_MODEL))
    size = config_of(full).image_size if image_size is None else image_size
    return Model(name=full, image_size=size)


def _duration(epochs: float | None, steps: int | None) -> Duration | None:
    if steps is not None:
        return Duration(steps, "steps")
    return None if epochs is None else Duration(epochs, "epochs")


def _plan(
    recipe: Recipe, model: ImageClassifier, opened: Opened, options: Options, engine: Engine
) -> list[str]:
    """What will be done, in lines."""
    examples = len(opened.parts.train)
    steps = lengths(recipe, examples, options).total
    size = "x".join(str(side) for side in height_width(model.image_size))
    figures = cost(model)
    return [
        f"model: {recipe.model.name} at {size}, {figures.parameters:,} parameters, "
        f"{figures.macs / 1e9:.3g} GMACs an image",
        f"plan:  recipe {recipe.name}, {steps:,} steps of {recipe.batch_size} images "
        f"({steps * recipe.batch_size / examples:.3g} epochs), {recipe.optim.name} at "
        f"{recipe.optim.lr:.3g}, {recipe.precision} on {engine.name}",
    ]


def _begin(session: Session, checkpoint: Checkpoint | None) -> Session:
    """The session where its checkpoint stands, or at its first step, with its records in order."""
    state, output = session.state, session.output
    if checkpoint is not None:
        state.restore(checkpoint)
    state.progress.accumulate = max(state.progress.accumulate, state.engine.agree(output.asked_for))
    if checkpoint is not None:
        session.before = state.progress.seconds
        session.display.say(f"going on after step {checkpoint.step:,}")
    output.rewind(state.progress.step)
    output.metrics.write(
        "start",
        step=state.progress.step,
        steps=session.lengths.total,
        device=state.engine.name,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    return session


def _load(model: ImageClassifier, weights: str) -> list[str]:
    """Load starting weights, and what to say of it.

    The head is kept only where the weights name these very classes in this order.

    Raises:
        Error: the weights do not fit.
    """
    if not model.num_classes:
        return str(load_weights(model, weights)).splitlines()
    known = labels_of(weights)
    if known is not None and known == model.labels:
        return str(load_weights(model, weights)).splitlines()
    report = load_weights(model, weights, fresh=("head",))
    why = "the file does not name its classes" if known is None else "its classes are others"
    return [
        *str(report).splitlines(),
        f"  a fresh zero head for {model.num_classes} classes, because {why}",
    ]
