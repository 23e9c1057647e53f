"""Whether an explanation is right: what happens to the answer as the pixels that it names go.

Deletion and insertion (Petsiuk, Das and Saenko, "RISE", 2018): patches are replaced by a baseline,
or appear in it, the most relevant first, and the probability of the class is followed. The area
under that curve over the share of patches is the score: an explanation that found what the answer
hangs on lets it fall at once (deletion: lower is better) or makes it at once (insertion: higher is
better). What is replaced are whole patches, ranked by their mean heat; equal ones stand in an order
drawn once. Scores mean something beside each other, on the same pictures, patches and baseline, and
beside `random_orders`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.inspection.places import Grid
from vitrail.inspection.relevance import predicted
from vitrail.kit.errors import Error, did_you_mean
from vitrail.metrics.bootstrap import bootstrap_interval
from vitrail.models.base import ImageClassifier
from vitrail.models.vit import VisionTransformer

SIDES = 14  # patches along a side of the picture, for networks without patches of their own
BLUR = 8  # the deviation of the blur is the shorter side over this
MODES = ("deletion", "insertion")


@dataclass(frozen=True, eq=False)
class Curves:
    """How the probability of the class goes as patches go, or come.

    Attributes:
        mode: ``deletion`` or ``insertion``.
        shares: [s], of the patches that are gone (or there), from 0 to 1.
        probabilities: [b s], of each picture's class.
    """

    mode: str
    shares: Tensor
    probabilities: Tensor

    @property
    def areas(self) -> Tensor:
        """The area under each picture's curve: [b], 0..1, by the trapezoid rule."""
        return torch.trapezoid(self.probabilities, self.shares, dim=1)


@dataclass(frozen=True)
class Difference:
    """The mean of one score less another on the same pictures, with its interval."""

    mean: float
    low: float
    high: float
    confidence: float = 0.95


def patch_of(model: ImageClassifier, size: Grid) -> Grid:
    """(height, width) of the patches to replace: the model's own, or a fourteenth of the sides."""
    if isinstance(model, VisionTransformer):
        return model.config.stride, model.config.stride
    return math.ceil(size[0] / SIDES), math.ceil(size[1] / SIDES)


def patch_means(heat: Tensor, patch: Grid) -> Tensor:
    """The mean heat of each patch: [b h w] to [b rows columns]; those at the border may be cut."""
    # Without padding and with a ceiling, the mean at a border is over what is there.
    return F.avg_pool2d(heat[:, None], patch, ceil_mode=True)[:, 0]


def patch_order(heat: Tensor, patch: Grid) -> Tensor:
    """The patches of heat [b h w] by their mean, most relevant first: int64 [b n].

    Patches count in rows from the top left; those at the border may be cut.
    """
    means = patch_means(heat.double(), patch).flatten(1)
    shuffled = torch.randperm(means.shape[1], generator=torch.Generator().manual_seed(0))
    shuffled = shuffled.to(means.device)
    return shuffled[means[:, shuffled].argsort(dim=1, descending=True, stable=True)]


def random_orders(pictures: int, patches: int, draws: int, seed: int = 0) -> Tensor:
    """Orders for comparison, each drawn by itself: int64 [draws pictures patches]."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(draws, pictures, patches, generator=generator, dtype=torch.float64)
    return keys.argsort(dim=2)


def baseline_of(model: ImageClassifier, images: Tensor, baseline: str) -> Tensor:
    """What patches are replaced by: a picture for each of the normalised images [b c h w].

    ``grey`` is the middle of the range, ``mean`` the colour that normalises to zero, ``black`` is
    black, ``blur`` the picture itself under a Gaussian of an eighth of its shorter side.

    Raises:
        Error: another baseline.
    """
    if baseline not in BASELINES:
        near = did_you_mean(baseline, BASELINES) or f"; it is one of {', '.join(BASELINES)}"
        raise Error(f"patches cannot be replaced by {baseline!r}{near}")
    return BASELINES[baseline](model, images)


@torch.no_grad()
def curves(
    model: ImageClassifier,
    images: Tensor,
    order: Tensor,
    patch: Grid,
    mode: str = "deletion",
    baseline: str = "grey",
    steps: int | None = None,
    targets: Tensor | None = None,
    batch_size: int = 64,
) -> Curves:
    """Follow the class as patches are deleted or inserted in order.

    Args:
        model: in evaluation mode.
        images: float [b c h w], normalised, as the model takes them.
        order: int64 [b n], see `patch_order`.
        patch: (height, width) in pixels, as for the order.
        mode: ``deletion`` begins with the picture, ``insertion`` with the baseline.
        baseline: see `baseline_of`.
        steps: in how many steps of equally many patches (rounded); None for one each.
        targets: int64 [b], the class to follow; None for what the model predicts of the whole.
        batch_size: pictures at a time, whatever their step: the memory is that of so many.

    Raises:
        Error: an unknown mode or baseline, or an order that is not one of these patches.
    """
    if mode not in MODES:
        raise Error(f"patches go by deletion or insertion, not {mode!r}{did_you_mean(mode, MODES)}")
    height, width = images.shape[-2:]
    grid = (math.ceil(height / patch[0]), math.ceil(width / patch[1]))
    n = grid[0] * grid[1]
    everything = torch.arange(n, device=order.device).expand(len(images), n)
    if order.shape != (len(images), n) or not torch.equal(order.sort(1)[0], everything):
        raise Error(f"an order of the {n} patches of each picture holds each of them once")
    counts = torch.linspace(0, n, (n if steps is None else max(1, min(steps, n))) + 1).round()
    weight = next(model.parameters())
    ranks = order.argsort(1)
    found = torch.empty(len(images), len(counts), dtype=torch.float64)
    for start in range(0, len(images), max(1, batch_size // len(counts))):
        some = slice(start, start + max(1, batch_size // len(counts)))
        whole = images[some].to(weight)
        classes = predicted(model, whole) if targets is None else targets[some].to(weight.device)
        base = baseline_of(model, whole, baseline)
        first = ranks[some].reshape(-1, 1, *grid) < counts.to(ranks)[:, None, None]
        hidden = first if mode == "deletion" else ~first
        places = torch.cartesian_prod(torch.arange(len(whole)), torch.arange(len(counts)))
        for few in places.split(batch_size):
            i, s = few.unbind(1)
            mask = _to_pixels(hidden[i, s], patch, (height, width)).to(weight.device)[:, None]
            logits = model(torch.where(mask, base[i], whole[i]))
            chosen = logits.double().softmax(1).gather(1, classes[i][:, None])[:, 0]
            found[start + i, s] = chosen.cpu()
    return Curves(mode, counts.double() / n, found)


@dataclass(frozen=True, eq=False)
class RandomCurves:
    """What patches in random order do: the bar that an explanation has to pass.

    Attributes:
        curves: the mean over all draws, picture by picture.
        spread: the standard deviation over the draws of the area's mean over the pictures; NaN for
            a single draw.
    """

    curves: Curves
    spread: float


def random_curves(
    model: ImageClassifier,
    images: Tensor,
    patch: Grid,
    mode: str = "deletion",
    draws: int = 4,
    seed: int = 0,
    **words: Any,
) -> RandomCurves:
    """`curves` in ``draws`` random orders of each picture's patches, from a seed.

    The other words are those of `curves`.
    """
    height, width = images.shape[-2:]
    n = math.ceil(height / patch[0]) * math.ceil(width / patch[1])
    orders = random_orders(len(images), n, draws, seed)
    found = [curves(model, images, order, patch, mode, **words) for order in orders]
    mean = torch.stack([each.probabilities for each in found]).mean(0)
    areas = torch.stack([each.areas.mean() for each in found])
    spread = float(areas.std()) if draws > 1 else math.nan
    return RandomCurves(Curves(mode, found[0].shares, mean), spread)


def paired_difference(first: Tensor, second: Tensor, confidence: float = 0.95) -> Difference:
    """How much larger the first scores are, by bootstrap over the pictures.

    Args:
        first, second: [b], scores of the same pictures; or [s b], under s seeds, which are then
            drawn as well as the pictures.
    """
    values = (first - second).double().numpy()
    low, high = bootstrap_interval(values, confidence)
    return Difference(float(values.mean()), low, high, confidence)


def _to_pixels(patches: Tensor, patch: Grid, size: Grid) -> Tensor:
    """Each patch's value at its pixels: [b rows columns] to [b h w]."""
    rows, columns = torch.arange(size[0]) // patch[0], torch.arange(size[1]) // patch[1]
    return patches[:, rows][:, :, columns]


def _flat(value: float) -> Callable[[ImageClassifier, Tensor], Tensor]:
    def baseline(model: ImageClassifier, images: Tensor) -> Tensor:
        p = model.preprocessing
        normalised = [(value - m) / s for m, s in zip(p.mean, p.std, strict=True)]
        return torch.tensor(normalised).to(images)[:, None, None].expand_as(images)

    return baseline


def _blurred(model: ImageClassifier, images: Tensor) -> Tensor:
    deviation = max(1.0, min(images.shape[-2:]) / BLUR)
    for axis in (2, 3):
        radius = min(math.ceil(3 * deviation), images.shape[axis] - 1)
        kernel = torch.exp(-((torch.arange(-radius, radius + 1) / deviation) ** 2) / 2)
        kernel = (kernel / kernel.sum()).to(images)
        channels = images.shape[1]
        weight = kernel.view(1, 1, -1, 1) if axis == 2 else kernel.view(1, 1, 1, -1)
        border = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
        padded = F.pad(images, border, mode="reflect")
        images = F.conv2d(padded, weight.expand(channels, 1, -1, -1), groups=channels)
    return images


BASELINES: dict[str, Callable[[ImageClassifier, Tensor], Tensor]] = {
    "grey": _flat(0.5),
    "mean": lambda model, images: torch.zeros_like(images),
    "black": _flat(0.0),
    "blur": _blurred,
}
