"""The zoo: names, and what each stands for.

A plain table from name to configuration; adding a model is one file and its lines here.
Names are timm's where timm has the model; papers' and hubs' names resolve as aliases; the size at
the end of a name may be left out or be another one (`vit_base_patch16_320`).
"""

import difflib
import fnmatch
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vitrail.kit.errors import Error, did_you_mean
from vitrail.kit.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitrail.models import (
    bit_resnet,
    botnet,
    cvt,
    hybrid,
    pvt,
    pvt_v2,
    resnet,
    t2t,
    vit,
    vit_variants,
)
from vitrail.models.base import ImageClassifier, checked_config, height_width


@dataclass(frozen=True)
class Entry:
    """One name of the zoo.

    Args:
        family: a key of `FAMILIES`.
        config: fields of the family's config that differ from its defaults.
        weights: the families of weight files that this model reads (`LoadReport.family`).
        preprocessing: fields of `Preprocessing` that differ from `default_preprocessing`.
    """

    family: str
    config: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


FAMILIES: dict[str, tuple[type, type[ImageClassifier]]] = {
    "vit": (vit.ViTConfig, vit.VisionTransformer),
    "botnet": (botnet.BoTNetConfig, botnet.BoTNet),
    "pvt": (pvt.PVTConfig, pvt.PyramidVisionTransformer),
    "pvt_v2": (pvt_v2.PVTv2Config, pvt_v2.PyramidVisionTransformerV2),
    "cvt": (cvt.CvTConfig, cvt.CvT),
    "t2t": (t2t.T2TConfig, t2t.T2TViT),
    "hybrid": (hybrid.HybridConfig, hybrid.HybridTransformer),
    "resnet": (resnet.ResNetConfig, resnet.ResNet),
    "bit": (bit_resnet.BiTConfig, bit_resnet.BiTResNet),
}

PATCHES = {
    "tiny": (16,),
    "small": (32, 16, 8),
    "medium": (16,),
    "base": (32, 16, 8),
    "large": (32, 16, 14),
    "so400m": (14,),
    "huge": (14, 16),
    "giant": (14,),
    "giantopt": (16,),
    "gigantic": (14,),
    "giganticopt": (16,),
    "enormous": (14,),
}
RESOLUTIONS = (224, 384)
PLAIN_WEIGHTS = ("google", "timm", "transformers", "torchvision", "deit", "mae", "dino")


def _vit(size: str, patch_size: int, image_size: int) -> Entry:
    config = {**vit.SIZES[size], "patch_size": patch_size, "image_size": image_size}
    return Entry("vit", config, PLAIN_WEIGHTS)


ENTRIES: dict[str, Entry] = {
    f"vit_{size}_patch{patch_size}_{image_size}": _vit(size, patch_size, image_size)
    for size, patches in PATCHES.items()
    for patch_size in patches
    for image_size in RESOLUTIONS
    if image_size % patch_size == 0
}
ENTRIES["vit_nano_patch7_28"] = replace(
    _vit("nano", 7, 28),
    config={**_vit("nano", 7, 28).config, "pool": "mean", "position": "sincos2d"},
)
ENTRIES |= {name: Entry("vit", *variant) for name, variant in vit_variants.VARIANTS.items()}

_LETTERS = {
    "Ti": "tiny",
    "S": "small",
    "M": "medium",
    "B": "base",
    "L": "large",
    "So400m": "so400m",
    "H": "huge",
    "g": "giant",
    "g-opt": "giantopt",
    "G": "gigantic",
    "G-opt": "giganticopt",
    "e": "enormous",
}
ALIASES: dict[str, str] = {
    written.format(letter, patch_size): f"vit_{size}_patch{patch_size}_224"
    for letter, size in _LETTERS.items()
    for patch_size in PATCHES[size]
    for written in ("{}/{}", "{}_{}", "ViT-{}/{}", "ViT-{}_{}")
} | vit_variants.ALIASES


def _hybrid(name: str, image_size: int) -> Entry:
    size, depths, patch_size = hybrid.VARIANTS[name]
    config = {
        **vit.SIZES[size],
        "depths": depths,
        "widths": hybrid.STAGE_WIDTHS[: len(depths)],
        "patch_size": patch_size,
        "image_size": image_size,
    }
    reads = ("google", "timm", "transformers") if depths else ("google", "timm")
    return Entry("hybrid", config, reads)


ENTRIES |= {
    f"{name}_{image_size}": _hybrid(name, image_size)
    for name in hybrid.VARIANTS
    for image_size in RESOLUTIONS
}
ALIASES |= {
    written.format(resnet_, vit_, stride): f"{name}_224"
    for name, (resnet_, vit_, stride) in hybrid.PAPER_NAMES.items()
    for written in ("{}+{}/{}", "{}_{}_{}", "{}+ViT-{}/{}", "{}+ViT-{}_{}")
}

# BiT is judged on whole pictures squeezed to the size (bit_pytorch/train.py).
ENTRIES |= {
    f"resnetv2_{name}_bit": Entry(
        "bit",
        bit_resnet.variant(name),
        ("google", "timm", "transformers"),
        {"fit": "squash", "crop": 1.0, "interpolation": "bilinear"},
    )
    for name in bit_resnet.NAMES
}
ALIASES |= {
    written.format(name): f"resnetv2_{name}_bit"
    for name in bit_resnet.NAMES
    for written in ("R{}", "BiT-R{}", "BiT-S-R{}", "BiT-M-R{}")
}
ALIASES["google/bit-50"] = "resnetv2_50x1_bit"

ENTRIES |= {
    name: Entry(
        "resnet",
        config,
        ("timm", "torchvision", "transformers"),
        {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop": 0.875, "interpolation": "bilinear"},
    )
    for name, config in resnet.VARIANTS.items()
}

_IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic"}
ENTRIES |= {
    f"pvt_{size}": Entry("pvt", config, ("pvt", "transformers"), {**_IMAGENET, "crop": 0.875})
    for size, config in pvt.SIZES.items()
}
ENTRIES |= {
    f"pvt_v2_{size}": Entry(
        "pvt_v2", config, ("timm", "pvt", "transformers"), {**_IMAGENET, "crop": 0.9}
    )
    for size, config in pvt_v2.SIZES.items()
}
ENTRIES |= {
    name: Entry("botnet", config, (), {**_IMAGENET, "crop": 0.875})
    for name, config in botnet.VARIANTS.items()
}
ALIASES |= {"BoT50": "botnet50_224", "BoT50-S1": "botnet50_s1_224"}
ALIASES |= {
    f"BoTNet-{name.split('_')[1].upper()}": name for name in botnet.VARIANTS if "_t" in name
}
ALIASES |= {f"PVT-{size.capitalize()}": f"pvt_{size}" for size in pvt.SIZES}
ALIASES |= {f"PVTv2-{size.title().replace('_', '-')}": f"pvt_v2_{size}" for size in pvt_v2.SIZES}

# At 384 pixels the authors squeeze whole pictures (experiments/imagenet/cvt/*-384x384.yaml).
ENTRIES |= {
    f"cvt_{variant}_{size}": Entry(
        "cvt",
        {**cvt.VARIANTS[variant], "image_size": size},
        ("cvt", "transformers"),
        {**_IMAGENET, **({"crop": 0.875} if size == 224 else {"crop": 1.0, "fit": "squash"})},
    )
    for variant, sizes in cvt.SIZES.items()
    for size in sizes
}
ALIASES |= {
    written.format(variant.upper() if "CvT" in written else variant): f"cvt_{variant}_{size}"
    for variant, size in (("13", 224), ("21", 224), ("w24", 384))
    for written in ("CvT-{}", "microsoft/cvt-{}")
}
ALIASES |= {
    written.format(variant.upper() if "CvT" in written else variant): f"cvt_{variant}_384"
    for variant in ("13", "21", "w24")
    for written in ("CvT-{}-384", "microsoft/cvt-{}-384", "microsoft/cvt-{}-384-22k")
}
ALIASES["CvT-13-NAS"] = "cvt_13_nas_224"

ENTRIES |= {
    f"t2t_vit_{size}": Entry("t2t", config, ("t2t",), {**_IMAGENET, "crop": 0.9})
    for size, config in t2t.SIZES.items()
}
ALIASES |= {
    written.format(size.replace("_", "-")): f"t2t_vit_{size}"
    for size in t2t.SIZES
    for written in ("T2T-ViT-{}", *(["T2T-ViT_{}"] if size.startswith("t_") else []))
}

# A name without its size, and the first entry that it may stand for.
BASES: dict[str, str] = {}
for _name, _entry in ENTRIES.items():
    _size = _entry.config.get("image_size", FAMILIES[_entry.family][0].image_size)
    BASES.setdefault(_name.removesuffix(f"_{_size}"), _name)


def list_models(pattern: str = "*") -> list[str]:
    """The names of the zoo that match a pattern with ``*`` and ``?``, sorted by family and size."""
    return [name for name in ENTRIES if fnmatch.fnmatchcase(name, pattern)]


def resolve(name: str) -> tuple[str, Entry]:
    """A name, alias or name with another size at its end to its full name and entry.

    Raises:
        Error: nothing is called that; the nearest names are in the sentence.
    """
    hub = re.fullmatch(r"(?:google|facebook)/vit-(\w+)-patch(\d+)-(\d+)(?:-in21k)?", name)
    if hub:
        name = f"vit_{hub[1]}_patch{hub[2]}_{hub[3]}"
    name = ALIASES.get(name, name)
    if name in ENTRIES:
        return name, ENTRIES[name]
    base, _, size = name.rpartition("_")
    if size.isdigit() and int(size) and base in BASES:
        known = ENTRIES[BASES[base]]
        return name, replace(known, config={**known.config, "image_size": int(size)})
    if name in BASES:
        return BASES[name], ENTRIES[BASES[name]]
    plain = re.fullmatch(r"vit_([a-z0-9]+)_patch(\d+)(?:_(\d+))?", name)
    if plain and plain[1] in vit.SIZES and int(plain[2]) > 0:
        patch_size = int(plain[2])
        image_size = int(plain[3] or round(224 / patch_size) * patch_size or patch_size)
        return f"vit_{plain[1]}_patch{patch_size}_{image_size}", _vit(
            plain[1], patch_size, image_size
        )
    raise Error(f"unknown model {name!r}{nearest(name) or '; `vitrail models` lists the names'}")


def nearest(name: str) -> str:
    """ "Did you mean" for a model's name: names that begin alike come before names as long."""
    parts = name.rstrip("*").split("_")
    begun: dict[str, str] = {}
    for known in ENTRIES:
        begun.setdefault("_".join(known.split("_")[: len(parts)]), known)
    beginnings = difflib.get_close_matches("_".join(parts), begun, n=2, cutoff=0.8)
    if beginnings and len(parts) > 1:
        return f"; did you mean {' or '.join(repr(begun[item]) for item in beginnings)}?"
    return did_you_mean(name, [*ENTRIES, *ALIASES])


def create_model(
    name: str,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int = 3,
    **config: Any,
) -> ImageClassifier:
    """A model of the zoo with fresh weights, in eval mode.

    Args:
        name: a name of `list_models`, an alias (``B/16``, ``ViT-B_16``,
            ``google/vit-base-patch16-224``), or a name with another size at its end.
        num_classes: k; 0 for a model that ends in its features.
        image_size: pixels, or (height, width); None for the name's own.
        in_channels: channels of the input.
        **config: any field of the family's config, ``depth=4`` or ``pool="mean"``.

    Raises:
        Error: an unknown name or field (with the nearest named), or values that do not go
            together, such as a size that the patch does not divide.
    """
    _, entry = resolve(name)
    fields = {**entry.config, "num_classes": num_classes, "in_channels": in_channels, **config}
    if image_size is not None:
        fields["image_size"] = image_size
    model = from_config(entry.family, fields)
    pictures = dict(entry.preprocessing)
    if len(pictures.get("mean", ())) != in_channels:  # statistics of colours say nothing of others
        pictures = {k: v for k, v in pictures.items() if k not in ("mean", "std")}
    model.preprocessing = model.preprocessing.replace(**pictures)
    return model


def config_of(name: str) -> Any:
    """The config of a name of the zoo, without making the model."""
    _, entry = resolve(name)
    return checked_config(FAMILIES[entry.family][0], entry.config)


def from_config(family: str, fields: Mapping[str, Any]) -> ImageClassifier:
    """A model with fresh weights from its family and config fields, in eval mode.

    Raises:
        Error: an unknown family or field, or values that do not go together.
    """
    if family not in FAMILIES:
        raise Error(f"unknown model family {family!r}{did_you_mean(family, FAMILIES)}")
    config_class, model_class = FAMILIES[family]
    model = model_class(checked_config(config_class, fields))
    size, channels = height_width(model.config.image_size), model.config.in_channels
    model.preprocessing = default_preprocessing(size, channels)
    return model.eval()


def describe(model: ImageClassifier) -> dict[str, Any]:
    """A model without its weights as plain JSON values: what `from_description` takes."""
    family = next(name for name, (_, kind) in FAMILIES.items() if type(model) is kind)
    return {
        "family": family,
        "config": json.loads(json.dumps(asdict(model.config))),
        "preprocessing": model.preprocessing.to_json(),
        "labels": model.labels,
    }


def from_description(description: Mapping[str, Any]) -> ImageClassifier:
    """A model with fresh weights from what `describe` said of another, in eval mode.

    Raises:
        Error: an unknown family or field, or values that do not go together.
    """
    model = from_config(description["family"], description["config"])
    model.preprocessing = Preprocessing.from_json(description["preprocessing"])
    model.labels = description["labels"]
    return model


def default_preprocessing(size: tuple[int, int], channels: int = 3) -> Preprocessing:
    """Pixels in -1..1 and bicubic, as for Google's models; timm's crop of 0.9 near 224 pixels.

    Small pictures and high resolutions are used whole, as timm does for its 384-pixel files.
    """
    half = (0.5,) * channels
    crop = 0.9 if 128 <= min(size) < 320 else 1.0
    return Preprocessing(size=size, mean=half, std=half, crop=crop)
