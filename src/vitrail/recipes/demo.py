"""The demo: a Vision Transformer on 10,000 pictures of clothes, in a few minutes on two cores.

Fixed in steps, never in seconds, so that every machine gets the same model from the same seed.
"""

from vitrail.data.transforms import Augment
from vitrail.recipes.situation import Situation
from vitrail.recipes.vit import scratch
from vitrail.training.recipe import Duration, Model, Optim, Recipe, Schedule, Target

MODEL = Model(
    name="vit_tiny_patch7_28",
    image_size=28,
    config={
        "width": 96,
        "depth": 4,
        "mlp_width": 192,
        "pool": "mean",
        "position": "sincos2d",
    },
)


def demo(situation: Situation) -> Recipe:
    """A small `scratch`: 16 patches a picture, mean pooling, fixed positions, mixup.

    Found by trying: at equal cost a narrow model for more steps beats a wide one for fewer, fixed
    sin-cos positions beat learned ones, and mixup beats mirroring and shifting.
    Command: ``vitrail demo``.
    Expected: see the results table in README.
    """
    return scratch(situation).replace(
        name="demo",
        model=MODEL,
        optim=Optim(lr=1e-3, weight_decay=0.05),
        schedule=Schedule(kind="cosine", warmup=Duration(100, "steps")),
        target=Target(mixup=0.4),
        augment=Augment(),
        duration=situation.duration or Duration(2300, "steps"),
        eval_every=Duration(230, "steps"),
    )
