"""Recipes of ViT's relatives: CvT, T2T-ViT, PVT (each close to DeiT's), and BiT with its rule."""

from vitrail.data.transforms import Augment
from vitrail.recipes.deit import deit
from vitrail.recipes.situation import Situation, no_variants
from vitrail.recipes.vit import GOOGLE
from vitrail.training.recipe import Duration, Optim, Recipe, Schedule, Target


def cvt(situation: Situation) -> Recipe:
    """CvT from ImageNet-1k (Wu et al., arXiv 2103.15808; experiments/imagenet/cvt/*.yaml).

    AdamW at 0.002 for 2048 images (the code; the paper's text says 0.02), decay 0.05 for CvT-13 and
    0.1 for the larger ones, 300 epochs; repeated augmentation for CvT-21 alone.
    Command: ``vitrail train DATA --model cvt_13_224 --recipe cvt --out DIR``.
    Expected: ImageNet top-1 CvT-13 81.6, CvT-21 82.5 (paper, Table 3). Ours not measured.
    """
    no_variants(situation, "cvt")
    batch_size = situation.batch(2048)
    larger = "21" in situation.model.name or "w24" in situation.model.name
    return deit(situation).replace(
        name="cvt",
        optim=Optim(
            lr=0.002 * batch_size / 2048, weight_decay=0.1 if larger else 0.05, clip_norm=None
        ),
        batch_size=batch_size,
        repeats=3 if "21" in situation.model.name else 1,
    )


def t2t(situation: Situation) -> Recipe:
    """T2T-ViT from ImageNet (Yuan et al., arXiv 2101.11986; the commands of its README).

    AdamW at 5e-4 for 512 images (1e-3 for T2T-ViT-7, -10 and -12), decay 0.03, 0.05 or 0.065 by
    depth, 300 epochs of cosine and 10 more at its floor.
    Command: ``vitrail train DATA --model t2t_vit_14 --recipe t2t --out DIR``.
    Expected: ImageNet top-1 T2T-ViT-7 71.7, -14 81.5, -19 81.9, -24 82.3 (README). Ours not
    measured.
    """
    no_variants(situation, "t2t")
    batch_size = situation.batch(512)
    depth = situation.fields.get("depth", 14)
    small = depth <= 12
    duration = situation.length(310)
    parent = deit(situation)
    return parent.replace(
        name="t2t",
        optim=Optim(
            lr=(1e-3 if small else 5e-4) * batch_size / 512,
            weight_decay=0.03 if small else 0.05 if depth <= 14 else 0.065,
            clip_norm=None,
        ),
        schedule=Schedule(
            kind="cosine",
            over="whole",
            warmup=situation.warmup(Duration(10, "epochs"), duration, batch_size),
            start=1e-6,
            floor=1e-5,
            cooldown=Duration(100 * 10 / 310, "percent"),
        ),
        duration=duration,
        batch_size=batch_size,
        repeats=1,
    )


def pvt(situation: Situation) -> Recipe:
    """PVT and PVT v2 from ImageNet (Wang et al., arXiv 2102.12122, 2106.13797).

    DeiT's recipe at its rate; stochastic depth 0.1, and 0.3 with clipping at 1 for the large ones
    (PVT-Large, PVT v2 B3 to B5).
    Command: ``vitrail train DATA --model pvt_small --recipe pvt --out DIR``.
    Expected: ImageNet top-1 PVT-Tiny 75.1, -Small 79.8, -Medium 81.2, -Large 81.7; PVT v2 B0 70.5,
    B2 82.0, B5 83.8 (papers). Ours not measured.
    """
    no_variants(situation, "pvt")
    parent = deit(situation)
    large = situation.model.name.endswith(("large", "b3", "b4", "b5"))
    if not large:
        return parent.replace(name="pvt")
    optim = Optim(lr=parent.optim.lr, weight_decay=0.05, clip_norm=1.0)
    return parent.replace(name="pvt", optim=optim, model=situation.with_model(drop_path=0.3))


SMALL, MEDIUM = 20_000, 500_000  # images: the boundaries of BiT's rule
LITTLE = 96 * 96  # pixels: below, pictures are enlarged to 160 and cut to 128


def bit(situation: Situation) -> Recipe:
    """BiT's transfer by its HyperRule (Kolesnikov et al., arXiv 1912.11370, section 3.3).

    The number of images decides the steps (500, 10,000, 20,000; boundaries 20,000 and 500,000) and
    mixup (0.1 from 20,000 on); the size of the pictures decides the resolution (128 of 160 below
    96x96, else 384 of 448; R152x4 480 of 512; bit_hyperrule.py takes 480 for all). SGD at 0.003 for
    512 images, a tenth after each stair, no decay, no clipping. A random crop of a resized picture
    is drawn here as a crop of that share of its sides: the same for square pictures.
    Variant ``pretrain``: its pre-training, SGD at 0.03 for 256 images, batch 4096, 90 epochs.
    Command: ``vitrail train DATA --model resnetv2_50x1_bit --weights BiT-M-R50x1.npz --recipe bit
    --out DIR``.
    Expected: BiT-M R50x1: ImageNet 80.68, CIFAR-10 97.4, CIFAR-100 86.6 (README). Ours not
    measured.
    """
    if situation.choose("bit", {"transfer": False, "pretrain": True}, "transfer"):
        return _bit_pretrain(situation)
    steps, mixup, warmup, stairs = hyperrule(situation.examples)
    size, larger = resolution(situation.pictures, situation.model.name)
    share = (size / larger) ** 2
    batch_size = situation.batch(512)
    return Recipe(
        name="bit",
        variant="transfer",
        model=situation.at(size),
        optim=Optim(
            name="sgd",
            lr=0.003 * batch_size / 512,
            momentum=0.9,
            weight_decay=0.0,
            clip_norm=None,
        ),
        schedule=Schedule(kind="staircase", warmup=Duration(warmup, "percent"), stairs=stairs),
        target=Target(mixup=mixup),
        augment=Augment(crop="inception", area=(share, share), aspect=(1.0, 1.0), flip=0.5),
        duration=situation.length(steps, "steps"),
        batch_size=batch_size,
        ema=None,
        fit="squash",
    )


def hyperrule(examples: int) -> tuple[int, float, float, tuple[float, ...]]:
    """BiT's rule (bit_hyperrule.py) for a training set of so many images.

    Returns:
        Steps, mixup's alpha, and warm-up and stairs in percent of the steps.
    """
    if examples < SMALL:
        return 500, 0.0, 20, (40, 60, 80)
    if examples < MEDIUM:
        return 10_000, 0.1, 5, (30, 60, 90)
    return 20_000, 0.1, 2.5, (30, 60, 90)


def resolution(pictures: tuple[int, int] | None, model: str) -> tuple[int, int]:
    """(what is cut out, of which size) by the pictures' (width, height); None counts as large."""
    if pictures is not None and pictures[0] * pictures[1] < LITTLE:
        return 128, 160
    return (480, 512) if "152x4" in model else (384, 448)


def _bit_pretrain(situation: Situation) -> Recipe:
    batch_size = situation.batch(4096)
    duration = situation.length(90)
    return Recipe(
        name="bit",
        variant="pretrain",
        model=situation.at(224),
        optim=Optim(name="sgd", lr=0.03 * batch_size / 256, weight_decay=1e-4, clip_norm=None),
        schedule=Schedule(
            kind="staircase",
            warmup=situation.warmup(Duration(5_000), duration, batch_size),
            stairs=(100 / 3, 200 / 3, 800 / 9),  # epochs 30, 60 and 80 of 90
        ),
        augment=GOOGLE,
        duration=duration,
        batch_size=batch_size,
        ema=None,
    )
