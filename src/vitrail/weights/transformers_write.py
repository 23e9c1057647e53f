"""A model as transformers saves it: `config.json`, `preprocessor_config.json` and the weights.

Where transformers has the same function of pictures in another form the model is put into that
form first; what is left over is found by reading back the `config.json` that would be written.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from vitrail.kit.preprocess import Preprocessing
from vitrail.models import zoo
from vitrail.models.base import ImageClassifier, checked_config
from vitrail.models.cvt import CvTConfig
from vitrail.models.hybrid import HybridConfig
from vitrail.models.positions import FIXED_TABLES
from vitrail.models.pvt import PVTConfig
from vitrail.models.pvt_v2 import PVTv2Config
from vitrail.models.vit import ViTConfig
from vitrail.weights import cvt, pvt, transformers_bit, transformers_resnet, transformers_vit
from vitrail.weights.read import MODEL_FILE
from vitrail.weights.rules import Rule, to_theirs
from vitrail.weights.transformers_config import KINDS, describe, kind_of, written
from vitrail.weights.transformers_vit import RESAMPLE
from vitrail.weights.written import (
    SOFT,
    Written,
    fields_of,
    ready_to_save,
    refusal,
    twin_of,
    write_json,
)

# Fields that change no logits of a model at its own size.
IGNORED = ("num_classes", "dropout", "drop_path", "drop_path_rule", "position_resize")
WITHOUT_PREFIX = ("classifier", "cls_classifier", "distillation_classifier")
WITH_ITS_NORM = "CvtForImageClassification"  # where the last norm stands beside the network


def write_transformers(model: ImageClassifier, stage: Path) -> tuple[Written, ImageClassifier]:
    """Write a folder that transformers opens with `from_pretrained`.

    Returns:
        What was written, and a fresh model to read it back into.

    Raises:
        WeightsError: transformers has no such architecture, or not in this form.
    """
    family = zoo.describe(model)["family"]
    if isinstance(model.config, HybridConfig):
        raise refusal("transformers (since version 5)", ["a ResNet before a ViT"])
    config, state = _as_transformers_has_it(model)
    name = kind_of(config, family)
    if name is None:
        raise refusal("transformers", [f"the architecture of our family {family!r}"])
    kind = KINDS[name]
    said = written(kind, name, config, model.labels)
    beyond = _beyond(config, said)
    if beyond:
        raise refusal("transformers", beyond)
    beside = WITHOUT_PREFIX
    if said["architectures"] == [WITH_ITS_NORM]:
        beside += ("layernorm",)
    prefix = "" if said["architectures"] == [kind.classes[1]] else kind.prefix
    theirs = {
        (plain if plain.startswith(beside) else prefix + plain): tensor
        for plain, tensor in to_theirs(_transformers_rules(config, name), state).items()
    }
    if name.startswith("dinov2"):  # for pre-training; transformers' classes have it all the same
        theirs[f"{prefix}embeddings.mask_token"] = torch.zeros(1, config.width)
    stage.mkdir()
    save_file(ready_to_save(theirs), stage / MODEL_FILE, metadata={"format": "pt"})
    write_json(stage / "config.json", said)
    processor, note = _processor(model.preprocessing)
    write_json(stage / "preprocessor_config.json", processor)
    files = [MODEL_FILE, "config.json", "preprocessor_config.json"]
    done = Written(stage, "hf", said["architectures"][0], files, notes=[note] if note else [])
    return done, twin_of(config, family)


def _as_transformers_has_it(model: ImageClassifier) -> tuple[Any, dict[str, Tensor]]:
    """The same function of pictures in the form that transformers has: config and tensors.

    A fixed position table becomes a learned one, a class token without a row in the table gets a
    row of zeros, and a DINOv2 head on the class token alone gets zeros for the mean patch.
    """
    config, state = model.config, dict(model.state_dict())
    if type(config) is not ViTConfig:
        return config, state
    changes: dict[str, Any] = {}
    if config.position in FIXED_TABLES:
        changes["position"] = "learned"
    if config.has_class_token and not config.position_on_prefix and not config.registers:
        changes["position_on_prefix"] = True
        state["pos_embed"] = F.pad(state["pos_embed"], (0, 0, 1, 0))
    if config.layer_scale is not None and config.num_classes and config.pool == "token":
        changes["pool"] = "token_mean"
        state["head.weight"] = F.pad(state["head.weight"], (0, config.width))
    return dataclasses.replace(config, **changes), state


def _beyond(config: Any, said: Mapping[str, Any]) -> list[str]:
    """What a config has that is gone when transformers' `config.json` for it is read."""
    found = describe(said)
    if found is None:
        return [f"these sizes of the family {type(config).__name__.removesuffix('Config')}"]
    back = checked_config(type(config), {**found[1], "num_classes": config.num_classes})
    return [
        f"{name}={value!r}"
        for name, value in fields_of(config).items()
        if name not in (*IGNORED, *SOFT) and not _alike(config, name, value, getattr(back, name))
    ]


def _alike(config: Any, name: str, ours: Any, theirs: Any) -> bool:
    if name == "layer_scale":  # only where the values begin
        return (ours is None) == (theirs is None)
    if name == "class_token":
        return bool(config.has_class_token)
    if name == "image_size" and not isinstance(config, (ViTConfig, PVTConfig, PVTv2Config)):
        return True  # nothing in it depends on one
    if name in ("mlp_ratios", "kv_strides") and isinstance(config, CvTConfig):
        stages = range(len(config.depths))
        flat = ours if isinstance(ours, tuple) else tuple(ours for _ in stages)
        same = flat == (theirs if isinstance(theirs, tuple) else tuple(theirs for _ in stages))
        return same and not any(isinstance(of_blocks, tuple) for of_blocks in flat)
    return ours == theirs


def _transformers_rules(config: Any, name: str) -> list[Rule]:
    rules: Mapping[str, Callable[[], list[Rule]]] = {
        "cvt": lambda: _unprefixed(cvt.TRANSFORMERS, "cvt."),
        "pvt": lambda: pvt.transformers_rules(config, ""),
        "pvt_v2": lambda: pvt.transformers_v2_rules(config, ""),
        "bit": lambda: transformers_bit.BIT_RULES,
        "resnet": lambda: transformers_resnet.rules(config),
    }
    if name in rules:
        return rules[name]()
    return transformers_vit.rules(config, "dinov2" if name.startswith("dinov2") else name)


def _unprefixed(rules: list[Rule], prefix: str) -> list[Rule]:
    return [
        dataclasses.replace(rule, theirs=rule.theirs.removeprefix(prefix))
        if isinstance(rule.theirs, str)
        else rule
        for rule in rules
    ]


def _processor(pictures: Preprocessing) -> tuple[dict[str, Any], str]:
    """transformers' `preprocessor_config.json`, and what it cannot say."""
    height, width = pictures.size
    common = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pictures.mean),
        "image_std": list(pictures.std),
        "resample": RESAMPLE.index(pictures.interpolation),
    }
    if pictures.fit == "crop":
        cropped = {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": round(min(height, width) / pictures.crop)},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
        }
        return {**common, **cropped}, ""
    note = ""
    if pictures.fit != "squash":
        note = f"transformers has no preprocessing that is fit={pictures.fit!r}: it squeezes"
    return {
        **common,
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": height, "width": width},
    }, note
