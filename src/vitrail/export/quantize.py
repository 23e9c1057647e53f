"""Smaller numbers: int8 by the user's own pictures, float16, int8 weights alone.

Static int8 takes the layers that have weights, and of those not the first (the patch embedding or
stem) nor the head; LayerNorm, softmax and the products of attention stay in float. Where that loses
too much, the channels of each LayerNorm and of what reads it are balanced (SmoothQuant, Xiao et
al., 2022): what is divided out of the activations is multiplied into the weights. How much each
layer hurts is measured one at a time on the folded model (`hurts`), so that the worst can be put
back into float.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.export.graph import quiet
from vitrail.export.names import INPUT
from vitrail.export.reading import LastBlock
from vitrail.kit.extras import needed
from vitrail.models.cvt import CvTBlock
from vitrail.models.parts import Block
from vitrail.models.pyramid import PyramidBlock

if TYPE_CHECKING:
    import onnx
    import openvino

Foldable = TypeVar("Foldable", bound=nn.Module)
ALPHA = 0.5  # SmoothQuant's share of the difficulty that moves into the weights
BATCH = 8
WEIGHTED = ("MatMul", "Gemm", "Conv")


def quantisable(folded: nn.Module) -> list[str]:
    """Names of the layers that may become int8: all with weights but the first and the heads.

    Depthwise convolutions stay: they are a small part of the work, and lose most.
    """
    layers = [
        name
        for name, part in folded.named_modules()
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.groups == 1)
    ]
    heads = ("head", "head_dist", "fc", "model.head", "model.fc", "model.head.fc")
    return [name for name in layers[1:] if name not in heads]


@torch.no_grad()
def balanced(folded: Foldable, images: np.ndarray, alpha: float = ALPHA) -> Foldable:
    """A copy in which LayerNorms and what reads them share the range of their channels evenly.

    Args:
        folded: from `fold`; its logits stay as they are.
        images: uint8 [n h w 3], a few dozen.
        alpha: how much of an activation's range moves into the weights, 0..1.
    """
    made = copy.deepcopy(folded)
    pairs = list(_pairs(made))
    ranges: dict[nn.Module, Tensor] = {}

    def look(norm: nn.Module, _: Any, output: Tensor) -> None:
        largest = output.flatten(0, -2).abs().amax(0)
        ranges[norm] = torch.maximum(ranges[norm], largest) if norm in ranges else largest

    hooks = [norm.register_forward_hook(look) for norm, _ in pairs]
    for batch in _batches(images):
        made(batch)
    for hook in hooks:
        hook.remove()
    for norm, reader in pairs:
        weights = reader.weight.abs().amax(0).clamp(min=1e-5)
        factor = ranges[norm].clamp(min=1e-5) ** alpha / weights ** (1 - alpha)
        reader.weight.mul_(factor)
        scale = torch.ones_like(factor) if norm.weight is None else norm.weight
        shift = torch.zeros_like(factor) if norm.bias is None else norm.bias
        norm.elementwise_affine = True
        norm.weight = nn.Parameter(scale / factor, requires_grad=False)
        norm.bias = nn.Parameter(shift / factor, requires_grad=False)
    return made


def _pairs(folded: nn.Module) -> Iterator[tuple[nn.LayerNorm, nn.Linear]]:
    for part in folded.modules():
        if isinstance(part, Block):
            yield part.norm1, part.attn.qkv
        if isinstance(part, Block | LastBlock | CvTBlock | PyramidBlock):
            norm, reader = part.norm2, part.mlp.get_submodule("fc1")
            assert isinstance(norm, nn.LayerNorm)
            assert isinstance(reader, nn.Linear)
            yield norm, reader


@torch.no_grad()
def hurts(folded: nn.Module, images: np.ndarray, layers: Sequence[str]) -> dict[str, float]:
    """How much the logits move when one layer alone is int8, as a share of their own size.

    Weights are rounded by output channel, activations by one scale from their range over
    ``images``; the worst layer comes first.
    """
    batches = list(_batches(images))
    exact = torch.cat([folded(batch) for batch in batches])
    centred = exact - exact.mean(1, keepdim=True)
    found = {}
    for name in layers:
        layer = folded.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        with _rounded(layer, folded, batches):
            moved = torch.cat([folded(batch) for batch in batches]) - exact
        found[name] = float(moved.norm() / centred.norm().clamp(min=1e-12))
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


@contextmanager
def _rounded(
    layer: nn.Linear | nn.Conv2d, folded: nn.Module, batches: Sequence[Tensor]
) -> Iterator[None]:
    """Inside, this layer computes with numbers as int8 holds them."""
    low, high = [0.0], [0.0]

    def look(_: nn.Module, inputs: tuple[Tensor]) -> None:
        low[0], high[0] = min(low[0], float(inputs[0].min())), max(high[0], float(inputs[0].max()))

    hook = layer.register_forward_pre_hook(look)
    for batch in batches:
        folded(batch)
    hook.remove()
    step = max((high[0] - low[0]) / 255, 1e-12)

    def round_input(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return ((inputs[0].clamp(low[0], high[0]) / step).round() * step,)

    weight = layer.weight.detach().clone()
    scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    scale = scale.view(-1, *[1] * (weight.ndim - 1))
    hook = layer.register_forward_pre_hook(round_input)
    layer.weight.copy_((weight / scale).round() * scale)
    try:
        yield
    finally:
        hook.remove()
        layer.weight.copy_(weight)


def _batches(images: np.ndarray) -> Iterator[Tensor]:
    for begin in range(0, len(images), BATCH):
        yield torch.from_numpy(images[begin : begin + BATCH])


# ONNX


def onnx_int8(
    model: "onnx.ModelProto", images: np.ndarray, layers: Sequence[str]
) -> "onnx.ModelProto":
    """A copy whose named layers compute in int8, calibrated on uint8 pictures [n h w 3].

    Raises:
        Error: ONNX Runtime is not installed.
    """
    needed("onnx", "onnx", "onnxruntime")
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(_batches(images))

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    import tempfile
    from pathlib import Path

    wanted, nodes = set(layers), onnx_layers(model)
    included = [node for node, layer in nodes.items() if layer in wanted]
    if not included:
        return copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as work, quiet():
        made = Path(work) / "int8.onnx"
        quantize_static(
            copy.deepcopy(model),
            made,
            Pictures(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(WEIGHTED),
            nodes_to_quantize=included,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True, "QuantizeBias": False},
        )
        import onnx

        return onnx.load(made)


def onnx_layers(model: "onnx.ModelProto") -> dict[str, str]:
    """Nodes with weights: node name to the name of the folded model's layer."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in weights:
            path = _scope(node)
            if path:
                found[node.name] = path
    return found


def _scope(node: "onnx.NodeProto") -> str:
    import ast

    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(entry.value)
            return scopes[-2].removeprefix("folded.") if len(scopes) > 1 else ""
    return ""


def onnx_fp16(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy in float16, but for LayerNorm and softmax, and for what goes in and comes out."""
    needed("onnx", "onnx", "onnxruntime")
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    blocked = [*DEFAULT_OP_BLOCK_LIST, "LayerNormalization", "Softmax", "GroupNormalization"]
    blocked += ["InstanceNormalization", "ReduceMean", "ReduceSum", "Pow", "Exp"]
    with quiet():
        return convert_float_to_float16(
            copy.deepcopy(model),
            keep_io_types=True,
            op_block_list=blocked,
            disable_shape_infer=False,
        )


def onnx_int8_weights(model: "onnx.ModelProto", least: int = 1024) -> "onnx.ModelProto":
    """A copy whose weights are int8 by output channel, a quarter of the size; it computes in float.

    Args:
        least: tensors of fewer numbers stay.
    """
    needed("onnx", "onnx")
    from onnx import helper, numpy_helper

    made = copy.deepcopy(model)
    by_name = {tensor.name: tensor for tensor in made.graph.initializer}
    axes: dict[str, int] = {}
    for node in made.graph.node:
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in by_name:
            turned = any(entry.name == "transB" and entry.i for entry in node.attribute)
            axes[node.input[1]] = 0 if node.op_type == "Conv" or turned else 1
    added = []
    for name, axis in axes.items():
        weight = numpy_helper.to_array(by_name[name])
        if weight.dtype != np.float32 or weight.size < least or weight.ndim < 2:
            continue
        across = tuple(place for place in range(weight.ndim) if place != axis)
        scale = np.maximum(np.abs(weight).max(across, keepdims=True), 1e-12) / 127
        rounded = np.round(weight / scale).astype(np.int8)
        made.graph.initializer.remove(by_name[name])
        flat = scale.reshape(-1).astype(np.float32)
        made.graph.initializer.append(numpy_helper.from_array(rounded, f"{name}.int8"))
        made.graph.initializer.append(numpy_helper.from_array(flat, f"{name}.scale"))
        inputs = [f"{name}.int8", f"{name}.scale"]
        added.append(helper.make_node("DequantizeLinear", inputs, [name], axis=axis))
    nodes = [*added, *made.graph.node]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


# OpenVINO


def openvino_int8(
    model: "openvino.Model",
    images: np.ndarray,
    layers: Sequence[str],
    nodes: Mapping[str, str],
    attention: bool = False,
) -> "openvino.Model":
    """A copy whose named layers compute in int8, calibrated on uint8 pictures [n h w 3].

    Args:
        nodes: from `graph.layers_of`: the program's node to the layer.
        attention: whether queries, keys and values are rounded too; softmax is in float anyway.

    Raises:
        Error: NNCF is not installed.
    """
    needed("openvino", "openvino", "nncf")
    import nncf

    wanted = {_openvino_name(node) for node, layer in nodes.items() if layer in set(layers)}
    weighted = ("MatMul", "Convolution", "GroupConvolution")
    kept = [
        operation.get_friendly_name()
        for operation in model.get_ordered_ops()
        if operation.get_type_name() in weighted
        and operation.get_friendly_name().partition("/")[0] not in wanted
    ]
    types = [] if attention else ["ScaledDotProductAttention"]
    in_float = nncf.IgnoredScope(names=kept, types=types, validate=False)
    pictures = [batch.numpy() for batch in _batches(images)]
    with quiet():
        return nncf.quantize(
            model,
            nncf.Dataset(pictures, lambda batch: {INPUT: batch}),
            subset_size=len(pictures),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=in_float,
            # `balanced` does this where it is needed; done twice it only costs multiplications.
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
            ),
        )


def openvino_int8_weights(model: "openvino.Model") -> "openvino.Model":
    """Weights in int8, in place; it computes in float.

    Raises:
        Error: NNCF is not installed.
    """
    needed("openvino", "openvino", "nncf")
    import nncf

    with quiet():
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)


def _openvino_name(node: str) -> str:
    """What OpenVINO calls a node of the program: convolutions are decomposed first."""
    return node.replace("conv2d", "convolution") if node.startswith("conv2d") else node
