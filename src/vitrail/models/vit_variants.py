"""The named relatives of the plain ViT: DeiT, DeiT-III, DINOv2, CLIP's and SigLIP's image towers.

They are `vit.VisionTransformer` by configuration; names and numerics are timm's, preprocessing is
that of each family's own evaluation.
"""

from collections.abc import Mapping
from typing import Any

from vitrail.kit.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vitrail.models.vit import SIZES

Variant = tuple[Mapping[str, Any], tuple[str, ...], Mapping[str, Any]]

IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),  # OpenAI CLIP clip/clip.py
    "std": (0.26862954, 0.26130258, 0.27577711),
}

# timm's Ti, S, M, B, L and H are the ViT paper's; its DINOv2 giant is wider and gated.
DINOV2_GIANT = {
    "depth": 40,
    "width": 1536,
    "heads": 24,
    "mlp_width": 4096,
    "gated_mlp": True,
    "activation": "silu",
}
DEIT = {"tiny": (224,), "small": (224,), "base": (224, 384)}
DEIT3 = {
    ("small", 16): (224, 384),
    ("medium", 16): (224,),
    ("base", 16): (224, 384),
    ("large", 16): (224, 384),
    ("huge", 14): (224,),
}
CLIPS = {
    ("medium", 32): (224,),
    ("medium", 16): (224,),
    ("base", 32): (224, 256, 384, 448),
    ("base", 16): (224, 384),
    ("large", 14): (224, 336),
    ("huge", 14): (224, 336, 378),
    ("giant", 14): (224,),
    ("gigantic", 14): (224, 378),
}
QUICK_CLIPS = {
    ("base", 32): (224,),
    ("base", 16): (224,),
    ("large", 14): (224, 336),
    ("huge", 14): (224, 378),
    ("gigantic", 14): (224,),
}
# SigLIP's first release has timm's exact GELU under these names, the second the tanh form.
SIGLIPS = {
    ("base", 32): {256: "gelu_tanh"},
    ("base", 16): dict.fromkeys((224, 256, 384, 512), "gelu"),
    ("large", 16): {256: "gelu", 384: "gelu", 512: "gelu_tanh"},
    ("so400m", 14): dict.fromkeys((224, 378), "gelu"),
    ("so400m", 16): dict.fromkeys((256, 384, 512), "gelu_tanh"),
    ("giantopt", 16): dict.fromkeys((256, 384), "gelu_tanh"),
}


def _config(size: str, patch_size: int, image_size: int, **more: Any) -> dict[str, Any]:
    return {**SIZES[size], "patch_size": patch_size, "image_size": image_size, **more}


def _deit() -> dict[str, Variant]:
    made: dict[str, Variant] = {}
    reads = ("timm", "deit", "transformers")
    # DeiT main.py: --eval-crop-ratio 0.875, DeiT-III 1.0
    for size, image_sizes in DEIT.items():
        for side in image_sizes:
            config, pictures = _config(size, 16, side), {**IMAGENET, "crop": 0.875}
            made[f"deit_{size}_patch16_{side}"] = (config, reads, pictures)
            name = f"deit_{size}_distilled_patch16_{side}"
            made[name] = ({**config, "distilled": True}, reads, pictures)
    for (size, patch_size), image_sizes in DEIT3.items():
        for side in image_sizes:
            special = {
                "position_on_prefix": False,
                "layer_scale": 1e-4,  # models_v2.py; timm's 1e-6 is overwritten by the files
                "drop_path_rule": "constant",
            }
            config = _config(size, patch_size, side, **special)
            name = f"deit3_{size}_patch{patch_size}_{side}"
            made[name] = (config, ("timm", "deit"), {**IMAGENET, "crop": 1.0})
    return made


def _dinov2() -> dict[str, Variant]:
    made: dict[str, Variant] = {}
    for size in ("small", "base", "large", "giant"):
        config = _config(size, 14, 518, layer_scale=1e-5)
        config |= DINOV2_GIANT if size == "giant" else {}
        for registers in (0, 4):
            name = f"vit_{size}_patch14_{'reg4_' * (registers > 0)}dinov2"
            extra = {"registers": registers, "position_on_prefix": False} if registers else {}
            reads = ("timm", "dinov2", "transformers")
            made[name] = ({**config, **extra}, reads, {**IMAGENET, "crop": 1.0})
    return made


def _towers() -> dict[str, Variant]:
    made: dict[str, Variant] = {}
    for activation, table in (("gelu", CLIPS), ("quick_gelu", QUICK_CLIPS)):
        for (size, patch_size), image_sizes in table.items():
            for side in image_sizes:
                special = {"pre_norm": True, "norm_eps": 1e-5, "activation": activation}
                config = _config(size, patch_size, side, **special)
                kind = "clip" if activation == "gelu" else "clip_quickgelu"
                name = f"vit_{size}_patch{patch_size}_{kind}_{side}"
                made[name] = (config, ("timm",), {**CLIP, "crop": 1.0})
    for (size, patch_size), image_sizes in SIGLIPS.items():
        for side, activation in image_sizes.items():
            config = _config(size, patch_size, side, pool="map", activation=activation)
            name = f"vit_{size}_patch{patch_size}_siglip_{side}"
            made[name] = (config, ("google", "timm"), {"crop": 1.0, "fit": "squash"})
    return made


VARIANTS: dict[str, Variant] = {**_deit(), **_dinov2(), **_towers()}

ALIASES: dict[str, str] = {
    **{f"facebook/{name.replace('_', '-')}": name for name in VARIANTS if name.startswith("deit_")},
    **{
        f"facebook/dinov2-{between}{size}": f"vit_{size}_patch14_{registers}dinov2"
        for size in ("small", "base", "large", "giant")
        for between, registers in (("", ""), ("with-registers-", "reg4_"))
    },
    "facebook/vit-mae-base": "vit_base_patch16_224",
    "facebook/vit-mae-large": "vit_large_patch16_224",
    "facebook/vit-mae-huge": "vit_huge_patch14_224",
    "facebook/dino-vits16": "vit_small_patch16_224",
    "facebook/dino-vits8": "vit_small_patch8_224",
    "facebook/dino-vitb16": "vit_base_patch16_224",
    "facebook/dino-vitb8": "vit_base_patch8_224",
}
