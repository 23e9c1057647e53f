"""Why the model says what it says: how much each pixel counts for a class, in several ways.

An explanation is a map of heat over the picture, as large as the picture. None of them is the
truth: `inspection.scores` measures which of them finds the pixels that the answer hangs on.
By attention: ``relevance`` is attention times its gradient (Chefer, Gur and Wolf, "Generic
Attention-model Explainability", arXiv 2103.15679): of each layer the positive part of A * dy/dA,
averaged over the heads, and R <- R + A R from the first layer to the last, y the logit of the
class; ``rollout`` (Abnar and Zuidema, 2020) and ``attention``, what is read through the last layer
alone, know no class.
By gradients, for every network: ``gradient`` (Simonyan et al., 2014), ``gradient_x_input``,
``smooth_gradient`` (Smilkov et al., 2017) and ``integrated_gradients`` (Sundararajan et al., 2017);
``grad_cam`` (Selvaraju et al., 2017) for networks with convolutional maps.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.inspection.flow import flow, reading
from vitrail.inspection.places import POOLING, Layer, Places, layers_of
from vitrail.kit.errors import Error, did_you_mean
from vitrail.models.base import ImageClassifier
from vitrail.models.bit_resnet import BiTResNet
from vitrail.models.hybrid import HybridTransformer
from vitrail.models.resnet import ResNet
from vitrail.models.tape import Tape

WITH_MAPS = (ResNet, BiTResNet, HybridTransformer)
SAMPLES = 16  # noisy copies of a picture for smooth gradients, and steps of integrated ones
NOISE = 0.15  # the deviation of their noise, as a share of the picture's range
Explanation = Callable[[ImageClassifier, Tensor, Tensor], Tensor]


def explain(
    model: ImageClassifier,
    images: Tensor,
    method: str = "relevance",
    targets: Tensor | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Heat over the pictures: float [b h w] on the CPU, larger where more of the answer hangs.

    Heat by attention is not negative and spread over the pixels that a token stands for, so its
    sum is what reaches them; heat by gradients is not negative but for ``gradient_x_input`` and
    ``integrated_gradients``, which are signed.

    Args:
        model: left as it was, its gradients too.
        images: float [b c h w], normalised, as the model takes them.
        method: one of `EXPLANATIONS`.
        targets: int64 [b], the class to explain; None for the one that the model predicts.
        batch_size: pictures at a time, which bounds the memory.

    Raises:
        Error: an unknown method, one that the network has nothing for (see `methods_of`), a
            network without a class to explain, or targets out of range.
    """
    if method not in EXPLANATIONS:
        near = did_you_mean(method, EXPLANATIONS) or f"; there are {', '.join(EXPLANATIONS)}"
        raise Error(f"no explanation is called {method!r}{near}")
    heats = []
    with looking(model):
        for some, classes in _batches(model, images, targets, batch_size):
            heats.append(EXPLANATIONS[method](model, some, classes).detach().cpu())
    return torch.cat(heats)


def methods_of(model: ImageClassifier) -> list[str]:
    """The names of the explanations that a network has, those by attention first."""
    by_attention = ("relevance", "rollout", "attention")
    missing = () if layers_of(model) else by_attention
    if not isinstance(model, WITH_MAPS):
        missing = (*missing, "grad_cam")
    return [name for name in EXPLANATIONS if name not in missing]


@contextmanager
def looking(model: ImageClassifier) -> Iterator[None]:
    """The model in evaluation mode and gradients on, whatever was before, which is back after."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        model.train(was_training)


def predicted(model: ImageClassifier, images: Tensor) -> Tensor:
    """The classes [b] that a model predicts for normalised images [b c h w]."""
    with torch.no_grad():
        return _checked(model(images)).argmax(-1)


# -- by attention --------------------------------------------------------------------------------


def gradient_weighted(attention: Tensor, gradient: Tensor) -> Tensor:
    """A layer's relevance: the positive part of attention times gradient, averaged over the heads.

    Both [b h n m] to [b n m] (arXiv 2103.15679, equation 5).
    """
    return (attention * gradient).clamp(min=0).mean(1)


def propagate(layers: Sequence[Tensor]) -> Tensor:
    """R <- R + A R from the identity: [b n n], row = output token, column = input token.

    Args:
        layers: of each layer what `gradient_weighted` gives, [b n n], first layer first. For fewer
            keys than queries, and for several stages, `flow.flow` does it, a row at a time.
    """
    relevance = torch.eye(layers[0].shape[-1]).to(layers[0]).expand_as(layers[0])
    for layer in layers:
        relevance = relevance + layer @ relevance
    return relevance


def over_pixels(heat: Tensor, places: Places, size: tuple[int, int]) -> Tensor:
    """Heat of places [b rows columns] over a picture's pixels: [b h w], with the same sum.

    Each pixel belongs to the row and the column of places that lie nearest to it, and the heat of
    a place is spread evenly over its pixels: of patches that is the patch.
    """
    for axis, centres in ((1, places.y), (2, places.x)):
        pixels = np.arange(size[axis - 1]) + 0.5
        nearest = torch.from_numpy(np.abs(pixels[:, None] - centres).argmin(1)).to(heat.device)
        shares = 1 / torch.bincount(nearest, minlength=len(centres)).to(heat)
        shape = (1, -1, 1) if axis == 1 else (1, 1, -1)
        heat = (heat * shares.view(shape)).index_select(axis, nearest)
    return heat


def _relevance(model: ImageClassifier, images: Tensor, targets: Tensor) -> Tensor:
    layers, tape = _attending(model, images), Tape(only="*attention")
    # The pictures ask for gradients so that a model whose weights are frozen has them too.
    logits = _checked(model(images.detach().requires_grad_(), tape=tape))
    names = [layer.name for layer in layers] + [POOLING] * (POOLING in tape)
    gradients = torch.autograd.grad(_chosen(logits, targets).sum(), [tape[n] for n in names])
    fused = {
        name: gradient_weighted(tape[name].detach(), gradient)
        for name, gradient in zip(names, gradients, strict=True)
    }
    pooling = fused.pop(POOLING)[:, None] if POOLING in fused else None
    read = reading(model, layers[-1], pooling)
    heat = flow(layers, list(fused.values()), read, residual=None)
    return over_pixels(heat, layers[0].queries, (images.shape[-2], images.shape[-1]))


def _rollout(model: ImageClassifier, images: Tensor, targets: Tensor) -> Tensor:
    layers, heads, pooling = _fused(model, images)
    heat = flow(layers, heads, reading(model, layers[-1], pooling))
    return over_pixels(heat, layers[0].queries, (images.shape[-2], images.shape[-1]))


def _attention(model: ImageClassifier, images: Tensor, targets: Tensor) -> Tensor:
    # What is read through the last layer alone: through the earlier ones every token passes as it
    # is. A pooling that attends is that last layer, and the blocks are all earlier ones.
    layers, heads, pooling = _fused(model, images)
    last = heads[-1] if pooling is None else None
    read = reading(model, layers[-1], pooling)
    heat = flow(layers, [*[None] * (len(layers) - 1), last], read, residual=0.0)
    return over_pixels(heat, layers[0].queries, (images.shape[-2], images.shape[-1]))


def _attending(model: ImageClassifier, images: Tensor) -> list[Layer]:
    layers = layers_of(model, (images.shape[-2], images.shape[-1]))
    if not layers:
        raise Error(
            f"{type(model).__name__} has no attention, so there is none to follow back; "
            f"it has {', '.join(methods_of(model))}"
        )
    return layers


def _fused(
    model: ImageClassifier, images: Tensor
) -> tuple[list[Layer], list[Tensor], Tensor | None]:
    """The layers, each one's attention averaged over its heads, and a pooling's own weights."""
    layers, tape = _attending(model, images), Tape(only="*attention")
    with torch.no_grad():
        _checked(model(images, tape=tape))
    heads = [tape[layer.name].mean(1) for layer in layers]
    return layers, heads, tape.get(POOLING)


# -- by gradients --------------------------------------------------------------------------------


def _input_gradient(model: ImageClassifier, images: Tensor, targets: Tensor) -> Tensor:
    """The logit of the class by each number of the normalised picture: [b c h w]."""
    images = images.detach().requires_grad_()
    return torch.autograd.grad(_chosen(_checked(model(images)), targets).sum(), images)[0]


def _gradient(model: ImageClassifier, images: Tensor, targets: Tensor) -> Tensor:
    return _input_gradient(model, images, targets).abs().amax(1)


def _gradient_x_input(model: ImageClassifier, images: Tensor, targets: Tensor) -> Tensor:
    return (_input_gradient(model, images, targets) * images).sum(1)


def _smooth_gradient(model: ImageClassifier, images: Tensor, targets: Tensor) -> Tensor:
    # The same noise for every picture: what comes out depends on nothing but the picture.
    generator = torch.Generator().manual_seed(0)
    span = NOISE * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    total = torch.zeros_like(images)
    for _ in range(SAMPLES):
        noise = torch.randn(images.shape[1:], generator=generator, dtype=torch.float64)
        total += _input_gradient(model, images + span * noise.to(images), targets)
    return (total / SAMPLES).abs().amax(1)


def _integrated_gradients(model: ImageClassifier, images: Tensor, targets: Tensor) -> Tensor:
    # From the mean colour, which is zero once normalised, by the midpoint rule.
    total = torch.zeros_like(images)
    for i in range(SAMPLES):
        total += _input_gradient(model, images * ((i + 0.5) / SAMPLES), targets)
    return (total / SAMPLES * images).sum(1)


def _grad_cam(model: ImageClassifier, images: Tensor, targets: Tensor) -> Tensor:
    if not isinstance(model, WITH_MAPS):
        raise Error(
            f"{type(model).__name__} has no convolutional maps for grad_cam; "
            f"it has {', '.join(methods_of(model))}"
        )
    tape = Tape(only=("stem", "stages.*.out"))
    logits = _checked(model(images.detach().requires_grad_(), tape=tape))
    last = list(tape.values())[-1]
    gradient = torch.autograd.grad(_chosen(logits, targets).sum(), last)[0]
    heat = (gradient.mean((2, 3), keepdim=True) * last.detach()).sum(1, keepdim=True).relu()
    size = (images.shape[-2], images.shape[-1])
    return F.interpolate(heat, size, mode="bilinear", align_corners=False)[:, 0]


EXPLANATIONS: dict[str, Explanation] = {
    "relevance": _relevance,
    "rollout": _rollout,
    "attention": _attention,
    "gradient": _gradient,
    "gradient_x_input": _gradient_x_input,
    "smooth_gradient": _smooth_gradient,
    "integrated_gradients": _integrated_gradients,
    "grad_cam": _grad_cam,
}


# -- what they share -----------------------------------------------------------------------------


def _batches(
    model: ImageClassifier, images: Tensor, targets: Tensor | None, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures and the classes to explain, on the model's device and in its type."""
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise Error(
            "explanations take at least one picture, float [b c h w] as the model takes them, not "
            f"{images.dtype} {list(images.shape)}: see `model.preprocessing`"
        )
    if not model.num_classes:
        raise Error("a model without a head has no class to explain: build it with num_classes")
    if targets is not None and targets.shape != images.shape[:1]:
        raise Error(f"{len(images)} pictures need as many targets, not {list(targets.shape)}")
    weight = next(model.parameters())
    for start in range(0, len(images), batch_size):
        # Copied: what was made in inference mode cannot ask for gradients.
        some = images[start : start + batch_size].to(weight, copy=True)
        if targets is None:
            yield some, predicted(model, some)
        else:
            yield some, targets[start : start + batch_size].to(weight.device, copy=True)


def why_unexplained(model: ImageClassifier) -> str:
    """Why there is no class of a model's to explain, in a sentence; empty where there is one."""
    if not model.num_classes:
        return "The model has no head, so there is no class to explain."
    if getattr(model.config, "pool", "") == "none":
        return "The model gives every token to its head, so there is no one class to explain."
    return ""


def _checked(logits: Tensor) -> Tensor:
    if logits.ndim != 2:
        raise Error(
            "a model that gives every token to its head (pool 'none') has no one class to explain; "
            "build it with another pool"
        )
    return logits


def _chosen(logits: Tensor, targets: Tensor) -> Tensor:
    """Each picture's logit of its class: [b]."""
    if targets.numel() and not 0 <= targets.min() <= targets.max() < logits.shape[1]:
        raise Error(f"classes go from 0 to {logits.shape[1] - 1}, not {targets.tolist()}")
    return logits.gather(1, targets[:, None])[:, 0]
