"""DeiT's recipes: from ImageNet alone, with a teacher, and DeiT-III.

timm's colour jitter, which their commands name, is not applied where RandAugment is (timm
data/transforms_factory.py), so it is not here either. Their cooldown of ten epochs lies beyond the
epochs that their loop runs.
"""

from vitrail.data.transforms import Augment
from vitrail.recipes.situation import Situation, no_variants
from vitrail.training.recipe import Distill, Duration, Optim, Recipe, Schedule, Target

AUGMENT = Augment(
    crop="inception",
    area=(0.08, 1.0),
    flip=0.5,
    rand_augment="timm",
    rand_layers=2,
    rand_magnitude=9,
    rand_magnitude_std=0.5,
    erase=0.25,
    erase_fill="noise",
)


def deit(situation: Situation) -> Recipe:
    """DeiT (Touvron et al., arXiv 2012.12877, Table 9; main.py).

    AdamW at 5e-4 for each 512 images, 300 epochs, RandAugment m9, mixup 0.8 or CutMix 1, random
    erasing, smoothing 0.1, stochastic depth 0.1, every image three times a batch stream. The
    average of the weights (0.99996) is what we keep; the paper's figures are of the raw weights
    (``--no-ema``).
    Command: ``vitrail train DATA --model deit_small_patch16_224 --recipe deit --out DIR``.
    Expected: ImageNet top-1 Ti 72.2, S 79.9, B 81.8 (paper, Table 7). Ours not measured.
    """
    no_variants(situation, "deit")
    batch_size = situation.batch(1024)
    duration = situation.length(300)
    return Recipe(
        name="deit",
        model=situation.with_model(drop_path=0.1),
        optim=Optim(lr=5e-4 * batch_size / 512, weight_decay=0.05, clip_norm=None),
        schedule=Schedule(
            kind="cosine",
            over="whole",
            warmup=situation.warmup(Duration(5, "epochs"), duration, batch_size),
            start=1e-6,
            floor=1e-5,
        ),
        target=Target(label_smoothing=0.1, mixup=0.8, cutmix=1.0),
        augment=AUGMENT,
        duration=duration,
        batch_size=batch_size,
        repeats=3,
        ema=0.99996,
    )


def deit_distill(situation: Situation) -> Recipe:
    """DeiT with a teacher (arXiv 2012.12877, section 4): half of the loss is the teacher's.

    Variants: ``hard`` (the default: the teacher's answer is the distillation token's label) and
    ``soft`` (its distribution, at temperature 3). The teacher comes by ``--teacher``; the paper's
    is RegNetY-16GF.
    Command: ``vitrail train DATA --model deit_small_distilled_patch16_224 --recipe deit_distill
    --teacher FOLDER --out DIR``.
    Expected: ImageNet top-1 Ti 74.5, S 81.2, B 83.4 (paper, Table 7). Ours not measured.
    """
    kind = situation.choose("deit_distill", {"hard": "hard", "soft": "soft"}, "hard")
    return deit(situation.plain()).replace(
        name="deit_distill", variant=kind, distill=Distill(kind=kind, share=0.5, temperature=3.0)
    )


# Stochastic depth by stage and size, and the size of the pictures (README_revenge.md).
DEPTHS: dict[str, dict[str, float]] = {
    "imagenet": {"small": 0.05, "medium": 0.1, "base": 0.2, "large": 0.45, "huge": 0.6},
    "finetune224": {"small": 0.0, "base": 0.2, "large": 0.45, "huge": 0.55},
    "finetune384": {"small": 0.0, "base": 0.15, "large": 0.4},
    "imagenet21k": {"small": 0.05, "base": 0.1, "large": 0.3, "huge": 0.5},
    "imagenet21k_finetune": {"small": 0.05, "base": 0.15, "large": 0.4, "huge": 0.45},
}


def deit3(situation: Situation) -> Recipe:
    """DeiT-III (Touvron et al., arXiv 2204.07118; README_revenge.md, by size).

    Variants are its stages: ``imagenet`` (the default: 800 epochs, LAMB, a yes or no for each
    class, 3-Augment), ``finetune224`` and ``finetune384`` after it, ``imagenet21k`` and
    ``imagenet21k_finetune``. Clipping at 1 is inside their fused LAMB.
    Command: ``vitrail train DATA --model deit3_small_patch16_224 --recipe deit3 --out DIR``.
    Expected: ImageNet top-1 at 224 S 81.4, B 83.8, L 84.9, H 85.2; from ImageNet-21k S 83.1,
    B 85.7, L 87.0, H 87.2 (paper). Ours not measured.
    """
    drops = situation.choose("deit3", DEPTHS, "imagenet")
    stage = situation.variant or "imagenet"
    drop = drops.get(situation.size_word, 0.1)
    three = Augment(crop="inception", area=(0.08, 1.0), flip=0.5, three_augment=True, jitter=0.3)
    batch_size = situation.batch(2048)
    recipe = deit(situation.plain()).replace(
        name="deit3",
        variant=stage,
        batch_size=batch_size,
        model=situation.with_model(drop_path=drop),
    )
    if stage.startswith("finetune"):
        batch_size = situation.batch(512)
        return recipe.replace(
            model=situation.at(int(stage[-3:]), recipe.model),
            optim=Optim(lr=1e-5 * batch_size / 512, weight_decay=0.1, clip_norm=None),
            augment=AUGMENT.replace(erase=0.0),
            duration=situation.length(20),
            batch_size=batch_size,
        )
    wide = stage.startswith("imagenet21k")
    lr = 4e-3 if situation.size_word == "small" else 3e-3
    if wide:
        lr = 1e-3 if stage == "imagenet21k" else 3e-4
    epochs = {"imagenet": 800, "imagenet21k": 240}.get(stage, 50)
    if stage == "imagenet21k" and situation.size_word == "huge":
        epochs = 90
    side = {"base": 192, "large": 192, "huge": 160}.get(situation.size_word, 224)
    return recipe.replace(
        model=situation.at(side if stage == "imagenet" else 224, recipe.model),
        optim=Optim(
            name="lamb",
            lr=lr * batch_size / 2048,
            eps=1e-8,
            weight_decay=0.02 if wide else 0.05,
            clip_norm=1.0,
        ),
        target=Target(label_smoothing=0.1, cutmix=1.0)
        if wide
        else Target(loss="bce", mixup=0.8, cutmix=1.0),
        augment=three.replace(crop="simple") if wide else three,
        duration=situation.length(epochs),
        repeats=1 if wide else 3,
        ema=None,
    )
