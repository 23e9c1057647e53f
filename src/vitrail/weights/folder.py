"""Model folders: `config.json` and `model.safetensors`, which timm can open too.

Everything is written beside its target, flushed to the disk and renamed, the weights first: a
full disk or a kill leaves what was there before. The hash of the weights stands in the config, so
that a damaged file is refused; while a new file moves in, the config knows both hashes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from vitrail.kit.errors import Error
from vitrail.kit.files import settle, sha256_of, staging, write_whole
from vitrail.models import zoo
from vitrail.models.base import ImageClassifier
from vitrail.models.bit_resnet import BiTConfig
from vitrail.models.hybrid import HybridConfig
from vitrail.models.pvt_v2 import PVTv2Config
from vitrail.models.resnet import ResNetConfig
from vitrail.models.vit import ViTConfig
from vitrail.weights import pvt, timm, timm_resnets
from vitrail.weights.golden import golden_values
from vitrail.weights.load import Source, load_checkpoint
from vitrail.weights.read import (
    BEST_FILE,
    DIGESTS,
    FORMAT,
    GOLDEN,
    MODEL_FILE,
    existing,
    foreign_model,
    open_checkpoint,
    read_config,
    read_section,
)
from vitrail.weights.report import LoadReport
from vitrail.weights.unwrap import Checkpoint

WHAT_IT_IS = ("format", "family", "config", "preprocessing", "labels", "not_in_timm", "incoming")

HEAD_BIASES = (
    "head.bias",
    "head/bias",
    "classifier.bias",
    "classifier.1.bias",
    "cls_classifier.bias",
    "heads.head.bias",
    "linear_head.bias",
    "fc.bias",
    "head.fc.bias",
)

# The families that timm has too, and how it would build one: name, arguments, what is beyond it.
TIMM: dict[type, Callable[[Any], tuple[str, dict[str, Any], list[str]]]] = {
    ViTConfig: timm.architecture,
    PVTv2Config: pvt.architecture,
    HybridConfig: timm_resnets.hybrid_architecture,
    ResNetConfig: timm_resnets.resnet_architecture,
    BiTConfig: timm_resnets.bit_architecture,
}


def save_model(
    model: ImageClassifier,
    folder: Path | str,
    labels: Sequence[str] | None = None,
    *,
    details: Mapping[str, Any] | None = None,
    weights_file: str = MODEL_FILE,
) -> Path:
    """Write a model folder, whole or not at all.

    Saving `model.safetensors` begins the ``vitrail`` section anew, but for what it says of a
    `best.safetensors` of the same architecture; saving `best.safetensors` adds to the section.
    What the model gives for two fixed pictures is kept too, for `vitrail verify`.

    Args:
        folder: made if it is not there.
        labels: the class names in the order of the logits; None takes the model's own.
        details: what else the ``vitrail`` section shall hold (recipe, metrics, ledger, ...), as
            plain JSON values; NaN and infinity become null.
        weights_file: ``model.safetensors``, or ``best.safetensors`` for the best on validation.

    Returns:
        The folder.

    Raises:
        Error: another number of labels than logits, or a folder that holds another library's
            model or cannot be written (no room, no right): what was there is as it was.
    """
    folder = Path(folder).expanduser()
    if weights_file not in DIGESTS:
        raise Error(f"weights_file is one of {', '.join(DIGESTS)}, not {weights_file!r}")
    added = _details(details or {})
    about = _about(model, model.labels if labels is None else list(labels))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"{folder} cannot be made ({error.strerror})") from None
    before = read_config(folder) if (folder / "config.json").exists() else {"vitrail": {}}
    if "vitrail" not in before:
        raise Error(f"{folder} holds another library's model: save into another folder")
    section = _settled(folder, before["vitrail"])
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    needed = sum(tensor.nbytes for tensor in tensors.values())
    golden = {GOLDEN[weights_file]: golden_values(model)}
    with staging(folder, needed) as work:
        staged = work / weights_file
        _save(tensors, staged, about)
        key, new = DIGESTS[weights_file], sha256_of(staged)
        if section:
            incoming = {"incoming": {weights_file: new}}
            _move_config(work, folder, {**before, "vitrail": section | incoming})
        if any(section.get(what) != about[what] for what in ("family", "config")):
            section = {}
        if weights_file == MODEL_FILE:
            section = _best(folder, section)
        settle(staged, folder / weights_file)
        section |= about | {key: new} | golden | added
        _move_config(work, folder, timm_part(model, about) | {"vitrail": section})
    return folder


def save_weights(model: ImageClassifier, path: Path) -> None:
    """Write one safetensors file that says which model it is, whole or not at all.

    Raises:
        Error: no room, or no right to write.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    about = _about(model, model.labels)
    needed = sum(tensor.nbytes for tensor in tensors.values())
    write_whole(path, lambda staged: _save(tensors, staged, about), needed)


def _save(tensors: dict[str, Tensor], path: Path, about: dict[str, Any]) -> None:
    """A safetensors file, and of equal tensors an equal one, byte for byte.

    The library writes the metadata in an order that is another one in every process.
    """
    save_file(tensors, path, metadata=_metadata(about))
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # as long as before, since nothing but the order is another
            file.seek(8)
            file.write(text.ljust(size))


def update_details(folder: Path | str, **details: Any) -> None:
    """Add to the ``vitrail`` section of a model folder, or replace what has the same names.

    Raises:
        Error: no model folder, or a name that says what the model is.
    """
    added, section = _details(details), read_section(folder)
    config = {**read_config(folder), "vitrail": section | added}
    folder = Path(folder).expanduser()
    with staging(folder) as work:
        _move_config(work, folder, config)


def load_model(source: Source, name: str | None = None, which: str = "final") -> ImageClassifier:
    """A model from a model folder, or from a checkpoint of any family that is read.

    Args:
        source: a model folder or one of the weight files in it; a folder of timm's or
            transformers', or its name on the hub, ``hf-hub:org/name``; or any source of
            `load_weights`, with ``name``.
        name: the zoo's name of the model, for a source that does not say it. The number of
            classes, and whether there is a pre-logits layer, are then the file's.
        which: ``final``, or ``best`` for a folder's `best.safetensors` where it has one.

    Returns:
        The model in float32 and eval mode, with `labels` and `preprocessing`.

    Raises:
        Error: nothing there, damaged, of a newer format, or in need of a name.
        WeightsError: weights that do not fit.
    """
    return load_with_report(source, name, which)[0]


def load_with_report(
    source: Source, name: str | None = None, which: str = "final"
) -> tuple[ImageClassifier, LoadReport]:
    """`load_model`, and what became of every tensor."""
    found = None
    if name is None and isinstance(source, (str, Path)) and existing(source).is_dir():
        config = read_config(source)
        found = None if "vitrail" in config else foreign_model(config)
        if found is None:
            read_section(source)  # a folder of another kind: says what is missing
    checkpoint = open_checkpoint(source, which)
    if checkpoint.about:
        return _own_model(checkpoint)
    if name is not None:
        size = checkpoint.timm.get("image_size")
        shape = _shape_of_head(zoo.resolve(name)[1].family, checkpoint)
        model = zoo.create_model(name, _classes(checkpoint), size, **shape)
    elif found is not None:
        model = _foreign_model(*found, checkpoint)
    else:
        raise Error(f"{checkpoint.name} does not say which model it is: give its name")
    return model, load_checkpoint(model, checkpoint, (), "file")


def _foreign_model(name: str, fields: dict[str, Any], checkpoint: Checkpoint) -> ImageClassifier:
    """A fresh model as another library's `config.json` describes it; see `read.foreign_model`."""
    size = checkpoint.timm.get("image_size")
    fields = {**fields, **({} if size is None else {"image_size": size})}
    if name in zoo.ENTRIES:
        fields |= _shape_of_head(zoo.ENTRIES[name].family, checkpoint)
        return zoo.create_model(name, _classes(checkpoint), **fields)
    fields |= _shape_of_head(name, checkpoint)
    return zoo.from_config(name, {**fields, "num_classes": _classes(checkpoint)})


def _own_model(checkpoint: Checkpoint) -> tuple[ImageClassifier, LoadReport]:
    try:
        model = zoo.from_description(checkpoint.about)
    except (KeyError, TypeError, AttributeError) as error:
        raise Error(f"{checkpoint.name} is damaged: what it says of its model ({error})") from None
    preprocessing, labels = model.preprocessing, model.labels
    report = load_checkpoint(model, checkpoint, (), "keep")
    model.preprocessing = report.preprocessing = preprocessing
    if labels is not None:
        model.set_labels(labels)
    return model, report


def _shape_of_head(family: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Fields of a plain ViT that say what stands before its head, as the file's names tell."""
    has, fields = checkpoint.tensors.__contains__, {}
    if any("pre_logits" in tensor for tensor in checkpoint.tensors):
        fields["pre_logits"] = True
    if family != "vit":
        return fields
    scaled = any(tensor.endswith("layer_scale1.lambda1") for tensor in checkpoint.tensors)
    if has("linear_head.weight") or (scaled and has("classifier.weight")):
        fields["pool"] = "token_mean"  # DINOv2 eval/linear.py
    if has("fc_norm.weight") and not has("norm.weight"):
        fields |= {"pool": "mean", "class_token": has("cls_token"), "norm_after_pool": True}
    return fields


def _classes(checkpoint: Checkpoint) -> int:
    """How many classes a file's head has; 0 without a head."""
    for name, tensor in checkpoint.tensors.items():
        if name in HEAD_BIASES or name.endswith(("/head/bias", "/head/conv2d/bias")):
            return tensor.shape[0]
    return 0


# What is written


def _metadata(about: Mapping[str, Any]) -> dict[str, str]:
    return {"format": "pt", "vitrail": json.dumps(about)}


def _about(model: ImageClassifier, labels: Sequence[str] | None) -> dict[str, Any]:
    if labels is not None and len(labels) != model.num_classes:
        raise Error(f"{len(labels)} labels for a model of {model.num_classes} classes")
    architecture = TIMM.get(type(model.config))
    beyond = architecture(model.config)[2] if architecture else ["all"]
    return {"format": FORMAT, **zoo.describe(model), "labels": labels, "not_in_timm": beyond}


def timm_part(model: ImageClassifier, about: Mapping[str, Any]) -> dict[str, Any]:
    """What timm reads of a `config.json`; ``about`` has the labels and the family."""
    config = model.config
    if type(config) not in TIMM:
        return {"architecture": f"vitrail:{about['family']}", "num_classes": model.num_classes}
    name, arguments, _ = TIMM[type(config)](config)
    plain = isinstance(config, ViTConfig)
    pictures = timm.pretrained_cfg(model.preprocessing, config, about["labels"])
    return {
        "architecture": name,
        "num_classes": model.num_classes,
        "num_features": config.width if plain else config.widths[-1],
        "global_pool": timm.POOLS[config.pool] if plain else "avg",
        "model_args": arguments,
        # timm gives an ``img_size`` to what has a fixed size, and only its ViT takes one
        "pretrained_cfg": pictures
        | {
            "fixed_input_size": plain,
            "first_conv": _first_convolution(model),
            "classifier": model.head_name,
        },
    }


def _first_convolution(model: ImageClassifier) -> str:
    """The name of the layer that sees the picture, whose channels timm adapts."""
    channels = model.config.in_channels
    found = ((n, p) for n, p in model.named_modules() if isinstance(p, nn.Conv2d))
    return next((name for name, part in found if part.in_channels == channels), "")


def _details(details: Mapping[str, Any]) -> dict[str, Any]:
    own = (*WHAT_IT_IS, *DIGESTS.values(), *GOLDEN.values())
    taken = [name for name in details if name in own]
    if taken:
        raise Error(f"details cannot be called {', '.join(taken)}: that says what the model is")
    # JSON has no NaN: other readers than Python's would refuse the file.
    return json.loads(json.dumps(dict(details)), parse_constant=lambda _: None)


def _best(folder: Path, section: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of the folder's best weights: their hash, made where there is none, and golden
    values."""
    if not (folder / BEST_FILE).exists():
        return {}
    key, golden = DIGESTS[BEST_FILE], GOLDEN[BEST_FILE]
    kept = {golden: section[golden]} if golden in section else {}
    return {key: section.get(key) or sha256_of(folder / BEST_FILE), **kept}


def _settled(folder: Path, section: dict[str, Any]) -> dict[str, Any]:
    """The section after a save that was cut off between the weights and the config."""
    settled = {key: value for key, value in section.items() if key != "incoming"}
    for name, expected in section.get("incoming", {}).items():
        if (folder / name).exists() and sha256_of(folder / name) == expected:
            settled[DIGESTS[name]] = expected
    return settled


def _move_config(work: Path, folder: Path, config: Mapping[str, Any]) -> None:
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    staged = work / "config.json"
    staged.write_text(text, encoding="utf-8")
    settle(staged, folder / staged.name)
