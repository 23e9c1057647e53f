"""Recipes: functions from a situation to a `Recipe`, each with its source and what it gives.

A variant calls its parent and changes two fields. `RECIPES` is what ``--recipe`` knows.
"""

from collections.abc import Callable

from vitrail.recipes.demo import demo
from vitrail.recipes.situation import Situation
from vitrail.recipes.transfer import finetune
from vitrail.recipes.vit import scratch
from vitrail.training.recipe import Recipe

RECIPES: dict[str, Callable[[Situation], Recipe]] = {
    "scratch": scratch,
    "demo": demo,
    "finetune": finetune,
}
