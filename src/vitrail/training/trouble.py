"""What the loop does when a step goes wrong: numbers not finite, pictures that cannot be read.

The offending pictures are named in the records, and nothing is changed by a step that is not
applied: not the weights, not the optimiser, not batch norm's statistics.
"""

import math

from vitrail.data.loader import Batch
from vitrail.kit.errors import Error, listing
from vitrail.training.session import Session
from vitrail.training.step import Outcome


def overflowed(session: Session, outcome: Outcome) -> bool:
    """Whether a gradient is not finite only for want of range: fp16 at its loss scale.

    The scale is halved then and the batch passed over, as everywhere; that is no bad step.
    """
    scaler = session.state.engine.scaler
    scale = scaler.get_scale() if scaler.is_enabled() else 1.0
    return math.isfinite(outcome.loss) and outcome.images > 0 and scale > 1


def bad_step(session: Session, batch: Batch, outcome: Outcome, overflow: bool) -> None:
    """Record a step that was not applied, say why, and do as the recipe says: skip, go back, stop.

    Raises:
        Error: the recipe says to stop, or there were too many of them.
    """
    state, recipe = session.state, session.state.recipe
    progress = state.progress
    suspects = state.engine.gather(outcome.suspects)
    keys = suspects or state.engine.gather(batch.keys)
    if not outcome.images:
        why = "none of its pictures can be read"
    elif not math.isfinite(outcome.loss):
        why = "its loss is not finite"
    elif overflow:
        why = "its gradient is beyond the range of fp16; the loss scale was halved"
    else:
        why = "its gradient is not finite"
    step, policy = progress.step, "skip" if overflow else recipe.bad_step
    session.output.metrics.write(
        "skip",
        step=step,
        reason=why,
        loss=outcome.loss,
        grad_norm=outcome.norm_value,
        keys=keys,
        policy=policy,
    )
    session.display.say(f"step {step:,} was not applied: {why}")
    if overflow:
        return
    progress.bad_steps += 1
    named = keys or [key for key, _ in state.engine.gather(batch.skipped)]
    advice = "try a lower --lr" if outcome.images else "look at the data"
    if policy == "stop":
        raise Error(
            f"step {step} could not be applied: {why} (pictures: {listing(named, 3)}); {advice}, "
            "or let such steps pass by --set bad_step=skip"
        )
    if progress.bad_steps >= recipe.most_bad_steps or progress.rollbacks >= recipe.most_bad_steps:
        how = "in a row " if policy == "skip" else ""
        raise Error(
            f"{recipe.most_bad_steps} steps {how}could not be applied, up to step {step}: {why} "
            f"(pictures: {listing(named, 3)}); {advice}"
        )
    if policy == "rollback":
        _roll_back(session)


def _roll_back(session: Session) -> None:
    """Be as at the last checkpoint, but let the stream go on after the batch that went wrong.

    Every draw is a function of its place, so the same batches again would give the same numbers:
    all batches since the checkpoint are passed over (as was done for PaLM, arXiv 2204.02311, 5.1).
    """
    state = session.state
    before = state.progress
    checkpoint, _ = session.checkpoints.newest()
    if checkpoint is None:
        raise Error("there is no checkpoint to go back to; use --set bad_step=skip")
    state.restore(checkpoint)
    progress = state.progress
    progress.passed_over = before.batches - progress.step
    progress.rollbacks = before.rollbacks + 1
    progress.images, progress.skipped = before.images, before.skipped
    progress.accumulate = before.accumulate
    session.output.rewind(progress.step, keep=("skip", "memory"))
    session.display.say(
        f"going back to step {progress.step:,}; the next {before.batches - progress.batches:,} "
        "batches are those after it"
        if before.batches != progress.batches
        else f"going back to step {progress.step:,}, with the batches that come next"
    )


def count_unreadable(session: Session, batch: Batch) -> None:
    """Remember which pictures could not be read, and stop where there are too many of them.

    Raises:
        Error: more than the share that the run was told to bear.
    """
    progress, train = session.state.progress, session.data.train
    progress.skipped.update(session.state.engine.gather(batch.skipped))
    check_unreadable(
        {**dict(session.data.unreadable), **progress.skipped},
        len(train) + len(session.data.unreadable),
        session.options.max_corrupt,
    )


def check_unreadable(unreadable: dict[str, str], n: int, most: float) -> None:
    """Stop where more than a share of all pictures cannot be read.

    Args:
        unreadable: reason by key.
        n: how many pictures there are.
        most: the share that is borne.

    Raises:
        Error: more than that; some of them are named.
    """
    if len(unreadable) > most * n:
        named = listing([f"{key} ({reason})" for key, reason in unreadable.items()], 3)
        raise Error(
            f"{len(unreadable):,} of {n:,} training pictures cannot be read, more than "
            f"{100 * most:g} %: {named}; mend them, or raise --max-corrupt"
        )
