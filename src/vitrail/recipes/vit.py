"""Training a ViT from fresh weights on one's own images.

This is not a paper's pre-training recipe: those take millions of images and days. It is what gives
the best model that we know of from a small folder in minutes to hours, and the demo's parent.
"""

from vitrail.data.transforms import suggest
from vitrail.recipes.situation import Situation
from vitrail.training.recipe import Duration, Optim, Recipe, Schedule, Target


def scratch(situation: Situation) -> Recipe:
    """AdamW, warm-up and cosine; length and augmentation fitted to the data and the image size.

    Command: ``vitrail train DATA --model vit_tiny_patch16_224 --out DIR``.
    Expected: see `demo` for the one figure that was measured; other data not measured.
    """
    batch_size = 64 if situation.batch_size is None else situation.batch_size
    duration = situation.duration or Duration(scratch_epochs(situation.examples), "epochs")
    epochs = situation.epochs(duration, batch_size)
    return Recipe(
        name="scratch",
        model=situation.model,
        # The square root of the batch keeps the noise of an Adam step the same.
        optim=Optim(lr=1e-3 * (batch_size / 64) ** 0.5, weight_decay=0.05),
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
