"""Model folders: `config.json` and `model.safetensors`, which timm can open too.

Everything is written beside its target, flushed to the disk and renamed, the weights first: a
full disk or a kill leaves what was there before. The hash of the weights stands in the config, so
that a damaged file is refused; while a new file moves in, the config knows both hashes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vitrail.kit.errors import Error
from vitrail.kit.files import settle, staging
from vitrail.models import zoo
from vitrail.models.base import ImageClassifier
from vitrail.models.vit import ViTConfig
from vitrail.weights import timm
from vitrail.weights.load import Source, load_checkpoint
from vitrail.weights.read import (
    BEST_FILE,
    DIGESTS,
    FORMAT,
    MODEL_FILE,
    digest,
    existing,
    open_checkpoint,
    read_config,
    read_section,
)
from vitrail.weights.unwrap import Checkpoint

WHAT_IT_IS = ("format", "family", "config", "preprocessing", "labels", "not_in_timm", "incoming")


def save_model(
    model: ImageClassifier,
    folder: Path | str,
    labels: Sequence[str] | None = None,
    *,
    details: Mapping[str, Any] | None = None,
    weights_file: str = MODEL_FILE,
) -> Path:
    """Write a model folder, whole or not at all.

    Saving `model.safetensors` begins the ``vitrail`` section anew, but for the hash of a
    `best.safetensors` of the same architecture; saving `best.safetensors` adds to the section.

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
    with staging(folder, needed) as work:
        staged = work / weights_file
        save_file(tensors, staged, metadata={"format": "pt", "vitrail": json.dumps(about)})
        key, new = DIGESTS[weights_file], digest(staged)
        if section:
            incoming = {"incoming": {weights_file: new}}
            _move_config(work, folder, {**before, "vitrail": section | incoming})
        if any(section.get(what) != about[what] for what in ("family", "config")):
            section = {}
        if weights_file == MODEL_FILE:
            section = _best(folder, section)
        settle(staged, folder / weights_file)
        section |= about | {key: new} | added
        _move_config(work, folder, _timm_part(model, about) | {"vitrail": section})
    return folder


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
        source: a model folder or one of the weight files in it; or any source of `load_weights`,
            with ``name``.
        name: the zoo's name of the model, for a source that does not say it. The number of
            classes, and whether there is a pre-logits layer, are then the file's.
        which: ``final``, or ``best`` for a folder's `best.safetensors` where it has one.

    Returns:
        The model in float32 and eval mode, with `labels` and `preprocessing`.

    Raises:
        Error: nothing there, damaged, of a newer format, or in need of a name.
        WeightsError: weights that do not fit.
    """
    if name is None and isinstance(source, (str, Path)) and existing(source).is_dir():
        read_section(source)  # a folder of another kind: says what is missing
    checkpoint = open_checkpoint(source, which)
    if checkpoint.about:
        return _own_model(checkpoint)
    if name is None:
        raise Error(f"{checkpoint.name} does not say which model it is: give its name")
    behind = {"pre_logits": True} if any("pre_logits" in n for n in checkpoint.tensors) else {}
    size = checkpoint.timm.get("image_size")
    model = zoo.create_model(name, _classes(checkpoint), size, **behind)
    load_checkpoint(model, checkpoint, (), "file")
    return model


def _own_model(checkpoint: Checkpoint) -> ImageClassifier:
    try:
        model = zoo.from_description(checkpoint.about)
    except (KeyError, TypeError, AttributeError) as error:
        raise Error(f"{checkpoint.name} is damaged: what it says of its model ({error})") from None
    preprocessing, labels = model.preprocessing, model.labels
    load_checkpoint(model, checkpoint, (), "keep")
    model.preprocessing = preprocessing
    return model if labels is None else model.set_labels(labels)


def _classes(checkpoint: Checkpoint) -> int:
    """How many classes a file's head has; 0 without a head."""
    for name, tensor in checkpoint.tensors.items():
        if name in ("head.bias", "head/bias") or name.endswith("/head/bias"):
            return tensor.shape[0]
    return 0


# What is written


def _about(model: ImageClassifier, labels: Sequence[str] | None) -> dict[str, Any]:
    if labels is not None and len(labels) != model.num_classes:
        raise Error(f"{len(labels)} labels for a model of {model.num_classes} classes")
    beyond = timm.architecture(model.config)[2] if isinstance(model.config, ViTConfig) else ["all"]
    return {"format": FORMAT, **zoo.describe(model), "labels": labels, "not_in_timm": beyond}


def _timm_part(model: ImageClassifier, about: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(model.config, ViTConfig):
        return {"architecture": f"vitrail:{about['family']}", "num_classes": model.num_classes}
    name, arguments, _ = timm.architecture(model.config)
    return {
        "architecture": name,
        "num_classes": model.num_classes,
        "num_features": model.config.width,
        "global_pool": timm.POOLS[model.config.pool],
        "model_args": arguments,
        "pretrained_cfg": timm.pretrained_cfg(model.preprocessing, model.config, about["labels"]),
    }


def _details(details: Mapping[str, Any]) -> dict[str, Any]:
    taken = [name for name in details if name in WHAT_IT_IS or name in DIGESTS.values()]
    if taken:
        raise Error(f"details cannot be called {', '.join(taken)}: that says what the model is")
    # JSON has no NaN: other readers than Python's would refuse the file.
    return json.loads(json.dumps(dict(details)), parse_constant=lambda _: None)


def _best(folder: Path, section: Mapping[str, Any]) -> dict[str, Any]:
    """The hash of the folder's best weights: the recorded one, else that of the file there."""
    if not (folder / BEST_FILE).exists():
        return {}
    key = DIGESTS[BEST_FILE]
    return {key: section.get(key) or digest(folder / BEST_FILE)}


def _settled(folder: Path, section: dict[str, Any]) -> dict[str, Any]:
    """The section after a save that was cut off between the weights and the config."""
    settled = {key: value for key, value in section.items() if key != "incoming"}
    for name, expected in section.get("incoming", {}).items():
        if (folder / name).exists() and digest(folder / name) == expected:
            settled[DIGESTS[name]] = expected
    return settled


def _move_config(work: Path, folder: Path, config: Mapping[str, Any]) -> None:
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    staged = work / "config.json"
    staged.write_text(text, encoding="utf-8")
    settle(staged, folder / staged.name)
