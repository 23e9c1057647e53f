"""Fine-tuning: from weights that have seen other data to one's own classes.

The protocol of the ViT paper (Table 4: SGD and a grid of rates) is a recipe of its own; this is
the one for a folder of images and no time for a grid.
"""

from vitrail.data.transforms import suggest
from vitrail.recipes.situation import Situation
from vitrail.training.recipe import Duration, Optim, Recipe, Schedule, Target


def finetune(situation: Situation) -> Recipe:
    """AdamW with rates that fall towards the embeddings, a fresh zero head, warm-up and cosine.

    Layer-wise decay as in MAE's fine-tuning (FINETUNE.md: 0.65 for B, 0.75 for L; 0.75 here).
    Command: ``vitrail train DATA --model NAME --weights FILE --out DIR``.
    Expected: not measured.
    """
    batch_size = 64 if situation.batch_size is None else situation.batch_size
    duration = situation.duration or Duration(finetune_epochs(situation.examples), "epochs")
    epochs = situation.epochs(duration, batch_size)
    return Recipe(
        name="finetune",
        model=situation.model,
        optim=Optim(lr=5e-4 * (batch_size / 64) ** 0.5, weight_decay=0.05, layer_decay=0.75),
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
