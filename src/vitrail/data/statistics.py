"""Statistics of pixels: the mean and deviation that a model from fresh weights is fed with."""

import numpy as np

from vitrail.data.examples import Source
from vitrail.data.loader import eval_batches
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import Preprocessing

SAMPLE = 2_000  # pictures; the means of another sample differ in the third digit


def pixel_statistics(
    source: Source, preprocessing: Preprocessing
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, for pixels scaled to 0..1, rounded to three digits.

    Measured on at most `SAMPLE` pictures, evenly spaced, resized and cropped as for evaluation.
    Where the channels are alike (grey pictures), so are their figures. A deviation is at least
    0.05: pictures of one colour would else be blown up to noise.

    Raises:
        Error: no picture of the sample can be read.
    """
    places = np.unique(np.linspace(0, len(source) - 1, min(len(source), SAMPLE)).astype(np.int64))
    count, total, squares = 0, np.zeros(3), np.zeros(3)
    for batch in eval_batches(source.subset(places), preprocessing, 64):
        pixels = batch.images.numpy().reshape(-1, 3).astype(np.float64) / 255
        count += len(pixels)
        total += pixels.sum(axis=0)
        squares += (pixels**2).sum(axis=0)
    if not count:
        raise Error(f"{source.name}: none of the pictures looked at can be read")
    mean = total / count
    deviation = np.maximum(np.sqrt(np.maximum(squares / count - mean**2, 0)), 0.05)
    if len(preprocessing.mean) == 1:  # a grey model: near enough to the luma's figures
        mean, deviation = mean.mean(keepdims=True), deviation.mean(keepdims=True)
    return tuple(np.round(mean, 3).tolist()), tuple(np.round(deviation, 3).tolist())
