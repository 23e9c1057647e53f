"""Loading weights into a model: everything is checked, then copied, then reported.

A tensor is never left random in silence: each one of the model comes from the file, or is named
in ``fresh``, or the load is refused with both left-over sides in the message and the model as it
was. Position tables are resized as their family does.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrail.kit.errors import Error, WeightsError, did_you_mean, listing
from vitrail.kit.preprocess import Preprocessing
from vitrail.models import zoo
from vitrail.models.base import ImageClassifier
from vitrail.models.parts import ACTIVATIONS, Mlp, ScaledAttention
from vitrail.models.resnet import ResNetConfig
from vitrail.models.vit import ViTConfig
from vitrail.weights import (
    botnet,
    cvt,
    facebook,
    google,
    google_resnets,
    pvt,
    t2t,
    timm,
    timm_resnets,
    torchvision_vit,
    transformers_bit,
    transformers_resnet,
    transformers_vit,
)
from vitrail.weights.fit import fit_tensors, ready_tensors
from vitrail.weights.read import open_checkpoint
from vitrail.weights.report import LoadReport
from vitrail.weights.rules import Reading, under
from vitrail.weights.unwrap import Checkpoint

Source = Path | str | Mapping[str, Any]

FAMILIES = (
    google.recognise,
    google_resnets.recognise,
    facebook.recognise,
    timm.recognise,
    transformers_vit.recognise,
    transformers_bit.recognise,
    transformers_resnet.recognise,
    torchvision_vit.recognise,
    timm_resnets.recognise,
    pvt.recognise,
    botnet.recognise,
    cvt.recognise,
    cvt.recognise_transformers,
    t2t.recognise,
)
NUMERICS = (
    "activation",
    "norm_eps",
    "embed_norm_eps",
    "attention_scale",
    "position_resize",
    "standardize_eps",
    "standardize_eps_on",
    "group_norm_eps",
)

# Authors whose names are ours: a mapping of these may be theirs or ours.
NAMED_AS_OURS = ("cvt", "pvt", "t2t")

# A name, or the beginning of one, that gives away a family which is not read yet.
FOREIGN = {
    "stem/conv/kernel": "an MLP-Mixer",
    "visual.": "CLIP",
    "class_embedding": "CLIP",
}
# The same of families that are read, where the file is for another model than the one at hand.
ELSEWHERE = {
    "vit.embeddings.": "transformers' ViT",
    "deit.embeddings.": "transformers' DeiT",
    "dinov2.embeddings.": "transformers' DINOv2",
    "dinov2_with_registers.embeddings.": "transformers' DINOv2",
    "conv_proj.": "torchvision's ViT",
    "dist_token": "a distilled DeiT",
    "conv_root/kernel": "a hybrid of ResNet and ViT",
    "resnet/root_block/": "BiT",
    "layer1.0.conv1.": "a ResNet",
    "stage0.patch_embed.": "CvT",
    "tokens_to_token.": "T2T-ViT",
    "cvt.encoder.": "transformers' CvT",
    "patch_embed1.": "PVT",
    "pvt.encoder.": "transformers' PVT",
    "bit.embedder.": "transformers' BiT",
    "resnet.embedder.": "transformers' ResNet",
    "pvt_v2.encoder.": "transformers' PVT v2",
    "stages.0.blocks.0.": "a network of stages",
}


def load_weights(
    model: ImageClassifier,
    source: Source,
    fresh: str | Sequence[str] = (),
    numerics: str = "file",
) -> LoadReport:
    """Load weights into a model, all or nothing.

    Args:
        model: any model of the zoo; its dtype and device stay.
        source: a file (safetensors, `.npz`, `.pth`), a folder (sharded or not, or a model
            folder), or a mapping of tensors.
        fresh: our names, or their beginnings up to a dot, that are not taken from the file. A
            head among them becomes zero, anything else stays as the model has it.
        numerics: ``file`` sets activation, eps, attention scale and the way position tables are
            resized to those of the file's family; ``keep`` leaves the model's, and resizes
            Google's tables as timm's reader does. A mapping in timm's names says nothing about
            numerics: the model's stay.

    Returns:
        What became of every tensor; print it.

    Raises:
        WeightsError: tensors missing, of another shape, not finite, or with no place in the
            model (all named in the error); or a family that is not read.
        Error: no such file, damaged, not a checkpoint, or holding code; nothing in it is run.
    """
    if numerics not in ("file", "keep"):
        raise Error(f"numerics is 'file' or 'keep', not {numerics!r}")
    roots = _roots(model, fresh)
    return load_checkpoint(model, open_checkpoint(source), roots, numerics)


def load_checkpoint(
    model: ImageClassifier, checkpoint: Checkpoint, fresh: Sequence[str], numerics: str
) -> LoadReport:
    """`load_weights` of a source that is open already."""
    reading = _recognise(checkpoint, model)
    report = LoadReport(checkpoint.name, reading.family)
    report.wrappers = [*checkpoint.wrappers, *reading.wrappers]
    report.dropped = list(reading.dropped)
    report.notes = list(reading.notes)
    if checkpoint.unread:
        report.notes.append(f"not read: {listing(checkpoint.unread)}")
    how = reading.resize if numerics == "file" else reading.resize_kept
    tensors = fit_tensors(model, checkpoint, reading, fresh, how, report)
    ready = ready_tensors(model, tensors, report)
    report.preprocessing = _preprocessing(model, checkpoint, reading, report)
    if numerics == "file":
        report.numerics = set_numerics(model, reading.numerics)
    # Nothing below can fail: from here on the model changes.
    with torch.no_grad():
        for name, own in model.state_dict().items():
            if name in ready:
                own.copy_(ready[name])
    model.preprocessing = report.preprocessing
    labels = checkpoint.about.get("labels") or checkpoint.timm.get("labels")
    if (
        labels
        and f"{model.head_name}.weight" in report.matched
        and len(labels) == model.num_classes
    ):
        model.set_labels(labels)
    return report


def create_model(
    name: str,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int = 3,
    weights: Source | None = None,
    **config: Any,
) -> ImageClassifier:
    """A model of the zoo, in eval mode: `models.zoo.create_model`, and its weights.

    Args:
        weights: what `load_weights` takes; None leaves the model freshly initialised.
        The rest: as for `models.zoo.create_model`.

    Raises:
        Error: as `models.zoo.create_model` and `load_weights`; for another number of classes
            than the file's, create the model first and load with ``fresh=("head",)``.
    """
    model = zoo.create_model(name, num_classes, image_size, in_channels, **config)
    if weights is not None:
        load_weights(model, weights)
    return model


def set_numerics(model: ImageClassifier, wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Change how a built model computes, its config with it.

    Args:
        wanted: any of the config's fields in `NUMERICS`.

    Returns:
        The fields that changed, each with (old, new).
    """
    has = {name: getattr(model.config, name) for name in wanted if hasattr(model.config, name)}
    changes = {name: (old, wanted[name]) for name, old in has.items() if old != wanted[name]}
    model.config = dataclasses.replace(model.config, **{n: new for n, (_, new) in changes.items()})
    for part in model.modules():
        if isinstance(part, Mlp) and "activation" in changes:
            part.act = ACTIVATIONS[model.config.activation]()
        elif isinstance(part, nn.LayerNorm) and "norm_eps" in changes:
            part.eps = model.config.norm_eps
        elif isinstance(part, ScaledAttention) and "attention_scale" in changes:
            part.rescale(model.config.attention_scale)
    model.apply_numerics()
    return changes


def _roots(model: ImageClassifier, fresh: str | Sequence[str]) -> tuple[str, ...]:
    own = list(model.state_dict())
    roots = (fresh,) if isinstance(fresh, str) else tuple(fresh)
    if not any(under(name, ["head"]) for name in own):  # "head" is every family's word for it
        roots = tuple(model.head_name if root == "head" else root for root in roots)
    if "head" in roots and any(under(name, ["head_dist"]) for name in own):
        roots = (*roots, "head_dist")
    for root in roots:
        if not any(under(name, [root]) for name in own):
            near = did_you_mean(root, [*own, *{name.rsplit(".", 1)[0] for name in own}])
            raise Error(f"fresh names {root!r}, which the model does not have{near}")
    return roots


def _recognise(checkpoint: Checkpoint, model: ImageClassifier) -> Reading:
    names = checkpoint.tensors
    if checkpoint.about:
        return _own(checkpoint, model)
    for start, what in FOREIGN.items():
        if any(name.startswith(start) or f"/{start}" in name for name in names):
            raise WeightsError(
                f"{checkpoint.name} holds the weights of {what}, which this version of Vitrail "
                f"cannot load into this model (it has {start})",
                unexpected=list(names),
            )
    for recognise in FAMILIES:
        reading = recognise(names, model.config)
        if reading is None:
            continue
        if reading.family == "timm" and type(model.config) is ViTConfig:
            whose = facebook.named_as(names, checkpoint.wrappers, checkpoint.name)
            if whose is not None:
                reading = facebook.reading_of(whose, names, model.config)
                reading.numerics = {} if checkpoint.live else reading.numerics
        if reading.family == "timm" and type(model.config) is ResNetConfig and not checkpoint.live:
            reading = timm_resnets.as_torchvision(reading, checkpoint.name)
        if reading.family in ("timm", "transformers"):  # what a config.json beside them says
            said = {**reading.numerics, **checkpoint.timm.get("numerics", {})}
            live = checkpoint.live and reading.family == "timm"
            reading.numerics = {} if live else said
            beside = checkpoint.timm.get("preprocessing", {})
            reading.preprocessing = {**reading.preprocessing, **beside}
        elif reading.family in NAMED_AS_OURS and checkpoint.live:
            reading.numerics = {}  # it may as well be a state dict of ours
            if set(names) <= set(model.state_dict()):
                reading.rules, reading.notes = timm.IDENTITY, ()
        return reading
    for start, what in ELSEWHERE.items():
        if any(name.startswith(start) or f"/{start}" in name for name in names):
            raise WeightsError(
                f"{checkpoint.name} holds the weights of {what}, which do not go into this model "
                f"of the family {zoo.describe(model)['family']!r}: create theirs",
                unexpected=list(names),
            )
    raise WeightsError(
        f"{checkpoint.name} holds weights of a kind that this version of Vitrail does not know: "
        f"its names are like {listing(list(names), 3)}",
        unexpected=list(names),
    )


def _own(checkpoint: Checkpoint, model: ImageClassifier) -> Reading:
    family, config = checkpoint.about.get("family"), checkpoint.about["config"]
    ours = zoo.describe(model)["family"]
    if family != ours:
        raise WeightsError(
            f"{checkpoint.name} holds a model of the family {family!r}, not {ours!r}",
            unexpected=list(checkpoint.tensors),
        )
    resize = config.get("position_resize", "bicubic_antialias")
    return Reading(
        family="vitrail",
        rules=timm.IDENTITY,
        tensors=checkpoint.tensors,
        droppable=("pre_logits", "cls_token", "head", "fc"),
        numerics={name: config[name] for name in NUMERICS if name in config},
        resize=resize,
        resize_kept=resize,
    )


def _preprocessing(
    model: ImageClassifier, checkpoint: Checkpoint, reading: Reading, report: LoadReport
) -> Preprocessing:
    """How pictures go in with these weights, at the model's size."""
    current = model.preprocessing
    if not checkpoint.live and not (reading.preprocessing or checkpoint.about):
        report.notes.append(
            "the file does not say how its pictures were normalised: check mean and std"
        )
    try:
        if "preprocessing" not in checkpoint.about:
            return current.replace(**reading.preprocessing)
        theirs = Preprocessing.from_json(checkpoint.about["preprocessing"])
    except TypeError as error:
        raise Error(f"{checkpoint.name} is damaged: how pictures go in ({error})") from None
    alike = theirs.size == current.size
    return theirs if alike else theirs.replace(size=current.size, crop=current.crop)
