"""A second opinion on near duplicates: does a model find the two pictures alike as well?

Alike is what pairs drawn at random hardly ever are: the threshold comes from the data themselves.
"""

import numpy as np

QUANTILE = 0.99  # of random pairs that lie below the threshold
DRAWN = 20_000


def alike(values: np.ndarray, pairs: np.ndarray, seed: int = 0) -> np.ndarray:
    """Which pairs of rows are more alike than 99 % of random pairs, bool [m].

    Args:
        values: features [n d].
        pairs: int64 [m 2], rows of them.
        seed: of the random pairs.

    By the cosine of the features, centred and scaled by their mean and deviation.
    """
    deviation = values.std(0)
    scaled = (values - values.mean(0)) / np.where(deviation > 0, deviation, 1)
    scaled /= np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
    drawn = np.random.default_rng(seed).integers(0, len(values), (DRAWN, 2))
    drawn = drawn[drawn[:, 0] != drawn[:, 1]]
    usual = np.einsum("md,md->m", scaled[drawn[:, 0]], scaled[drawn[:, 1]])
    found = np.einsum("md,md->m", scaled[pairs[:, 0]], scaled[pairs[:, 1]])
    return found > (np.quantile(usual, QUANTILE) if len(usual) else -1)
