"""Recipes: functions from a situation to a `Recipe`, each with its source and what it gives.

A variant calls its parent and changes two fields. `RECIPES` is what ``--recipe`` knows; after a
colon stands a recipe's own variant: ``augreg:medium1``. docs/recipes.md has them in a table.
"""

from collections.abc import Callable

from vitrail.recipes.deit import deit, deit3, deit_distill
from vitrail.recipes.demo import demo
from vitrail.recipes.masked import mae, masked_patch
from vitrail.recipes.relatives import bit, cvt, pvt, t2t
from vitrail.recipes.situation import Situation
from vitrail.recipes.transfer import finetune, head_only, head_then_all, lora
from vitrail.recipes.vit import augreg, better_plain, scratch, vit_finetune, vit_pretrain
from vitrail.training.recipe import Recipe

RECIPES: dict[str, Callable[[Situation], Recipe]] = {
    "scratch": scratch,
    "demo": demo,
    "vit_pretrain": vit_pretrain,
    "vit_finetune": vit_finetune,
    "augreg": augreg,
    "better_plain": better_plain,
    "deit": deit,
    "deit_distill": deit_distill,
    "deit3": deit3,
    "cvt": cvt,
    "bit": bit,
    "t2t": t2t,
    "pvt": pvt,
    "masked_patch": masked_patch,
    "mae": mae,
    "finetune": finetune,
    "lora": lora,
    "head_only": head_only,
    "head_then_all": head_then_all,
}

DEFAULT_MODEL = "vit_tiny_patch16_224"
DEFAULT_MODELS = {
    "demo": "vit_nano_patch7_28",
    "vit_pretrain": "vit_base_patch16_224",
    "vit_finetune": "vit_base_patch16_224",
    "augreg": "vit_small_patch16_224",
    "better_plain": "vit_small_patch16_224",
    "deit": "deit_small_patch16_224",
    "deit_distill": "deit_small_distilled_patch16_224",
    "deit3": "deit3_small_patch16_224",
    "cvt": "cvt_13_224",
    "bit": "resnetv2_50x1_bit",
    "t2t": "t2t_vit_14",
    "pvt": "pvt_small",
    "masked_patch": "vit_base_patch16_224",
    "mae": "vit_base_patch16_224",
}

# Recipes that mean nothing without weights to start from.
NEEDS_WEIGHTS = ("lora", "head_only", "head_then_all")
