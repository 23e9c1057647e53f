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

from vitrail.data.loader import Batch, train_batches
from vitrail.kit.errors import Error
from vitrail.training.display import Display
from vitrail.training.few_shots import FewShots, look_at_few_shots
from vitrail.training.optim import set_rate
from vitrail.training.session import Data, Lengths, Options, Session, lengths
from vitrail.training.step import Outcome, TooLarge, forget, passes
from vitrail.training.trouble import bad_step, count_unreadable, overflowed
from vitrail.training.tuning import enter
from vitrail.training.validation import figures_of, in_words, mean_loss, measure, score_of
from vitrail.weights.folder import save_weights
from vitrail.weights.read import BEST_FILE

__all__ = ["Data", "Interrupted", "Lengths", "Options", "Session", "lengths", "run"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or a polite kill, after everything was saved; `step` says where the run stands."""

    def __init__(self, step: int):
        super().__init__(
            f"stopped after step {step:,}; everything is saved, and the same command goes on "
            "from there"
        )
        self.step = step


def run(session: Session, watched: FewShots | None = None) -> None:
    """Train from where the state stands to the end of its recipe.

    Args:
        session: its state goes all the way.
        watched: another data set to measure few-shot accuracy on, every so often.

    Raises:
        Interrupted: asked to stop; the state is saved.
        Error: the disk is full, memory is too small for one picture, another process died, or too
            many steps or pictures were bad.
    """
    state, options = session.state, session.options
    recipe, engine = state.recipe, state.engine
    batches = train_batches(
        session.data.train,
        state.model.preprocessing,
        recipe.augment,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        start_sample=state.progress.batches * recipe.batch_size,
        workers=options.workers,
        rank=engine.rank,
        world=engine.world,
        before=recipe.target.mixup > 0 or recipe.target.cutmix > 0,
        sampling=recipe.sampling,
        repeats=recipe.repeats,
    )
    session.display.start(state.progress.step, session.lengths.total)
    state.model.train()
    with (
        contextlib.closing(session.display),
        contextlib.closing(batches),
        stop_signals(session.display, others=engine.world > 1) as stop,
    ):
        if recipe.bad_step == "rollback" and not session.checkpoints.newest()[0]:
            save(session)  # there is to be something to go back to
        while not over(session):
            began, before = time.monotonic(), state.progress.step
            outcome = take_step(session, next(batches), began, stop.is_set())
            step = state.progress.step
            went_back = step <= before
            if not went_back and (over(session) or step % session.lengths.eval_every == 0):
                look(session)
            at_end = over(session)
            if watched is not None and not went_back and watched.due(step, at_end):
                look_at_few_shots(session, watched)
            if at_end or outcome.stop or went_back or step % session.lengths.save_every == 0:
                save(session)
            if outcome.stop and not at_end:
                raise Interrupted(step)


def over(session: Session) -> bool:
    """Whether the run has come to its end, by its length or by its patience."""
    progress = session.state.progress
    at_end = progress.step >= session.lengths.total
    return at_end or progress.over(session.state.recipe.patience)


def save(session: Session) -> None:
    """Write a checkpoint and say so in the records."""
    progress = session.state.progress
    progress.seconds = session.seconds()
    session.checkpoints.save(session.state.checkpoint())
    session.output.metrics.write("save", step=progress.step, seconds=progress.seconds)


def take_step(session: Session, batch: Batch, began: float, stop: bool = False) -> Outcome:
    """One step on one batch: forward, backward, clip, apply, average, record.

    Args:
        session: its state goes one step further.
        batch: this process's rows; fewer than planned, or none, where pictures cannot be read.
        began: when the batch was asked for, on the monotonic clock.
        stop: whether this process was asked to stop.
    """
    state = session.state
    recipe, progress, engine = state.recipe, state.progress, state.engine
    number = progress.step
    enter(state.model, number, session.rates.head_steps)
    rate = session.rates(number)
    set_rate(state.optimizer, rate, session.rates.peak(number))
    statistics = [buffer.clone() for buffer in state.statistics]
    outcome = _passes_that_fit(session, batch, stop)
    progress.step += 1
    progress.images += outcome.images
    if outcome.good:
        engine.step(state.trained, state.optimizer, outcome.norm, recipe.optim.clip_norm)
        progress.bad_steps = 0
        if state.ema is not None:
            state.ema.update(number)
        _record(session, batch, outcome, rate, began)
    else:
        overflow = overflowed(session, outcome)
        engine.forget(state.optimizer)
        forget(state, statistics)
        _record(session, batch, outcome, rate, began)
        bad_step(session, batch, outcome, overflow)
    if outcome.skipped:
        count_unreadable(session, batch)
    return outcome


def _passes_that_fit(session: Session, batch: Batch, stop: bool) -> Outcome:
    """Forward and backward; where memory is too small, in twice as many micro-batches.

    Raises:
        Error: it is too small for one picture, or another process would have to follow.
    """
    state = session.state
    progress, engine = state.progress, state.engine
    share = state.recipe.batch_size // engine.world
    while True:
        accumulate = session.accumulate
        try:
            return passes(state, batch, accumulate, stop)
        except TooLarge as error:
            doubled, said = 2 * accumulate, str(error).splitlines()[0]
        if accumulate >= share:
            raise Error(
                f"out of memory on {engine.name} with one picture at a time ({said}): take a "
                "smaller model or image size, or another --precision"
            )
        doubled = min(doubled, share)
        session.output.ask_for(engine.rank, doubled)
        if engine.world > 1:  # the others are in the middle of the step
            raise Error(
                f"out of memory in process {engine.rank}: the same command again goes on with "
                f"{doubled} micro-batches a step (torchrun --max-restarts gives it by itself)"
            )
        progress.accumulate = doubled
        session.output.metrics.write(
            "memory",
            step=progress.step + 1,
            micro_batch=math.ceil(state.recipe.batch_size / doubled),
            accumulate=doubled,
        )
        session.display.say(
            f"step {progress.step + 1:,} does not fit into memory: from here on {doubled} "
            "micro-batches a step; the batch stays the same"
        )


def _record(session: Session, batch: Batch, outcome: Outcome, rate: float, began: float) -> None:
    """What is known of a step, for the records and for the person who watches."""
    progress, recipe = session.state.progress, session.state.recipe
    if session.options.record_keys:
        keys = session.state.engine.gather(batch.keys)
        session.output.keys.write("keys", step=progress.step, keys=keys)
    speed = outcome.images / (time.monotonic() - began)
    session.output.metrics.write(
        "step",
        step=progress.step,
        epoch=progress.batches * recipe.batch_size / len(session.data.train),
        loss=outcome.loss,
        **outcome.parts,
        lr=rate,
        images_per_second=speed,
        grad_norm=outcome.norm_value,
    )
    session.display.step(progress.step, outcome.loss, outcome.parts.get("accuracy"), speed)


def look(session: Session) -> None:
    """Evaluate the averaged weights on the validation set, record it, keep them if best.

    Where the objective has no labels, by its own loss: the lower the better.
    """
    if session.data.val is None:
        return
    state, progress = session.state, session.state.progress
    workers = session.options.workers
    with state.averaged() as model:
        try:
            if state.learner.objective.labelled:
                batch_size = state.recipe.batch_size
                result = measure(model, session.data.val, batch_size, workers, state.engine)
                figures, score = figures_of(result), score_of(result)
                said = f"validation {in_words(figures)}"
            else:
                loss, _ = mean_loss(state, session.data.val, workers)
                figures, score = {"loss": loss}, -loss
                said = f"validation loss {loss:.4f}"
        except Error as error:  # training has lost nothing by it
            session.display.say(f"step {progress.step:,}: not validated, because {error}")
            return
        session.output.metrics.write("eval", step=progress.step, **figures)
        session.display.say(f"step {progress.step:,}: {said}")
        progress.stale += 1
        if progress.best is None or score > progress.best:
            progress.best, progress.best_step, progress.stale = score, progress.step, 0
            if state.engine.first:
                save_weights(model, session.output.path / BEST_FILE)


@contextlib.contextmanager
def stop_signals(display: Display, others: bool = False) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C (or SIGTERM) sets; the second one ends the process.

    With ``others`` a second one changes nothing: after a Ctrl-C every process has had its own, and
    torchrun sends each another, and SIGKILL half a minute later.

    Outside the main thread signals cannot be caught, and the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in caught}

    def remember(number: int, frame: object) -> None:
        told = stop.is_set()
        stop.set()
        if others and not told:
            display.reply("stopping after this step, to save")
        elif not others:
            display.reply("stopping after this step, to save; once more to stop at once")
            signal.signal(number, before[signal.Signals(number)])

    for number in caught:
        signal.signal(number, remember)
    try:
        yield stop
    except BaseException:
        if others:  # torchrun's SIGTERM is on its way, and there is yet to say what happened
            before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number in caught:
            signal.signal(number, before[number])
