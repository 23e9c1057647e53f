"""From a folded model to a graph that ONNX Runtime or OpenVINO runs.

Both come from the same `torch.export` program, so they compute the same: uint8 pictures ``images``
[b h w 3] of any batch size to ``logits`` and ``probabilities`` [b k], the softmax of the logits
over the calibrated temperature. A layer's name in the graph leads back to its module (`layers_of`).
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitrail.kit.extras import needed

if TYPE_CHECKING:
    import onnx
    import openvino

    from vitrail.export.fold import Folded, FoldedTransformer

INPUT, OUTPUTS = "images", ("logits", "probabilities")
OPSET = 20  # the first with GELU as an operation of its own


class WithProbabilities(nn.Module):
    """A folded model and the softmax of its logits over a temperature."""

    def __init__(self, folded: nn.Module, temperature: float):
        super().__init__()
        self.folded, self.temperature = folded, temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [b h w 3] to logits and probabilities [b k]."""
        logits = self.folded(images)
        return logits, (logits / self.temperature).softmax(dim=-1)


def program_of(
    folded: "Folded | FoldedTransformer", temperature: float = 1.0
) -> torch.export.ExportedProgram:
    """The traced program of a folded model (`fold.fold`), for any batch size."""
    height, width = folded.size
    images = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    whole = WithProbabilities(folded, temperature).cpu().eval()
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with quiet():
        return torch.export.export(whole, (images,), dynamic_shapes=shapes)


def to_onnx(program: torch.export.ExportedProgram) -> "onnx.ModelProto":
    """A program as an ONNX model.

    Raises:
        Error: the packages of the ``onnx`` extra are not there.
    """
    needed("onnx", "onnx", "onnxscript")
    with quiet():
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    model.producer_name, model.producer_version = "vitrail", ""
    return model


def to_openvino(program: torch.export.ExportedProgram) -> "openvino.Model":
    """A program as an OpenVINO model.

    Raises:
        Error: the package of the ``openvino`` extra is not there.
    """
    needed("openvino", "openvino")
    import openvino

    with quiet():
        model = openvino.convert_model(program)
    assert program.example_inputs is not None
    _, height, width, _ = program.example_inputs[0][0].shape
    model.reshape([-1, height, width, 3])
    model.inputs[0].get_tensor().set_names({INPUT})
    for name, output in zip(OUTPUTS, model.outputs, strict=True):
        output.get_tensor().set_names({name})
    return model


def layers_of(program: torch.export.ExportedProgram) -> dict[str, str]:
    """The program's linear layers and convolutions: node name to the module's name in the fold."""
    kinds = ("aten.linear.default", "aten.conv2d.default")
    found = {}
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if node.op == "call_function" and str(node.target) in kinds and stack:
            path = list(stack.values())[-1][0]
            found[node.name] = path.removeprefix("folded.")
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters print progress and warn of their own internals: nothing for a user to act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
