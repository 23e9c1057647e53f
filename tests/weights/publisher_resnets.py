"""Google's files of ResNets and their forward passes, written down from the publishers' code.

Nothing here uses Vitrail: names and shapes are those of bit_pytorch/models.py (BiT) and
vit_jax/models_resnet.py (hybrids), the arithmetic is numpy in float64, pictures are [b h w c].
"""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tests.weights import publisher

File = dict[str, np.ndarray]
SHAPE = publisher.Shape(patch=1, grid=4)


class _Maker:
    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.file: File = {}

    def kernel(self, name: str, size: int, channels: int, outside: int) -> None:
        # Raw kernels are neither centred nor of any particular scale, and some are tiny, so that
        # the place of the eps shows.
        scale = np.geomspace(1e-4, 1.0, outside)
        noise = self.rng.standard_normal((size, size, channels, outside))
        self.file[name] = ((noise + 0.3) * scale).astype(np.float32)

    def norm(self, name: str, words: Sequence[str], channels: int, shape: Sequence[int] = ()):
        # Some channels hardly vary, so that the eps of the norm shows.
        for word, middle in zip(words, (1.0, 0.0), strict=True):
            noise = middle + 0.3 * self.rng.standard_normal((*shape, channels))
            self.file[f"{name}/{word}"] = noise.astype(np.float32)

    def dense(self, name: str, shape: Sequence[int]) -> None:
        noise = self.rng.standard_normal(shape) * np.prod(shape[:-1]) ** -0.5
        self.file[f"{name}/kernel"] = noise.astype(np.float32)
        bias = 0.3 * self.rng.standard_normal(shape[-1])
        self.file[f"{name}/bias"] = bias.astype(np.float32)


def bit_arrays(
    depths: Sequence[int] = (1, 2),
    widths: Sequence[int] = (128, 256),
    stem: int = 32,
    classes: int = 5,
    seed: int = 0,
) -> File:
    """Every array of a BiT file, random."""
    make, words = _Maker(seed), ("gamma", "beta")
    conv = "standardized_conv2d/kernel"
    make.kernel(f"resnet/root_block/{conv}", 7, 3, stem)
    inside = stem
    for b, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
        for u in range(1, depth + 1):
            unit, inner = f"resnet/block{b}/unit{u:02d}", width // 4
            for letter, size, channels, outside in (
                ("a", 1, inside, inner),
                ("b", 3, inner, inner),
                ("c", 1, inner, width),
            ):
                make.norm(f"{unit}/{letter}/group_norm", words, channels)
                make.kernel(f"{unit}/{letter}/{conv}", size, channels, outside)
            if u == 1:
                make.kernel(f"{unit}/a/proj/{conv}", 1, inside, width)
            inside = width
    make.norm("resnet/group_norm", words, inside)
    make.dense("resnet/head/conv2d", (1, 1, inside, classes))
    return make.file


def hybrid_arrays(
    depths: Sequence[int] = (1, 2),
    stem: int = 32,
    shape: publisher.Shape = SHAPE,
    seed: int = 0,
) -> File:
    """Every array of a hybrid's file, random; GroupNorm vectors as (1, 1, 1, channels)."""
    make, words = _Maker(seed), ("scale", "bias")
    make.kernel("conv_root/kernel", 7, 3, stem)
    make.norm("gn_root", words, stem)
    inside = stem
    for b, depth in enumerate(depths, start=1):
        for u in range(1, depth + 1):
            unit, inner = f"block{b}/unit{u}", stem * 2 ** (b - 1)
            layers = [
                ("1", 1, inside, inner),
                ("2", 3, inner, inner),
                ("3", 1, inner, 4 * inner),
                ("_proj", 1, inside, 4 * inner),
            ]
            for suffix, size, channels, outside in layers if u == 1 else layers[:3]:
                make.kernel(f"{unit}/conv{suffix}/kernel", size, channels, outside)
                make.norm(f"{unit}/gn{suffix}", words, outside, (1, 1, 1))
            inside = 4 * inner
    file = publisher.arrays(shape, seed=seed) | make.file
    make.dense("embedding", (shape.patch, shape.patch, inside, shape.width))
    return file | make.file


def _convolve(x: np.ndarray, kernel: np.ndarray, stride: int, pads) -> np.ndarray:
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    size = kernel.shape[0]
    windows = sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijco->bhwo", windows, kernel, optimize=True)


def _max_pool(x: np.ndarray, pads, border: float) -> np.ndarray:
    x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=border)
    return sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max((-1, -2))


def _group_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    b, h, w, c = x.shape
    grouped = x.reshape(b, h, w, 32, c // 32)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = grouped.var((1, 2, 4), keepdims=True)
    normed = ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape)
    return normed * scale.reshape(-1) + bias.reshape(-1)


def bit_forward(file: File, images: np.ndarray) -> np.ndarray:
    """Logits of images [b h w 3], as bit_pytorch computes them."""
    file = {name: a.astype(np.float64) for name, a in file.items()}

    def conv(x, name, stride=1):
        kernel = file[f"{name}/standardized_conv2d/kernel"]
        mean, variance = kernel.mean((0, 1, 2)), kernel.var((0, 1, 2))
        pad = (kernel.shape[0] // 2,) * 2
        return _convolve(x, (kernel - mean) / np.sqrt(variance + 1e-10), stride, (pad, pad))

    def norm(x, name):
        scale, bias = (file[f"{name}/group_norm/{word}"] for word in ("gamma", "beta"))
        return np.maximum(_group_norm(x, scale, bias, 1e-5), 0)

    x = _max_pool(conv(images, "resnet/root_block", 2), ((1, 1), (1, 1)), 0.0)
    for b, u, unit in _units(file, "resnet/block{}/unit{:02d}", "/a/group_norm/gamma"):
        stride = 2 if b > 1 and u == 1 else 1
        normed = norm(x, f"{unit}/a")
        shortcut = conv(normed, f"{unit}/a/proj", stride) if u == 1 else x
        y = conv(norm(conv(normed, f"{unit}/a"), f"{unit}/b"), f"{unit}/b", stride)
        x = conv(norm(y, f"{unit}/c"), f"{unit}/c") + shortcut
    pooled = norm(x, "resnet").mean((1, 2))
    return pooled @ file["resnet/head/conv2d/kernel"][0, 0] + file["resnet/head/conv2d/bias"]


def hybrid_forward(file: File, images: np.ndarray, shape: publisher.Shape) -> np.ndarray:
    """Logits of images [b h w 3], as vit_jax computes them."""
    exact = {name: a.astype(np.float64) for name, a in file.items()}

    def same(x, size, stride):
        whole = [max(0, (-(-n // stride) - 1) * stride + size - n) for n in x.shape[1:3]]
        return [(pad // 2, pad - pad // 2) for pad in whole]

    def conv(x, name, stride=1):
        kernel = exact[f"{name}/kernel"]
        kernel = kernel - kernel.mean((0, 1, 2))
        kernel = kernel / (kernel.std((0, 1, 2)) + 1e-5)
        return _convolve(x, kernel, stride, same(x, kernel.shape[0], stride))

    def norm(x, name):
        return _group_norm(x, exact[f"{name}/scale"], exact[f"{name}/bias"], 1e-6)

    x = np.maximum(norm(conv(images, "conv_root", 2), "gn_root"), 0)
    x = _max_pool(x, same(x, 3, 2), -np.inf)
    for b, u, unit in _units(file, "block{}/unit{}", "/gn1/scale"):
        stride = 2 if b > 1 and u == 1 else 1
        y = np.maximum(norm(conv(x, f"{unit}/conv1"), f"{unit}/gn1"), 0)
        y = np.maximum(norm(conv(y, f"{unit}/conv2", stride), f"{unit}/gn2"), 0)
        y = norm(conv(y, f"{unit}/conv3"), f"{unit}/gn3")
        if u == 1:
            x = norm(conv(x, f"{unit}/conv_proj", stride), f"{unit}/gn_proj")
        x = np.maximum(x + y, 0)
    return publisher.forward(file, x, shape)


def _units(file: File, pattern: str, present: str):
    b = 1
    while pattern.format(b, 1) + present in file:
        u = 1
        while (unit := pattern.format(b, u)) + present in file:
            yield b, u, unit
            u += 1
        b += 1
