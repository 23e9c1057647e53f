"""The loop: one for every recipe and every objective.

What is special here: a step depends on nothing but the recipe, the data and the step's number,
so the loop can be killed anywhere and go on from its last checkpoint as if it had not been.

Where the weights come from, first match first:
    1. the newest whole checkpoint in the output folder (the same command was given before);
    2. the weights that the caller loaded into the model (``--weights``);
    3. fresh ones from the recipe's seed.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from vitrail.data.draws import drop_path_draws
from vitrail.data.loader import Batch, eval_batches, train_batches
from vitrail.data.mixup import apply_mix, draw_mix, soft_targets
from vitrail.data.sources import Source
from vitrail.evaluation.accuracy import Accuracy, evaluate
from vitrail.kit.errors import Error, listing
from vitrail.models.base import ImageClassifier
from vitrail.models.parts import set_drop_path_draws
from vitrail.training.checkpoint import Checkpoints
from vitrail.training.display import Display
from vitrail.training.objectives import Example
from vitrail.training.optim import Rates, set_rate
from vitrail.training.output import Output
from vitrail.training.recipe import Recipe
from vitrail.training.state import State
from vitrail.training.tuning import enter
from vitrail.training.validation import mean_loss
from vitrail.weights.folder import save_weights
from vitrail.weights.read import BEST_FILE

MOST_BAD_STEPS = 10


@dataclass(frozen=True)
class Data:
    """What a run learns from and is measured on; `val` and `test` may be missing."""

    train: Source
    val: Source | None = None
    test: Source | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run may be told that cannot change its result.

    Args:
        save_every: steps between checkpoints; None for about ten in a run.
        workers: processes that decode; 0 for the main one.
        record_keys: whether to write the order of the samples to ``keys.jsonl``.
    """

    save_every: int | None = None
    workers: int = 0
    record_keys: bool = False


@dataclass(frozen=True)
class Lengths:
    """The lengths of a run, in steps."""

    total: int
    warmup: int
    eval_every: int
    save_every: int


@dataclass
class Session:
    """One process's part of a run: its state, and what it works with.

    Args:
        state: where the run stands; changed in place.
        data: what it learns from.
        output: where records, weights and checkpoints go.
        options: what cannot change the result.
        display: what a person sees.
    """

    state: State
    data: Data
    output: Output
    options: Options
    display: Display
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        recipe, examples = self.state.recipe, len(self.data.train)
        self.lengths = lengths(recipe, examples, self.options)
        self.rates = Rates(recipe, examples, self.lengths.total)
        self.before = self.state.progress.seconds

    def seconds(self) -> float:
        """Spent on the run so far, in all restarts together."""
        return self.before + time.monotonic() - self.began


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or a polite kill, after everything was saved; `step` says where the run stands."""

    def __init__(self, step: int):
        super().__init__(
            f"stopped after step {step:,}; everything is saved, and the same command goes on "
            "from there"
        )
        self.step = step


def lengths(recipe: Recipe, examples: int, options: Options) -> Lengths:
    """How long a recipe runs on this many examples.

    Raises:
        Error: a run of no steps.
    """
    if recipe.duration.value == 0:
        raise Error(f"a run of {recipe.duration} has no step; ask for at least one")
    total = max(1, recipe.duration.steps(examples, recipe.batch_size))
    return Lengths(
        total=total,
        warmup=recipe.schedule.warmup.steps(examples, recipe.batch_size, total),
        eval_every=max(1, recipe.eval_every.steps(examples, recipe.batch_size, total)),
        save_every=options.save_every or max(1, min(500, total // 10)),
    )


def run(session: Session) -> None:
    """Train from where the state stands to the end of its recipe.

    Raises:
        Interrupted: asked to stop; the state is saved.
        Error: the disk is full, or too many steps in a row were not finite.
    """
    state, output, options = session.state, session.output, session.options
    recipe, progress, total = state.recipe, state.progress, session.lengths.total
    checkpoints = Checkpoints(output.path)
    batches = train_batches(
        session.data.train,
        state.model.preprocessing,
        recipe.augment,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        start_sample=progress.step * recipe.batch_size,
        workers=options.workers,
        sampling=recipe.sampling,
        repeats=recipe.repeats,
    )
    session.display.start(progress.step, total)
    state.model.train()
    with (
        contextlib.closing(session.display),
        contextlib.closing(batches),
        stop_signals(session.display) as stop,
    ):
        while progress.step < total and not progress.over(recipe.patience):
            began = time.monotonic()
            batch = next(batches)
            if options.record_keys:
                output.keys.write("keys", step=progress.step + 1, keys=batch.keys)
            take_step(session, batch, began)
            at_end = progress.step == total
            if at_end or progress.step % session.lengths.eval_every == 0:
                look(session)
            at_end = at_end or progress.over(recipe.patience)
            if at_end or stop.is_set() or progress.step % session.lengths.save_every == 0:
                progress.seconds = session.seconds()
                checkpoints.save(state.checkpoint())
                output.metrics.write("save", step=progress.step, seconds=progress.seconds)
            if stop.is_set() and not at_end:
                raise Interrupted(progress.step)


def take_step(session: Session, batch: Batch, began: float) -> None:
    """One step on one batch: forward, backward, clip, apply, average, record.

    Args:
        session: its state goes one step further.
        batch: perhaps smaller than the recipe's, or empty, where pictures could not be read.
        began: when the batch was asked for, on the monotonic clock.
    """
    state = session.state
    recipe, progress, engine = state.recipe, state.progress, state.engine
    number = progress.step
    torch.manual_seed(step_seed(recipe.seed, number))  # what dropout draws from
    enter(state.model, number, session.rates.head_steps)
    rate = session.rates(number)
    set_rate(state.optimizer, rate)
    with engine.forward():
        example = _place(session, batch)
        loss = state.learner(example)
    value, norm = float(loss.value.detach()), math.nan
    if math.isfinite(value):
        engine.backward(loss.value)
        norm = engine.step(state.trained, state.optimizer, recipe.optim.clip_norm)
    progress.step += 1
    progress.images += len(batch.keys)
    progress.skipped.update(batch.skipped)
    if math.isfinite(norm):
        progress.bad_steps = 0
        if state.ema is not None:
            state.ema.update(number)
    else:
        _bad_step(session, batch, value, norm)
    speed = len(batch.keys) / (time.monotonic() - began)
    parts = {name: float(part) for name, part in loss.parts.items()}
    session.output.metrics.write(
        "step",
        step=progress.step,
        epoch=progress.step * recipe.batch_size / len(session.data.train),
        loss=value,
        **parts,
        lr=rate,
        images_per_second=speed,
        grad_norm=norm,
    )
    session.display.step(progress.step, value, parts.get("accuracy"), speed)


def look(session: Session) -> None:
    """Evaluate the averaged weights on the validation set, record it, keep them if best."""
    if session.data.val is None:
        return
    state, progress = session.state, session.state.progress
    if not state.learner.objective.labelled:
        return look_without_labels(session, session.data.val)
    try:
        with state.averaged():
            result = measure(
                state.model, session.data.val, state.recipe.batch_size, session.options.workers
            )
    except Error as error:  # training has lost nothing by it
        session.display.say(f"step {progress.step:,}: not validated, because {error}")
        return
    session.output.metrics.write(
        "eval", step=progress.step, top1=result.top1, top5=result.top5, loss=result.loss
    )
    session.display.say(
        f"step {progress.step:,}: validation top-1 {100 * result.top1:.2f} %, "
        f"loss {result.loss:.3f}"
    )
    _keep_if_best(session, result.top1)


def look_without_labels(session: Session, source: Source) -> None:
    """`look` by the objective's own loss: the lower the better."""
    state, progress = session.state, session.state.progress
    try:
        with state.averaged():
            loss, _ = mean_loss(state, source, session.options.workers)
    except Error as error:
        session.display.say(f"step {progress.step:,}: not validated, because {error}")
        return
    session.output.metrics.write("eval", step=progress.step, loss=loss)
    session.display.say(f"step {progress.step:,}: validation loss {loss:.4f}")
    _keep_if_best(session, -loss)


def _keep_if_best(session: Session, score: float) -> None:
    state, progress = session.state, session.state.progress
    progress.stale += 1
    if progress.best is None or score > progress.best:
        progress.best, progress.best_step, progress.stale = score, progress.step, 0
        with state.averaged():
            save_weights(state.model, session.output.path / BEST_FILE)


def measure(model: ImageClassifier, source: Source, batch_size: int, workers: int) -> Accuracy:
    """Accuracy of a live model on a source; their classes are matched by name."""
    batches = eval_batches(source, model.preprocessing, max(64, batch_size), workers=workers)
    return evaluate(model, batches, source.classes)


def step_seed(seed: int, step: int) -> int:
    """A seed for everything that one step draws from torch's own generator."""
    return (seed * 1_000_003 + step * 7_919 + 12_345) % 2**63


@contextlib.contextmanager
def stop_signals(display: Display) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C (or SIGTERM) sets; the second one ends the process.

    Outside the main thread signals cannot be caught, and the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in caught}

    def remember(number: int, frame: object) -> None:
        stop.set()
        display.say("stopping after this step, to save; once more to stop at once")
        signal.signal(number, before[signal.Signals(number)])

    for number in caught:
        signal.signal(number, remember)
    try:
        yield stop
    finally:
        for number in caught:
            signal.signal(number, before[number])


def _place(session: Session, batch: Batch) -> Example:
    """A batch on the device: normalised, mixed where the recipe mixes, with its drop-path draws."""
    state = session.state
    recipe, model, engine = state.recipe, state.model, state.engine
    pixels = engine.place(batch.images)
    images = engine.place(model.preprocessing.normalize(pixels))
    labels = engine.place(batch.labels)
    if state.drop_sites:
        epochs, indices = batch.epochs.tolist(), batch.indices.tolist()
        draws = drop_path_draws(recipe.seed, epochs, indices, state.drop_sites)
        set_drop_path_draws(model, engine.place(torch.from_numpy(draws)))
    first = state.progress.step * recipe.batch_size
    epoch, position = divmod(first, len(session.data.train))
    target = recipe.target
    mix = draw_mix(
        *(recipe.seed, epoch, position),
        *(target.mixup, target.cutmix, target.mixup_prob, target.cutmix_share),
    )
    which = {"pixels": pixels, "epochs": batch.epochs, "indices": batch.indices}
    if mix is None:
        return Example(images, labels, **which)
    targets = labels if labels.ndim == 2 else soft_targets(labels, model.num_classes)
    images, targets = apply_mix(images, targets, mix)
    return Example(images, labels, targets, **which)


def _bad_step(session: Session, batch: Batch, loss: float, norm: float) -> None:
    """Record a step that was not applied, say why, and stop where there are too many of them."""
    progress = session.state.progress
    progress.bad_steps += 1
    if not batch.keys:
        why = "none of its pictures can be read"
    elif not math.isfinite(loss):
        why = "its loss is not finite"
    else:
        why = "its gradient is not finite"
    session.output.metrics.write(
        "skip", step=progress.step, reason=why, loss=loss, grad_norm=norm, keys=batch.keys
    )
    session.display.say(f"step {progress.step:,} was not applied: {why}")
    if progress.bad_steps >= MOST_BAD_STEPS:
        named = batch.keys or [key for key, _ in batch.skipped]
        raise Error(
            f"{progress.bad_steps} steps in a row could not be applied, up to step "
            f"{progress.step}: {why} (pictures: {listing(named, 3)}); "
            + ("try a lower --lr" if batch.keys else "look at the data")
        )
