"""The demo: a Vision Transformer on 10,000 pictures of clothes, in a few minutes on two cores.

Fixed in steps, never in seconds, so that every machine gets the same model from the same seed.
"""

from vitrail.data.transforms import Augment
from vitrail.recipes.situation import Situation
from vitrail.recipes.vit import scratch
from vitrail.training.recipe import Duration, Optim, Recipe, Schedule, Target


def demo(situation: Situation) -> Recipe:
    """`scratch` in 3,000 steps with mixup and no other augmentation; for `vit_nano_patch7_28`.

    That model has 16 patches a picture, mean pooling and fixed positions. At equal cost a narrow
    model for more steps came out above a wide one for fewer.
    Command: ``vitrail demo``.
    Expected: see the results table in README.
    """
    return scratch(situation).replace(
        name="demo",
        optim=Optim(lr=1e-3, weight_decay=0.05),
        schedule=Schedule(kind="cosine", warmup=Duration(100, "steps")),
        target=Target(mixup=0.4),
        augment=Augment(),
        duration=situation.duration or Duration(3000, "steps"),
        eval_every=Duration(300, "steps"),
    )
