"""Fine-tuning: from weights that have seen other data to one's own classes.

The protocol of the ViT paper (`vit_finetune`: SGD and a grid of rates) and BiT's (`bit`) are
recipes of their own; these are for a folder of images and no time for a grid.
"""

from vitrail.data.transforms import suggest
from vitrail.recipes.deit import AUGMENT
from vitrail.recipes.situation import Situation, no_variants, root
from vitrail.training.recipe import Duration, Optim, Recipe, Schedule, Target, Tuning

# MAE's fine-tuning by size (FINETUNE.md): rate for 256 images, layer decay, stochastic depth,
# epochs.
MAE = {
    "base": (5e-4, 0.65, 0.1, 100),
    "large": (1e-3, 0.75, 0.2, 50),
    "huge": (1e-3, 0.75, 0.3, 50),
}


def finetune(situation: Situation) -> Recipe:
    """AdamW with rates that fall towards the embeddings, a fresh zero head, warm-up and cosine.

    Layer-wise decay as in MAE's fine-tuning (FINETUNE.md: 0.65 for B, 0.75 for L; 0.75 here).
    Variant ``mae``: that fine-tuning whole, with its augmentation and length by size (their norm
    stands after the pooling and begins afresh; here the encoder's own norm goes on).
    Command: ``vitrail train DATA --model NAME --weights FILE --out DIR``.
    Expected: not measured; ``finetune:mae`` 83.6 on ImageNet for MAE's ViT-B (paper).
    """
    if situation.choose("finetune", {"own": False, "mae": True}, "own"):
        return _mae(situation)
    batch_size = situation.batch(64)
    duration = situation.length(finetune_epochs(situation.examples))
    epochs = situation.epochs(duration, batch_size)
    return Recipe(
        name="finetune",
        model=situation.model,
        optim=Optim(lr=5e-4 * root(batch_size, 64), weight_decay=0.05, layer_decay=0.75),
        schedule=Schedule(kind="cosine", warmup=Duration(10, "percent")),
        target=Target(label_smoothing=0.1 if epochs >= 10 else 0.0),
        augment=suggest(situation.image_side, epochs),
        duration=duration,
        batch_size=batch_size,
        ema=0.9999,
    )


def finetune_epochs(examples: int) -> float:
    """About 200,000 pictures in all, but never under 3 epochs nor over 30."""
    return min(30, max(3, round(200_000 / max(1, examples))))


def lora(situation: Situation) -> Recipe:
    """LoRA (Hu et al., arXiv 2106.09685): rank 8 on the attention matrices of every block.

    Only the additions and the head are trained, so optimiser and gradients take little memory;
    checkpoints hold the frozen weights too. The folder has plain weights with the additions in
    them. ``--set tuning.rank=4 tuning.lora_mlp=true`` for other ranks and the MLPs.
    Command: ``vitrail train DATA --weights FILE --model NAME --recipe lora --out DIR``.
    Expected: not measured.
    """
    no_variants(situation, "lora")
    batch_size = situation.batch(64)
    return finetune(situation).replace(
        name="lora",
        tuning=Tuning(part="lora", rank=8, alpha=16.0),
        optim=Optim(lr=1e-3 * root(batch_size, 64), weight_decay=0.0),
    )


def head_only(situation: Situation) -> Recipe:
    """The head alone, on a frozen backbone in evaluation mode: the quickest, and hard to spoil.

    Command: ``vitrail train DATA --weights FILE --model NAME --recipe head_only --out DIR``.
    Expected: not measured.
    """
    no_variants(situation, "head_only")
    batch_size = situation.batch(64)
    return finetune(situation).replace(
        name="head_only",
        tuning=Tuning(part="head"),
        optim=Optim(lr=1e-3 * root(batch_size, 64), weight_decay=0.0),
    )


def head_then_all(situation: Situation) -> Recipe:
    """First the head alone for a quarter of the run, then everything: two schedules, one run.

    A zero head sends gradients of no meaning into the backbone; here they come when it has
    learned something. ``--set "tuning.head_for=2 epochs"`` for another share.
    Command: ``vitrail train DATA --weights FILE --model NAME --recipe head_then_all --out DIR``.
    Expected: not measured.
    """
    no_variants(situation, "head_then_all")
    batch_size = situation.batch(64)
    return finetune(situation).replace(
        name="head_then_all",
        tuning=Tuning(part="head_then_all", head_lr=1e-3 * root(batch_size, 64)),
    )


def _mae(situation: Situation) -> Recipe:
    rate, decay, drop, epochs = MAE.get(situation.size_word, MAE["base"])
    batch_size = situation.batch(1024)
    return Recipe(
        name="finetune",
        variant="mae",
        model=situation.with_model(drop_path=drop),
        optim=Optim(
            lr=rate * batch_size / 256, weight_decay=0.05, layer_decay=decay, clip_norm=None
        ),
        schedule=Schedule(kind="cosine", warmup=Duration(500 / epochs, "percent"), floor=1e-6),
        target=Target(label_smoothing=0.1, mixup=0.8, cutmix=1.0),
        augment=AUGMENT,
        duration=situation.length(epochs),
        batch_size=batch_size,
        ema=None,
    )
