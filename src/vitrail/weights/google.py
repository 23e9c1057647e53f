"""Google's `.npz` files of the plain ViT: original, AugReg and big_vision.

Three things differ between the files: a prefix (``opt/target/``, ``params/``, ``params/img/``),
the numbering of the layers inside a block (vit_jax counts on through the block, big_vision counts
each kind from 0), and whether the blocks lie side by side or stacked along a depth axis (scan).
Kernels are (in, out), convolutions (row, column, in, out), attention kernels carry the heads as
an axis of their own (vit_jax/models_vit.py, big_vision models/vit.py).
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.kit.preprocess import HALF
from vitrail.models.base import ImageClassifier
from vitrail.models.hybrid import HybridConfig
from vitrail.models.vit import FIXED_TABLES, ViTConfig
from vitrail.weights.rules import Reading, Rule, to_theirs

PREFIXES = ("opt/target/", "params/img/", "params/", "")
NUMERICS = {
    "activation": "gelu_tanh",  # flax's nn.gelu
    "norm_eps": 1e-6,
    "attention_scale": "head",
    "position_resize": "bilinear_corners",
}


def recognise(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What a Google file of the plain ViT holds; None where this is no such file or model."""
    hybrid = any(re.search(r"(^|/)conv_root/kernel$", name) for name in tensors)
    return None if hybrid or isinstance(config, HybridConfig) else read_plain(tensors, config)


def read_plain(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """The same, whatever stands before the Transformer."""
    prefix = next((p for p in PREFIXES if f"{p}embedding/kernel" in tensors), None)
    if prefix is None or not isinstance(config, ViTConfig):
        return None
    names = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    plain = {short: tensors[name] for short, name in names.items()}
    _unstack(plain, names)
    newer = "pos_embedding" in plain or any(
        re.match(r"Transformer/encoderblock_\d+/MlpBlock_0/", name) for name in plain
    )
    return Reading(
        family="big_vision" if newer else "google",
        rules=rules(config, newer),
        tensors=plain,
        names=names,
        wrappers=[prefix] if prefix else [],
        dropped=[name for name in tensors if not name.startswith(prefix)],
        droppable=("pre_logits", "cls_token", "head"),
        numerics=NUMERICS,
        resize="bilinear_corners",  # scipy's zoom of order 1, in both repositories
        resize_kept="bilinear",  # timm's reader of these files
        preprocessing={"mean": HALF, "std": HALF},
    )


def rules(config: ViTConfig, newer: bool) -> list[Rule]:
    """The rules of the plain ViT.

    Args:
        newer: big_vision's numbering inside a block and its place for the position table.
    """
    attention, mlp, norm2 = (0, 0, 1) if newer else (1, 3, 2)
    block = "Transformer/encoderblock_{i}/"
    position = "pos_embedding" if newer else "Transformer/posembed_input/pos_embedding"
    return [
        Rule("embedding/kernel", "patch_embed.proj.weight", hwio_to_oihw, oihw_to_hwio),
        Rule("embedding/bias", "patch_embed.proj.bias"),
        Rule("cls", "cls_token"),
        Rule(position, "pos_embed"),
        *_norm(f"{block}LayerNorm_0", "blocks.{i}.norm1"),
        *_attention(
            f"{block}MultiHeadDotProductAttention_{attention}",
            "blocks.{i}.attn",
            {"qkv": ("query", "key", "value")},
            config.heads,
        ),
        *_norm(f"{block}LayerNorm_{norm2}", "blocks.{i}.norm2"),
        *_mlp(f"{block}MlpBlock_{mlp}", "blocks.{i}.mlp"),
        *_norm("Transformer/encoder_norm", "norm"),
        Rule("MAPHead_0/probe", "attn_pool.latent"),
        *_attention(
            "MAPHead_0/MultiHeadDotProductAttention_0",
            "attn_pool",
            {"q": ("query",), "kv": ("key", "value")},
            config.heads,
        ),
        *_norm("MAPHead_0/LayerNorm_0", "attn_pool.norm"),
        *_mlp("MAPHead_0/MlpBlock_0", "attn_pool.mlp"),
        *_dense("pre_logits", "pre_logits.fc"),
        *_dense("head", "head"),
    ]


def write_npz(model: ImageClassifier, path: Path | str) -> None:
    """Write a plain ViT as Google would: the original layout, or big_vision's where only that fits.

    big_vision's is taken for attention pooling and for tables without a row for the class token.
    A fixed position table is not written: the readers compute it.

    Raises:
        WeightsError: registers, LayerScale or a norm after pooling, which the format cannot hold.
    """
    config = model.config
    newer = config.pool == "map" or (config.has_class_token and not config.position_on_prefix)
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not (name == "pos_embed" and config.position in FIXED_TABLES)
    }
    theirs = to_theirs(rules(config, newer), tensors)
    prefix = "params/" if newer else ""
    arrays: dict[str, Any] = {prefix + name: to_numpy(theirs[name]) for name in sorted(theirs)}
    np.savez(Path(path), **arrays)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor as an array of float32, or of float64 where it is that."""
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).contiguous().numpy()


def _unstack(plain: dict[str, Tensor], names: dict[str, str]) -> None:
    """Give each block of a scanned file names of its own."""
    root = "Transformer/encoderblock/"
    for short in [name for name in plain if name.startswith(root)]:
        stacked, name = plain.pop(short), names.pop(short)
        rest = short.removeprefix(root)
        for i, tensor in enumerate(stacked.unbind(0) if stacked.ndim else ()):
            plain[f"Transformer/encoderblock_{i}/{rest}"] = tensor
            names[f"Transformer/encoderblock_{i}/{rest}"] = f"{name}[{i}]"


def hwio_to_oihw(kernel: Tensor) -> Tensor:
    """Google's order of a convolution's axes to torch's; another number of axes is a ValueError."""
    _check_axes(kernel, 4, "rows, columns, in, out")
    return kernel.permute(3, 2, 0, 1)


def oihw_to_hwio(weight: Tensor) -> Tensor:
    """Torch's order of a convolution's axes to Google's."""
    return weight.permute(2, 3, 1, 0)


def _transposed(kernel: Tensor) -> Tensor:
    _check_axes(kernel, 2, "in, out")
    return kernel.T


def _dense(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{theirs}/kernel", f"{ours}.weight", _transposed, _transposed),
        Rule(f"{theirs}/bias", f"{ours}.bias"),
    ]


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}/scale", f"{ours}.weight"), Rule(f"{theirs}/bias", f"{ours}.bias")]


def _mlp(theirs: str, ours: str) -> list[Rule]:
    return _dense(f"{theirs}/Dense_0", f"{ours}.fc1") + _dense(f"{theirs}/Dense_1", f"{ours}.fc2")


def _attention(
    theirs: str, ours: str, stacks: Mapping[str, tuple[str, ...]], heads: int
) -> list[Rule]:
    """Rules of one attention: our projections by name, each stacking some of theirs."""
    made = []
    for name, parts in stacks.items():
        kernels = tuple(f"{theirs}/{part}/kernel" for part in parts)
        biases = tuple(f"{theirs}/{part}/bias" for part in parts)
        made += [
            Rule(
                kernels, f"{ours}.{name}.weight", _stack_kernels(heads), _split(heads, len(parts))
            ),
            Rule(biases, f"{ours}.{name}.bias", _stack_biases(heads), _split(heads, len(parts))),
        ]
    out = Rule(f"{theirs}/out/kernel", f"{ours}.proj.weight", _join_out(heads), _split_out(heads))
    return [*made, out, Rule(f"{theirs}/out/bias", f"{ours}.proj.bias")]


def _check_axes(array: Tensor, count: int, axes: str) -> None:
    if array.ndim != count:
        raise ValueError(f"{list(array.shape)} in the file, which should be [{axes}]")


def _check_heads(found: int, heads: int) -> None:
    # Another number of heads gives tensors of the very same shapes, and other logits.
    if found != heads:
        raise ValueError(f"{found} heads in the file, {heads} in the model")


def _stack_kernels(heads: int) -> Callable[..., Tensor]:
    def stack(*kernels: Tensor) -> Tensor:
        for kernel in kernels:
            _check_axes(kernel, 3, "width, heads, width of a head")
            _check_heads(kernel.shape[1], heads)
        return torch.cat([kernel.flatten(1).T for kernel in kernels])

    return stack


def _stack_biases(heads: int) -> Callable[..., Tensor]:
    def stack(*biases: Tensor) -> Tensor:
        for bias in biases:
            _check_axes(bias, 2, "heads, width of a head")
            _check_heads(bias.shape[0], heads)
        return torch.cat([bias.flatten() for bias in biases])

    return stack


def _split(heads: int, count: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    def split(stacked: Tensor) -> tuple[Tensor, ...]:
        # [d_out d_in] to (d_in, heads, rest), or [d_out] to (heads, rest)
        parts = stacked.chunk(count)
        turned = [part.T if part.ndim == 2 else part for part in parts]
        return tuple(part.unflatten(-1, (heads, -1)) for part in turned)

    return split


def _join_out(heads: int) -> Callable[[Tensor], Tensor]:
    def join(kernel: Tensor) -> Tensor:
        _check_axes(kernel, 3, "heads, width of a head, width")
        _check_heads(kernel.shape[0], heads)
        return kernel.flatten(0, 1).T

    return join


def _split_out(heads: int) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight.T.unflatten(0, (heads, -1))
