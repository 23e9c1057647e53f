"""One step: the forward and backward passes of a global batch, in as many pieces as fit.

What is special here: the pieces do not change what is computed. A batch is cut by processes and
by accumulation, each piece's loss weighs as much as it has pictures, the partner of a picture in
mixup is the one before it in the *global* batch, and stochastic depth draws by (seed, epoch,
image). What does depend on the pieces: dropout (drawn by seed, step and process) and batch norm's
statistics, which are of one micro-batch of all processes.
"""

import gc
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.data.draws import drop_path_draws
from vitrail.data.loader import Batch, shares
from vitrail.data.mixup import Mix, apply_mix, draw_mix, soft_targets
from vitrail.models.parts import set_drop_path_draws
from vitrail.training.engine import out_of_memory
from vitrail.training.objectives import Example
from vitrail.training.state import State


class TooLarge(Exception):
    """A micro-batch that memory has no room for; nothing of the step was applied."""


@dataclass(frozen=True)
class Outcome:
    """What the passes of one step gave, the same in every process; nothing is applied yet.

    Args:
        loss: mean over the readable pictures of the global batch; NaN where there are none.
        parts: of the loss, averaged likewise.
        norm: of the gradient, as the optimiser's clipping wants it; its value is `norm_value`.
        images: how many pictures could be read, in all processes.
        skipped: how many could not.
        stop: whether some process was asked to stop.
        suspects: this process's keys of the micro-batches whose loss is not finite.
    """

    loss: float
    parts: dict[str, float]
    norm: Tensor
    norm_value: float
    images: int
    skipped: int
    stop: bool
    suspects: list[str]

    @property
    def good(self) -> bool:
        """Whether the step may be applied."""
        finite = math.isfinite(self.loss) and math.isfinite(self.norm_value)
        return finite and self.images > 0


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A seed for everything that one step draws in one process from torch's own generator."""
    return (seed * 1_000_003 + step * 7_919 + rank * 15_485_863 + 12_345) % 2**63


def passes(state: State, batch: Batch, accumulate: int, stop: bool = False) -> Outcome:
    """Forward and backward over a process's rows of a global batch.

    Args:
        state: its gradients are filled; nothing else of it is changed but batch norm's statistics.
        batch: this process's rows, perhaps fewer than planned, or none.
        accumulate: how many micro-batches to cut them into; the same in every process.
        stop: whether this process was asked to stop.

    Raises:
        TooLarge: no memory; the gradients are gone, and batch norm is as it was.
    """
    before = [buffer.clone() for buffer in state.statistics]
    try:
        return _passes(state, batch, accumulate, stop)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        problem = TooLarge(str(error))
    # Outside of the handler: the error's traceback holds the activations.
    state.optimizer.zero_grad(set_to_none=True)
    forget(state, before)
    gc.collect()
    if state.engine.device.type == "cuda":
        torch.cuda.empty_cache()
    raise problem


def forget(state: State, statistics: list[Tensor]) -> None:
    """Set batch norm's buffers back to copies of them."""
    for buffer, copy in zip(state.statistics, statistics, strict=True):
        buffer.copy_(copy)


def _passes(state: State, batch: Batch, accumulate: int, stop: bool) -> Outcome:
    recipe, engine = state.recipe, state.engine
    torch.manual_seed(step_seed(recipe.seed, state.progress.step, engine.rank))  # for dropout
    rows = len(batch.keys)
    pieces = accumulate if engine.world > 1 else max(1, min(accumulate, rows))
    counts = torch.tensor([rows, len(batch.skipped)], dtype=torch.float64, device=engine.device)
    total = engine.total(counts) if engine.world > 1 else counts
    target = recipe.target
    mix = draw_mix(
        *(recipe.seed, batch.epoch, batch.position),
        *(target.mixup, target.cutmix, target.mixup_prob, target.cutmix_share),
    )
    sums: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    cut = shares(rows, pieces)
    for number, part in enumerate(cut):
        with engine.forward(state.runner, last=number == pieces - 1):
            loss = state.runner(_example(state, batch, part, mix))
            weighed = loss.value
            if len(part) != rows or engine.world > 1:
                weight = len(part) * engine.world / total[0].clamp(min=1)
                weighed = loss.value * weight.to(loss.value.dtype)
            engine.backward(weighed)
        losses.append(loss.value.detach())
        for name, value in {"": loss.value, **loss.parts}.items():
            value = value.detach().double() * len(part)
            sums[name] = sums[name] + value if name in sums else value
    norm = engine.norm(state.trained, state.optimizer)
    flag = torch.tensor(float(stop), dtype=torch.float64, device=engine.device)
    summed = engine.total(torch.stack([*sums.values(), flag]))
    figures = torch.cat([summed, total, engine.whole(norm).double().reshape(1)]).tolist()
    *means, stopping, images, skipped, norm_value = figures
    divided = [mean / images if images else math.nan for mean in means]
    return Outcome(
        loss=divided[0],
        parts=dict(zip(list(sums)[1:], divided[1:], strict=True)),
        norm=norm,
        norm_value=norm_value,
        images=int(images),
        skipped=int(skipped),
        stop=stopping > 0,
        suspects=[]
        if math.isfinite(divided[0])
        else [
            key
            for part, loss in zip(cut, losses, strict=True)
            if not loss.isfinite()
            for key in batch.keys[part.start : part.stop]
        ],
    )


def _example(state: State, batch: Batch, rows: range, mix: Mix | None) -> Example:
    """Some rows on the device: normalised, mixed with their partners, with their draws."""
    model, engine, recipe = state.model, state.engine, state.recipe
    part = slice(rows.start, rows.stop)
    images, labels = batch.images[part], batch.labels[part]
    places = (batch.epochs, batch.indices, batch.repeats)
    epochs, indices, repeats = (place[part].tolist() for place in places)
    if not rows:  # a process with nothing to learn from still takes part: one black picture
        images = batch.images.new_zeros(1, *model.preprocessing.size, 3)
        labels = batch.labels.new_zeros(1, *batch.labels.shape[1:])
        epochs, indices, repeats, mix = [0], [0], [0], None
    whole = len(rows) == len(batch.keys) and batch.before is None
    mixed_in = mix is not None and not whole  # the partner of the first row comes before it
    if mixed_in:
        other = _before(batch, rows.start)
        images, labels = torch.cat([other[0], images]), torch.cat([other[1], labels])
    own = slice(1 if mixed_in else 0, None)
    pixels = engine.place(images)
    images = engine.place(model.preprocessing.normalize(pixels))
    labels = engine.place(labels)
    if state.drop_sites:
        draws = drop_path_draws(recipe.seed, epochs, indices, state.drop_sites, repeats)
        set_drop_path_draws(model, engine.place(torch.from_numpy(draws)))
    if mix is None:
        return Example(images, labels, None, pixels, epochs, indices, repeats)
    targets = labels if labels.ndim == 2 else soft_targets(labels, model.num_classes)
    images, targets = apply_mix(images, targets, mix)
    rest = images[own], labels[own], targets[own], pixels[own]
    return Example(*rest, epochs, indices, repeats)


def _before(batch: Batch, row: int) -> tuple[Tensor, Tensor]:
    """The picture before a row in the global batch, uint8 [1 h w c], and its label."""
    if row == 0 and batch.before is not None:
        return batch.before
    at = row - 1 if row else len(batch.keys) - 1
    return batch.images[at : at + 1], batch.labels[at : at + 1]
