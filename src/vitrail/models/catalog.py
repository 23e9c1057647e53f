"""The catalogue: what `vitrail models` shows of the zoo, without making a single weight."""

from typing import Any

from vitrail.kit.errors import Error
from vitrail.models.base import square_or_pair
from vitrail.models.cost import cost
from vitrail.models.zoo import config_of, list_models, nearest, resolve

MODEL_COLUMNS = {
    "name": "",
    "family": "",
    "parameters": ",d",
    "gmacs": ".2f",
    "image_size": "",
    "weights": "",
}
LAYER_COLUMNS = {"name": "", "shape": "", "parameters": ",d", "macs": ",d"}


def model_rows(pattern: str) -> list[dict[str, Any]]:
    """A row a model: name, family, parameters, gmacs, image_size, weights it reads.

    Raises:
        Error: nothing matches the pattern.
    """
    names = list_models(pattern)
    if not names and not set(pattern) & set("*?["):
        names = [resolve(pattern)[0]]
    if not names:
        raise Error(
            f"no model is called {pattern!r}{nearest(pattern) or '; `vitrail models` lists them'}"
        )
    return [_model_row(name) for name in names]


def layer_rows(name: str) -> list[dict[str, Any]]:
    """A row a layer of one model, from the picture to the logits: name, shape, parameters, macs.

    Raises:
        Error: an unknown name.
    """
    rows = cost(config_of(name)).layers
    return [
        {
            "name": row.name,
            "shape": list(row.shape),
            "parameters": row.parameters,
            "macs": row.macs,
        }
        for row in rows
    ]


def _model_row(name: str) -> dict[str, Any]:
    config, (_, entry) = config_of(name), resolve(name)
    figures = cost(config)
    return {
        "name": name,
        "family": entry.family,
        "parameters": figures.parameters,
        "gmacs": round(figures.macs / 1e9, 3),
        "image_size": square_or_pair(config.image_size),
        "weights": list(entry.weights),
    }
