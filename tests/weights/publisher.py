"""Google's files and Google's forward pass, written down from the publisher's description.

Nothing here uses Vitrail: the shapes and names are those of vit_jax/models_vit.py and big_vision
models/vit.py (kernels (in, out), heads as an axis), the arithmetic is numpy in float64.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import zoom
from scipy.special import softmax


@dataclass(frozen=True)
class Shape:
    """A tiny ViT as its publisher would count it."""

    patch: int = 4
    width: int = 24
    heads: int = 3
    depth: int = 2
    mlp: int = 40
    grid: int = 3
    classes: int = 5
    pool: str = "tok"
    pre_logits: bool = False


def arrays(shape: Shape, layout: str = "original", seed: int = 0) -> dict[str, np.ndarray]:
    """Every array of a file, random; ``original`` (vit_jax), ``big_vision`` or ``scanned``."""
    rng = np.random.default_rng(seed)
    d, h, m = shape.width, shape.heads, shape.mlp
    e = d // h
    new = layout != "original"
    attention, mlp, norm2 = (0, 0, 1) if new else (1, 3, 2)

    def random(*dims, scale=None):
        scale = scale or max(1, int(np.prod(dims[:-1]))) ** -0.5
        return (rng.standard_normal(dims) * scale).astype(np.float32)

    def norm(name):
        return {f"{name}/scale": 1 + random(d, scale=0.3), f"{name}/bias": random(d, scale=0.3)}

    def dense(name, rows, columns):
        return {f"{name}/kernel": random(rows, columns), f"{name}/bias": random(columns)}

    def heads(name):
        out = {}
        for part in ("query", "key", "value"):
            sharp = 3 * d**-0.5 if part != "value" else d**-0.5
            out[f"{name}/{part}/kernel"] = random(d, h, e, scale=sharp)
            out[f"{name}/{part}/bias"] = random(h, e, scale=0.5)
        return out | {f"{name}/out/kernel": random(h, e, d), f"{name}/out/bias": random(d)}

    def mlps(name):
        return dense(f"{name}/Dense_0", d, m) | dense(f"{name}/Dense_1", m, d)

    file = {
        "embedding/kernel": random(shape.patch, shape.patch, 3, d),
        "embedding/bias": random(d),
        **norm("Transformer/encoder_norm"),
        **dense("head", d, shape.classes),
    }
    blocks = []
    for _ in range(shape.depth):
        blocks.append(
            norm("LayerNorm_0")
            | heads(f"MultiHeadDotProductAttention_{attention}")
            | norm(f"LayerNorm_{norm2}")
            | mlps(f"MlpBlock_{mlp}")
        )
    if layout == "scanned":
        for name in blocks[0]:
            file[f"Transformer/encoderblock/{name}"] = np.stack([block[name] for block in blocks])
    else:
        for i, block in enumerate(blocks):
            file |= {f"Transformer/encoderblock_{i}/{name}": a for name, a in block.items()}
    if shape.pool == "tok":
        file["cls"] = random(1, 1, d, scale=0.5)
    rows = shape.grid**2 + (shape.pool == "tok" and not new)
    place = "pos_embedding" if new else "Transformer/posembed_input/pos_embedding"
    file[place] = random(1, rows, d, scale=0.5)
    if shape.pool == "map":
        file["MAPHead_0/probe"] = random(1, 1, d, scale=0.5)
        file |= heads("MAPHead_0/MultiHeadDotProductAttention_0")
        file |= norm("MAPHead_0/LayerNorm_0") | mlps("MAPHead_0/MlpBlock_0")
    if shape.pre_logits:
        file |= dense("pre_logits", d, d)
    prefix = "params/" if new else ""
    return {prefix + name: array for name, array in file.items()}


def _norm(x, file, name):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * file[f"{name}/scale"] + file[f"{name}/bias"]


def _dense(x, file, name):
    return x @ file[f"{name}/kernel"] + file[f"{name}/bias"]


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _attention(queries, x, file, name):
    def project(y, part):
        kernel, bias = file[f"{name}/{part}/kernel"], file[f"{name}/{part}/bias"]
        return np.einsum("bnd,dhe->bnhe", y, kernel) + bias

    q, k, v = project(queries, "query"), project(x, "key"), project(x, "value")
    weights = softmax(np.einsum("bnhe,bmhe->bhnm", q * q.shape[-1] ** -0.5, k), axis=-1)
    mixed = np.einsum("bhnm,bmhe->bnhe", weights, v)
    return np.einsum("bnhe,hed->bnd", mixed, file[f"{name}/out/kernel"]) + file[f"{name}/out/bias"]


def _mlp(x, file, name):
    return _dense(_gelu(_dense(x, file, f"{name}/Dense_0")), file, f"{name}/Dense_1")


def forward(file: dict[str, np.ndarray], images: np.ndarray, shape: Shape) -> np.ndarray:
    """Logits of images [b h w 3] in float64, as vit_jax (or big_vision) computes them."""
    file = {name.removeprefix("params/"): a.astype(np.float64) for name, a in file.items()}
    new = "pos_embedding" in file
    attention, mlp, norm2 = (0, 0, 1) if new else (1, 3, 2)
    p = shape.patch
    b, height, width, _ = images.shape
    rows, columns = height // p, width // p
    channels = images.shape[-1]
    patches = images.reshape(b, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5)
    kernel = file["embedding/kernel"].reshape(p * p * channels, -1)
    x = patches.reshape(b, rows * columns, -1) @ kernel + file["embedding/bias"]
    if new:
        x = x + _resized(file["pos_embedding"], 0, rows, columns)
        if "cls" in file:
            x = np.concatenate([np.tile(file["cls"], (b, 1, 1)), x], axis=1)
    else:
        if "cls" in file:
            x = np.concatenate([np.tile(file["cls"], (b, 1, 1)), x], axis=1)
        table = file["Transformer/posembed_input/pos_embedding"]
        x = x + _resized(table, int("cls" in file), rows, columns)
    for i in range(shape.depth):
        name = f"Transformer/encoderblock_{i}"
        if f"{name}/LayerNorm_0/scale" not in file:  # scanned
            root = "Transformer/encoderblock/"
            stacked = [key for key in file if key.startswith(root)]
            file |= {f"{name}/{key.removeprefix(root)}": file[key][i] for key in stacked}
        y = _norm(x, file, f"{name}/LayerNorm_0")
        x = x + _attention(y, y, file, f"{name}/MultiHeadDotProductAttention_{attention}")
        y = _norm(x, file, f"{name}/LayerNorm_{norm2}")
        x = x + _mlp(y, file, f"{name}/MlpBlock_{mlp}")
    x = _norm(x, file, "Transformer/encoder_norm")
    if shape.pool == "tok":
        x = x[:, 0]
    elif shape.pool == "gap":
        x = x.mean(1)
    else:
        probe = np.tile(file["MAPHead_0/probe"], (b, 1, 1))
        x = _attention(probe, x, file, "MAPHead_0/MultiHeadDotProductAttention_0")
        x = (x + _mlp(_norm(x, file, "MAPHead_0/LayerNorm_0"), file, "MAPHead_0/MlpBlock_0"))[:, 0]
    if "pre_logits/kernel" in file:
        x = np.tanh(_dense(x, file, "pre_logits"))
    return _dense(x, file, "head")


def _resized(table, prefix, rows, columns):
    side = round((table.shape[1] - prefix) ** 0.5)
    grid = table[0, prefix:].reshape(side, side, -1)
    grid = zoom(grid, (rows / side, columns / side, 1), order=1)
    return np.concatenate([table[0, :prefix], grid.reshape(rows * columns, -1)])[None]
