"""T2T-ViT's weights: the authors' files.

Our names are the authors' (yitu-opensource/T2T-ViT models/t2t_vit.py). Their factories scale
attention by the full width when they load released weights and by a head's width when they train
anew: a file is taken for a released one, and for one's own training with their code there is
``numerics="keep"``.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.kit.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vitrail.models.t2t import T2TConfig, is_sinusoids
from vitrail.weights.rules import Reading, Rule

NUMERICS = {"activation": "gelu", "norm_eps": 1e-5, "attention_scale": "width"}
PREPROCESSING = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic"}
AUTHORS = [Rule("{name}", "{name}")]


def recognise(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What the authors' file of a T2T-ViT holds; None where this is none, or not for this model."""
    if "tokens_to_token.project.weight" not in tensors or not isinstance(config, T2TConfig):
        return None
    notes = [
        "the authors' released files need attention_scale='width', a model trained anew with "
        "their code 'head'"
    ]
    table = tensors.get("pos_embed")
    if table is not None and table.ndim == 3 and table.shape[0] == 1 and not is_sinusoids(table):
        notes.append(
            "the file's position table is not that of the formula: at other sizes of picture the "
            "model's is"
        )
    return Reading(
        family="t2t",
        rules=AUTHORS,
        tensors=tensors,
        droppable=("head",),
        numerics=NUMERICS,
        preprocessing=PREPROCESSING,
        notes=notes,
    )
