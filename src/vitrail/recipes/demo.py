"""The demo: a Vision Transformer on 10,000 pictures of clothes, in a few minutes on two cores.

Fixed in steps, never in seconds, so that every machine gets the same model from the same seed.
"""

from vitrail.recipes.situation import Situation
from vitrail.recipes.vit import scratch
from vitrail.training.recipe import Duration, Model, Optim, Recipe, Schedule

DATA = "demo:fashion"
MODEL = Model(
    name="vit_tiny_patch7_28",
    image_size=28,
    config={"depth": 4, "width": 96, "mlp_width": 192, "pool": "mean", "position": "sincos2d"},
)


def demo(situation: Situation) -> Recipe:
    """A small `scratch`: 16 patches a picture, mean pooling, no augmentation.

    Command: ``vitrail demo``.
    Expected: see the results table in README.
    """
    return scratch(situation).replace(
        name="demo",
        model=MODEL,
        optim=Optim(lr=1.5e-3, weight_decay=0.05),
        schedule=Schedule(kind="cosine", warmup=Duration(10, "percent")),
        duration=situation.duration or Duration(1082, "steps"),
        eval_every=Duration(200, "steps"),
    )
