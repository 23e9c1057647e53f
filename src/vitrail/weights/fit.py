"""Fitting: from a file's tensors to the model's, without touching the model.

Whatever does not fit is collected first and told at once, both sides of it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from vitrail.kit.errors import WeightsError, listing
from vitrail.models.base import ImageClassifier, height_width
from vitrail.models.vit import FIXED_TABLES, ViTConfig
from vitrail.weights.positions import fit_positions
from vitrail.weights.report import LoadReport
from vitrail.weights.rules import Reading, Translation, misfit, to_ours, under
from vitrail.weights.unwrap import Checkpoint

HEADS = ("head", "head_dist", "fc")  # what `fresh` zero-initialises instead of leaving it as it is


def fit_tensors(
    model: ImageClassifier,
    checkpoint: Checkpoint,
    reading: Reading,
    roots: Collection[str],
    how: str,
    report: LoadReport,
) -> dict[str, Tensor]:
    """The tensors that go into the model, by our names, all of the right shape."""
    own = model.state_dict()
    found = to_ours(reading.rules, reading.tensors)
    mismatched = list(found.misshapen)
    stored = {name: tensor.dtype for name, tensor in found.tensors.items()}
    table = "pos_embed" in found.tensors and "pos_embed" in own and not under("pos_embed", roots)
    if table and isinstance(model.config, ViTConfig):
        mismatched += _fit_table(model, checkpoint, reading, found, how, report)
    _refit(model, own, found, roots, report)
    tensors, unexpected = {}, [reading.in_file(name) for name in found.unknown]
    for name, tensor in found.tensors.items():
        origin = [reading.in_file(part) for part in found.origin[name]]
        if under(name, roots) or (name not in own and under(name, reading.droppable)):
            report.dropped += origin
        elif name not in own:
            unexpected += origin
        elif tensor.shape != own[name].shape:
            mismatched.append(
                f"{name}: {list(tensor.shape)} in the file, {list(own[name].shape)} in the model"
            )
        else:
            tensors[name] = tensor
    report.fresh = [name for name in own if under(name, roots)]
    made = {*tensors, *report.fresh, *(entry.split(":")[0] for entry in mismatched)}
    missing = [name for name in own if name not in made and not _computed(model, name)]
    if missing or unexpected or mismatched:
        raise _misfit(model, checkpoint, found, missing, unexpected, mismatched)
    _note_what_is_left(model, found, own, report)
    _note_casts({name: (stored[name], own[name].dtype) for name in tensors}, report)
    report.resized = [name for name in report.resized if name in tensors]
    report.matched = [name for name in own if name in tensors and name not in report.resized]
    return tensors


def _fit_table(
    model: ImageClassifier,
    checkpoint: Checkpoint,
    reading: Reading,
    found: Translation,
    how: str,
    report: LoadReport,
) -> list[str]:
    """Fit the position table among the found tensors; what does not fit, in words."""
    tensors = found.tensors
    alike = checkpoint.live and reading.family == "timm"
    try:
        kernel = tensors.get("patch_embed.proj.weight")
        grid = _grid(checkpoint, model.config, kernel)
        fitted = fit_positions(tensors, model.config, how, grid, alike)
    except ValueError as error:
        del tensors["pos_embed"]
        return [f"pos_embed: {error}"]
    tensors["pos_embed"] = fitted.table
    own = model.state_dict()
    for name, rows in fitted.added.items():
        if name in tensors and tensors[name].shape == rows.shape:
            exact = torch.promote_types(own[name].dtype, rows.dtype)
            tensors[name] = tensors[name].to(exact) + rows.to(exact)
    if fitted.resized:
        report.resized.append("pos_embed")
        report.notes.append(f"pos_embed: {fitted.resized}")
    report.notes += fitted.notes
    return []


def _refit(
    model: ImageClassifier,
    own: Mapping[str, Tensor],
    found: Translation,
    roots: Collection[str],
    report: LoadReport,
) -> None:
    """Fit what has another shape and a family's own way to fit it."""
    for name, tensor in found.tensors.items():
        if name in own and tensor.shape != own[name].shape and not under(name, roots):
            fitted = model.refit(name, tensor)
            if fitted is not None:
                found.tensors[name] = fitted[0]
                report.resized.append(name)
                report.notes.append(f"{name}: {fitted[1]}")


def _grid(
    checkpoint: Checkpoint, config: ViTConfig, kernel: Tensor | None
) -> tuple[int, int] | None:
    """The grid of the file's position table, where something beside the tensors says it."""
    size = checkpoint.about.get("config", {}).get("image_size") or checkpoint.timm.get("image_size")
    if size is None or kernel is None or kernel.ndim != 4:
        return None
    # The kernel sees pixels, or behind a hybrid's ResNet the map, whose sides are rounded up.
    pixels = config.stride // config.patch_size
    height, width = (-(-side // pixels) for side in height_width(size))
    return height // kernel.shape[-2], width // kernel.shape[-1]


def _computed(model: ImageClassifier, name: str) -> bool:
    """Whether a tensor is a table that the model computes itself, or only counts batches.

    Old torchvision files lack the counters of batch norms; nothing is computed with them.
    """
    if name.endswith(".num_batches_tracked"):
        return True
    return name == "pos_embed" and getattr(model.config, "position", "") in FIXED_TABLES


def _misfit(
    model: ImageClassifier,
    checkpoint: Checkpoint,
    found: Translation,
    missing: list[str],
    unexpected: list[str],
    mismatched: list[str],
) -> WeightsError:
    bias, hint = found.tensors.get(f"{model.head_name}.bias"), ""
    if any(under(entry.split(":")[0], HEADS) for entry in mismatched):
        classes = 0 if bias is None else len(bias)
        weight = found.tensors.get(f"{model.head_name}.weight")
        if classes == model.num_classes and weight is not None and weight.ndim == 2:
            seen = model.state_dict()[f"{model.head_name}.weight"].shape[1]
            hint = f"the file's head sees {weight.shape[1]} numbers, the model's {seen}"
            if weight.shape[1] == 2 * seen:
                hint += ": create the model with pool='token_mean'"
        elif all(
            under(entry.split(":")[0], HEADS) for entry in [*mismatched, *missing, *unexpected]
        ):
            message = (
                f"{checkpoint.name} has a head of {classes} classes and the model one of "
                f"{model.num_classes}: for a new head, load_weights(..., fresh=('head',)); for the "
                f"file's, create the model with num_classes={classes}"
            )
            return WeightsError(message, mismatched=mismatched)
    if "dist_token" in unexpected:
        hint = "the file is distilled: create the model with distilled=True"
    elif mismatched:
        hint = hint or _sizes(model, found)
    elif missing and all(under(name, HEADS) for name in missing) and not (unexpected or mismatched):
        message = (
            f"{checkpoint.name} has no head: load_weights(..., fresh=('head',)) begins with a zero "
            "one, a model with num_classes=0 does without"
        )
        return WeightsError(message, missing=missing)
    elif found.lacking:
        hint = f"the file lacks {listing(found.lacking)}"
    elif missing and not (unexpected or mismatched):
        hint = "to begin with them as they are, name them in fresh"
    return misfit(checkpoint.name, missing, unexpected, mismatched, hint)


def _sizes(model: ImageClassifier, found: Translation) -> str:
    """How large the file's network is beside the model, in words; empty where they are alike."""
    kernel, own = "patch_embed.proj.weight", model.state_dict()
    if kernel not in found.tensors or kernel not in own:
        return ""
    misshapen = [entry.split(":")[0] for entry in found.misshapen]

    def words(names: Iterable[str], weight: Tensor) -> str:
        blocks = {name.split(".")[1] for name in names if name.startswith("blocks.")}
        return f"{len(blocks)} blocks of width {len(weight)}, patches of {weight.shape[-1]}"

    theirs = words([*found.tensors, *misshapen], found.tensors[kernel])
    ours = words(own, own[kernel])
    return "" if theirs == ours else f"the file has {theirs}, the model {ours}"


def _note_what_is_left(
    model: ImageClassifier, found: Translation, own: Mapping[str, Tensor], report: LoadReport
) -> None:
    dropped_layer = any(under(name, ["pre_logits"]) and name not in own for name in found.tensors)
    if dropped_layer and "head.weight" in own and "head.weight" not in report.fresh:
        report.notes.append(
            "the file's head was trained behind a pre_logits layer, which the model lacks: create "
            "it with pre_logits=True for the file's predictions"
        )
    if "cls_token" in found.tensors and "cls_token" not in own:
        report.notes.append("the model has no class token: the file's is left out")
    for name in own:
        counter = name.endswith(".num_batches_tracked")
        if _computed(model, name) and name not in found.tensors and not counter:
            report.notes.append(f"{name} is not in the file: the model computes it")


def _note_casts(dtypes: Mapping[str, tuple[torch.dtype, torch.dtype]], report: LoadReport) -> None:
    counts = Counter(pair for pair in dtypes.values() if pair[0] != pair[1])
    for (stored, own), count in counts.items():
        words = [str(dtype).removeprefix("torch.") for dtype in (stored, own)]
        report.notes.append(f"{count} tensors cast from {words[0]} to {words[1]}")


def ready_tensors(
    model: ImageClassifier, tensors: Mapping[str, Tensor], report: LoadReport
) -> dict[str, Tensor]:
    """The values to be copied, in the model's dtype, all of them finite; fresh heads are zero."""
    own = model.state_dict()
    ready, bad = {}, []
    for name, tensor in tensors.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            raise WeightsError(f"{report.source}: {name} holds {tensor.dtype}, which is no weight")
        ready[name] = tensor.detach().to(own[name].dtype)
        if not torch.isfinite(ready[name]).all():
            bad.append(name)
    if bad:
        raise WeightsError(
            f"{report.source} is spoilt: NaN or infinite values in {listing(bad)}", mismatched=bad
        )
    head = ready.get(f"{model.head_name}.weight")
    if head is not None and not head.any():
        report.notes.append(
            "the file's head is all zeros, as in Google's ImageNet-21k files: it predicts nothing "
            "before it is trained"
        )
    for name in report.fresh:
        if under(name, HEADS):
            ready[name] = torch.zeros_like(own[name])
    return ready
