"""ViT's recipes: the paper's pre-training and fine-tuning, AugReg's, "better plain ViT", and ours.

`scratch` is not a paper's: those take millions of images and days. It is what gives the best model
that we know of from a small folder in minutes to hours, and the demo's parent.
"""

import math

from vitrail.data.transforms import Augment, suggest
from vitrail.kit.errors import Error
from vitrail.recipes.situation import Situation, no_variants, root
from vitrail.training.recipe import Duration, Optim, Recipe, Schedule, Target

# TensorFlow's crop, scaled bilinearly and without averaging (vit_jax/input_pipeline.py; big_vision
# pp/ops_image.py).
GOOGLE = Augment(
    crop="inception_tf",
    area=(0.05, 1.0),
    aspect=(0.75, 1.33),
    antialias=False,
    interpolation="bilinear",
    flip=0.5,
)


def scratch(situation: Situation) -> Recipe:
    """AdamW, warm-up and cosine; length and augmentation fitted to the data and the image size.

    Command: ``vitrail train DATA --model vit_tiny_patch16_224 --out DIR``.
    Expected: see `demo` for the one figure that was measured; other data not measured.
    """
    no_variants(situation, "scratch")
    batch_size = situation.batch(64)
    duration = situation.length(scratch_epochs(situation.examples))
    epochs = situation.epochs(duration, batch_size)
    return Recipe(
        name="scratch",
        model=situation.model,
        optim=Optim(lr=1e-3 * root(batch_size, 64), weight_decay=0.05),
        schedule=Schedule(kind="cosine", warmup=Duration(10, "percent")),
        # Mixup pays early (half a point in 15 epochs of the demo), smoothing only in long runs.
        target=Target(
            label_smoothing=0.1 if epochs >= 30 else 0.0, mixup=0.2 if epochs >= 5 else 0.0
        ),
        augment=suggest(situation.image_side, epochs),
        duration=duration,
        batch_size=batch_size,
        ema=0.9999,
        normalize="data",
    )


def scratch_epochs(examples: int) -> float:
    """About half a million pictures in all, but never under 10 epochs nor over 100."""
    return min(100, max(10, round(500_000 / max(1, examples))))


# Rows of the ViT paper's Table 3 for JFT-300M by model: epochs (the longer where it names two) and
# rate. Models that are not in the table have the row of ViT-B.
JFT = {
    "vit_base": (7, 8e-4),
    "vit_large_patch32": (7, 6e-4),
    "vit_large": (14, 4e-4),
    "vit_huge": (14, 3e-4),
    "resnetv2_50x": (7, 1e-3),
    "resnetv2_101x1": (7, 8e-4),
    "resnetv2_152x": (7, 6e-4),
    "vit_base_r50": (7, 8e-4),
    "vit_large_r50_s32": (7, 2e-4),
    "vit_large_r50": (14, 4e-4),
}


def vit_pretrain(situation: Situation) -> Recipe:
    """Supervised pre-training of the ViT paper (arXiv 2010.11929, Table 3, appendix B.1).

    Variants are its data sets, and decide length, rate, decay and dropout: ``imagenet`` (the
    default), ``imagenet21k``, ``jft``. Adam with decoupled decay, 10,000 steps of warm-up (a fifth
    of a run too short for that), a tanh layer before the head. Clipping at 1 is stated for
    ImageNet alone, and used for all.
    Command: ``vitrail train DATA --model vit_base_patch16_224 --recipe vit_pretrain:imagenet
    --out DIR``.
    Expected: ImageNet top-1 after `vit_finetune` at 384: B/16 77.91 from ImageNet, 83.97 from
    ImageNet-21k, 84.15 from JFT (Table 5). Ours not measured.
    """
    imagenet21k = (90.0, 1e-3)
    rows = {
        "imagenet": ((300.0, 3e-3), "cosine", 0.3, 0.1),
        "imagenet21k": (imagenet21k, "linear", 0.03, 0.1),
        "jft": (_jft_row(situation.model.name), "linear", 0.1, 0.0),
    }
    (epochs, lr), curve, decay, dropout = situation.choose("vit_pretrain", rows, "imagenet")
    batch_size = situation.batch(4096)
    duration = situation.length(epochs)
    return Recipe(
        name="vit_pretrain",
        variant=situation.variant or "imagenet",
        model=situation.at(224, situation.with_model(dropout=dropout, pre_logits=True)),
        optim=Optim(lr=lr * root(batch_size, 4096), weight_decay=decay),
        schedule=Schedule(
            kind=curve, warmup=situation.warmup(Duration(10_000), duration, batch_size)
        ),
        augment=GOOGLE,
        duration=duration,
        batch_size=batch_size,
        ema=None,
    )


def _jft_row(name: str) -> tuple[float, float]:
    fitting = [begin for begin in JFT if name.startswith(begin)]
    return JFT[max(fitting, key=len, default="vit_base")]


# Steps, rates and the held-out share by data set (Table 4 and appendix B.1.1).
TRANSFERS: dict[str, tuple[int, tuple[float, ...], float]] = {
    "imagenet": (20_000, (0.003, 0.01, 0.03, 0.06), 0.01),
    "cifar10": (10_000, (0.001, 0.003, 0.01, 0.03), 0.02),
    "cifar100": (10_000, (0.001, 0.003, 0.01, 0.03), 0.02),
    "pets": (500, (0.001, 0.003, 0.01, 0.03), 0.1),
    "flowers": (500, (0.001, 0.003, 0.01, 0.03), 0.1),
    "vtab": (2_500, (0.01,), 0.2),
}


def vit_finetune(situation: Situation) -> Recipe:
    """Fine-tuning of the ViT paper (arXiv 2010.11929, Table 4, appendix B.1.1).

    SGD with momentum 0.9, batch 512, cosine, clipping at 1, no weight decay, a zero head without
    its tanh layer, 384 pixels with the table of positions resized (the nearest size that the patch
    divides). Without ``--lr`` every rate of the table's grid is tried with a share of train held
    out (``OUT/rates/<rate>``), and the best of them trains on all of train. Warm-up: 500 steps, 100
    in runs of 500 (vit_jax/configs). Variants are the table's data sets: ``imagenet cifar10
    cifar100 pets flowers vtab``; without one, the number of images decides between ImageNet's
    row, CIFAR's and that of the small sets, at BiT's boundaries. For another batch size the rates
    change in proportion. Polyak averaging as in Table 2: ``--set ema=0.9999``.
    Command: ``vitrail train DATA --weights ViT-B_16.npz --model vit_base_patch16_224 --recipe
    vit_finetune:cifar10 --out DIR``.
    Expected: B/16 from ImageNet-21k: CIFAR-10 98.95, CIFAR-100 91.67, ImageNet 83.97, Pets 94.43,
    Flowers 99.38 (Table 5). Ours not measured.
    """
    examples = situation.examples
    fitted = "pets" if examples < 20_000 else "cifar10" if examples < 500_000 else "imagenet"
    steps, rates, share = situation.choose("vit_finetune", TRANSFERS, fitted)
    batch_size = situation.batch(512)
    rates = tuple(rate * batch_size / 512 for rate in rates)
    duration = situation.length(steps, "steps")
    return Recipe(
        name="vit_finetune",
        variant=situation.variant or fitted,
        model=situation.at(384, situation.with_model(pre_logits=False)),
        optim=Optim(name="sgd", lr=rates[len(rates) // 2], momentum=0.9, weight_decay=0.0),
        schedule=Schedule(
            kind="cosine",
            warmup=situation.warmup(Duration(500 if steps > 500 else 100), duration, batch_size),
        ),
        augment=GOOGLE,
        duration=duration,
        batch_size=batch_size,
        ema=None,
        ema_warmup=False,
        fit="squash",  # vit_jax judges by whole pictures, squeezed to the size
        rates=rates if len(rates) > 1 else (),
        held_out=share,
    )


# RandAugment's (layers, magnitude) and mixup's alpha by level, as the paper and big_vision call
# them. File names of the released weights are one behind: their light0 is light1, their light1 is
# light2. Magnitude 0 is not nothing: colours and contrast fall to a tenth.
LEVELS: dict[str, tuple[int, float, float]] = {
    "none": (0, 0, 0.0),
    "light1": (2, 0, 0.0),
    "light2": (2, 10, 0.2),
    "medium1": (2, 15, 0.2),
    "medium2": (2, 15, 0.5),
    "strong1": (2, 20, 0.5),
    "strong2": (2, 20, 0.8),
}


def augreg(situation: Situation) -> Recipe:
    """ "How to train your ViT" (Steiner et al., arXiv 2106.10270; big_vision configs/vit_i1k.py).

    Variants are its seven levels of augmentation: ``none light1 light2 medium1 medium2 strong1
    strong2`` (see `LEVELS`); without one, big_vision's choice for the model on ImageNet. Adam,
    decay 0.1 in torch's unit (their 1e-4 at a rate of 1e-3), sigmoid loss with the head's bias at
    -ln k, cosine, 10,000 steps of warm-up, 300 epochs of 4096. Its other axis, dropout and
    stochastic depth both 0.1: ``--set model.dropout=0.1 model.drop_path=0.1``; its other decay:
    ``--set optim.weight_decay=0.03``.
    Command: ``vitrail train DATA --model vit_small_patch16_224 --recipe augreg:medium2 --out DIR``.
    Expected: ImageNet top-1 from ImageNet alone: S/16 78.84 at 224, B/16 79.15 (timm's measurement
    of the released files). Ours not measured.
    """
    default = {"tiny": "light1", "small": "medium1"}.get(situation.size_word, "medium2")
    if situation.size_word == "small" and "patch16" in situation.model.name:
        default = "medium2"
    layers, magnitude, mixup = situation.choose("augreg", LEVELS, default)
    batch_size = situation.batch(4096)
    duration = situation.length(300)
    augment = GOOGLE
    if layers:
        augment = augment.replace(
            rand_augment="big_vision", rand_layers=layers, rand_magnitude=magnitude
        )
    return vit_pretrain(situation.plain()).replace(
        name="augreg",
        variant=situation.variant or default,
        model=situation.at(224, situation.with_model(pre_logits=True)),
        optim=Optim(lr=1e-3 * root(batch_size, 4096), weight_decay=0.1),
        schedule=Schedule(
            kind="cosine", warmup=situation.warmup(Duration(10_000), duration, batch_size)
        ),
        target=Target(loss="sigmoid", mixup=mixup, head_bias=-math.log(situation.classes)),
        augment=augment,
        duration=duration,
    )


def better_plain(situation: Situation) -> Recipe:
    """ "Better plain ViT baselines for ImageNet-1k" (Beyer et al., arXiv 2205.01580).

    S/16 with mean pooling, fixed 2-D sin-cos positions and a tanh layer before the head;
    RandAugment (2, 10), mixup 0.2, batch 1024, decay 1e-4 independent of the rate, 90 epochs
    (big_vision configs/vit_s16_i1k.py).
    Command: ``vitrail train DATA --model vit_small_patch16_224 --recipe better_plain --out DIR``.
    Expected: ImageNet top-1 76.5 after 90 epochs, 78.5 after 150, 80.0 after 300 (Table 1).
    Ours not measured.
    """
    no_variants(situation, "better_plain")
    if situation.family != "vit":
        raise Error("recipe better_plain is for a plain ViT: try --model vit_small_patch16_224")
    batch_size = situation.batch(1024)
    duration = situation.length(90)
    plain = {"pool": "mean", "position": "sincos2d", "class_token": False, "pre_logits": True}
    return vit_pretrain(situation).replace(
        name="better_plain",
        variant="",
        model=situation.at(224, situation.with_model(**plain)),
        optim=Optim(lr=1e-3 * root(batch_size, 1024), weight_decay=1e-4, decay="independent"),
        schedule=Schedule(
            kind="cosine", warmup=situation.warmup(Duration(10_000), duration, batch_size)
        ),
        target=Target(mixup=0.2),
        augment=GOOGLE.replace(rand_augment="big_vision", rand_layers=2, rand_magnitude=10),
        duration=duration,
        batch_size=batch_size,
    )
