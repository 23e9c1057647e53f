"""Filters for the corruptions: blurs, zooms, warps and clouds on float arrays [h w] or [h w c].

ImageNet-C was made with scikit-image, SciPy, OpenCV and ImageMagick. What it needs of them is here
in numpy, each function with the border and the rounding of the one it stands for; tests compare
them with SciPy and OpenCV. A filter along one axis is a matrix product, the border folded into the
matrix: exact for every border, and fast for the widest blur.
"""

import functools
import math

import numpy as np


def fold(places: np.ndarray, n: int, border: str) -> np.ndarray:
    """Whole places outside of 0..n-1 to those that stand for them.

    Args:
        border: ``nearest`` (the edge goes on), ``symmetric`` (SciPy's "reflect": the edge pixel
            twice) or ``reflect`` (OpenCV's REFLECT_101: the edge pixel once).
    """
    if border == "nearest" or n == 1:
        return places.clip(0, n - 1)
    if border == "symmetric":
        places = places % (2 * n)
        return np.minimum(places, 2 * n - 1 - places)
    places = places % (2 * n - 2)
    return np.minimum(places, 2 * n - 2 - places)


def gaussian(
    image: np.ndarray, sigma: float, border: str = "nearest", truncate: float = 4.0
) -> np.ndarray:
    """Blur along height and width, as `skimage.filters.gaussian` does; sigma 0 is no blur."""
    rows = _blur_matrix(image.shape[0], sigma, border, truncate)
    columns = _blur_matrix(image.shape[1], sigma, border, truncate)
    return _along_both(image, rows, columns)


@functools.lru_cache(maxsize=64)
def _blur_matrix(n: int, sigma: float, border: str, truncate: float) -> np.ndarray:
    """Float64 [n n]: row i holds the weights of every pixel in the blurred pixel i."""
    if sigma <= 0:
        return np.eye(n)
    radius = int(truncate * sigma + 0.5)  # scipy.ndimage.gaussian_filter1d
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((n, n))
    for offset, weight in zip(offsets, weights, strict=True):
        places = np.arange(n)
        np.add.at(matrix, (places, fold(places + offset, n, border)), weight)
    return matrix


def zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of a picture enlarged to its size again, linear interpolation.

    The cut-out has ceil(side / factor) pixels; it is enlarged corner onto corner, as
    `scipy.ndimage.zoom(order=1)` does, to round(cut-out * factor) pixels, and trimmed.
    """
    height, width = image.shape[:2]
    cut_h, cut_w = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - cut_h) // 2, (width - cut_w) // 2
    part = image[top : top + cut_h, left : left + cut_w]
    goal_h, goal_w = round(cut_h * factor), round(cut_w * factor)
    large = _along_both(part, _zoom_matrix(cut_h, goal_h), _zoom_matrix(cut_w, goal_w))
    top, left = (goal_h - height) // 2, (goal_w - width) // 2
    return large[top : top + height, left : left + width]


@functools.lru_cache(maxsize=256)
def _zoom_matrix(n: int, goal: int) -> np.ndarray:
    """Float64 [goal n] of linear interpolation, the first and the last pixel kept."""
    places = np.linspace(0, n - 1, goal) if goal > 1 else np.zeros(1)
    below = np.floor(places).astype(int).clip(0, max(n - 2, 0))
    share = places - below
    matrix = np.zeros((goal, n))
    matrix[np.arange(goal), below] = 1 - share
    matrix[np.arange(goal), np.minimum(below + 1, n - 1)] += share
    return matrix


def disk(radius: float, blur: float) -> np.ndarray:
    """A disk whose edge is softened, float64 [side side], adding up to 1.

    17 pixels wide up to a radius of 8 (edge softened over 3 pixels), else 2 radius + 1 (over 5),
    with the Gaussian weights of OpenCV's getGaussianKernel.
    """
    reach, taps = (8, 3) if radius <= 8 else (int(radius), 5)
    side = np.arange(-reach, reach + 1)
    kernel = (side[:, None] ** 2 + side**2 <= radius**2).astype(np.float64)
    kernel /= kernel.sum()
    steps = np.arange(taps) - taps // 2
    weights = np.exp(-(steps**2) / (2 * blur**2))
    weights /= weights.sum()
    n = len(side)
    matrix = np.zeros((n, n))
    for step, weight in zip(steps, weights, strict=True):
        places = np.arange(n)
        np.add.at(matrix, (places, fold(places + step, n, "reflect")), weight)
    return _along_both(kernel, matrix, matrix)


def convolved(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A picture [h w c] under a symmetric kernel of odd sides, as `cv2.filter2D` (REFLECT_101)."""
    reach = kernel.shape[0] // 2
    rows = fold(np.arange(-reach, image.shape[0] + reach), image.shape[0], "reflect")
    columns = fold(np.arange(-reach, image.shape[1] + reach), image.shape[1], "reflect")
    padded = image[np.ix_(rows, columns)]
    # By Fourier transforms; what wraps round lands in the border, which is cut off.
    turned = np.fft.rfft2(padded, axes=(0, 1)) * np.fft.rfft2(kernel, padded.shape[:2])[..., None]
    whole = np.fft.irfft2(turned, padded.shape[:2], axes=(0, 1))
    return whole[2 * reach :, 2 * reach :]


def motion_blurred(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """A picture [h w] or [h w c] smeared to one side, as ImageMagick's MotionBlurImage.

    2 radius + 1 samples along a line from each pixel, with the falling half of a Gaussian as
    weights (MagickCore/effect.c: GetMotionBlurKernel, MotionBlurImage); the edge goes on.

    Args:
        sigma: of the Gaussian, in pixels.
        angle: in degrees, clockwise from the right, y pointing down.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    turn = math.radians(angle)
    across = np.ceil(steps * math.cos(turn) - 0.5).astype(int)
    down = np.ceil(steps * math.sin(turn) - 0.5).astype(int)
    height, width = image.shape[:2]
    result = np.zeros(image.shape)
    for weight, x, y in zip(weights, across, down, strict=True):
        rows = fold(np.arange(height) + y, height, "nearest")
        columns = fold(np.arange(width) + x, width, "nearest")
        result += weight * image[rows][:, columns]
    return result


def sampled(image: np.ndarray, rows: np.ndarray, columns: np.ndarray, border: str) -> np.ndarray:
    """A picture [h w c] at places between its pixels, linear interpolation.

    Args:
        rows, columns: [h2 w2], places counted in pixels from the centre of the first one.
        border: see `fold`.
    """
    height, width = image.shape[:2]
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    top, bottom = (fold(top + step, height, border) for step in (0, 1))
    left, right = (fold(left + step, width, border) for step in (0, 1))
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return upper * (1 - down) + lower * down


def plasma(side: int, decay: float, numbers: np.random.Generator) -> np.ndarray:
    """A cloud by the diamond-square algorithm on a torus, float64 [side side], from 0 to 1.

    Every point in the middle of four others becomes their mean and a uniform draw, whose reach
    falls by decay squared from one scale to the next.

    Args:
        side: a power of two.
    """
    field = np.zeros((side, side))
    step, reach = side, 1.0
    while step > 1:
        half = step // 2

        def middle(total: np.ndarray, reach: float = reach) -> np.ndarray:
            return total / 4 + reach * numbers.uniform(-1, 1, total.shape)

        corners = field[::step, ::step].copy()
        pairs = corners + np.roll(corners, -1, 0)
        centres = middle(pairs + np.roll(pairs, -1, 1))
        field[half::step, half::step] = centres
        beside = corners + np.roll(corners, -1, 1)
        field[::step, half::step] = middle(centres + np.roll(centres, 1, 0) + beside)
        above = corners + np.roll(corners, -1, 0)
        field[half::step, ::step] = middle(centres + np.roll(centres, 1, 1) + above)
        step, reach = half, reach / decay**2
    field -= field.min()
    return field / field.max()


def _along_both(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """[h w ...] to rows @ image @ columns^T for every channel."""
    if image.ndim == 2:
        return rows @ image @ columns.T
    moved = rows @ np.moveaxis(image, 2, 0) @ columns.T
    return np.moveaxis(moved, 0, 2)
