"""From a folded model to a graph that ONNX Runtime or OpenVINO runs.

Both come from the same `torch.export` program, so they compute the same: uint8 pictures ``images``
[b h w 3] of any batch size to ``logits`` and ``probabilities`` [b k], the softmax of the logits
over the calibrated temperature, and where it is wanted to ``attention`` [b rows columns]. A
layer's name in the graph leads back to its module (`layers_of`).
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitrail.export.names import ATTENTION, INPUT, OPSET, OUTPUTS
from vitrail.kit.extras import needed
from vitrail.models.tape import Tape

if TYPE_CHECKING:
    import onnx
    import openvino

    from vitrail.export.attention import AttentionView
    from vitrail.export.fold import Folded, FoldedTransformer


class WithProbabilities(nn.Module):
    """A folded model and the softmax of its logits over a temperature; with a view its attention.

    Where a picture may have several labels, a sigmoid: each has a probability of its own. The tape
    is made here, because `torch.export` takes none as an argument.
    """

    def __init__(
        self,
        folded: nn.Module,
        temperature: float,
        view: "AttentionView | None" = None,
        *,
        several: bool = False,
    ):
        super().__init__()
        self.folded, self.temperature, self.view = folded, temperature, view
        self.several = several

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 [b h w 3] to logits and probabilities [b k], and attention [b rows columns]."""
        tape = None if self.view is None else Tape(only=self.view.name)
        logits = self.folded(images) if tape is None else self.folded(images, tape)
        scaled = logits / self.temperature
        made = logits, scaled.sigmoid() if self.several else scaled.softmax(dim=-1)
        if self.view is None or tape is None:
            return made
        return (*made, self.view.read(tape[self.view.name]))


def program_of(
    folded: "Folded | FoldedTransformer",
    temperature: float = 1.0,
    view: "AttentionView | None" = None,
    *,
    several: bool = False,
) -> torch.export.ExportedProgram:
    """The traced program of a folded model (`fold.fold`), for any batch size.

    With a view (`attention.attention_view`) it gives the map of attention too; `several` says that
    a picture may have several labels.
    """
    height, width = folded.size
    images = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    whole = WithProbabilities(folded, temperature, view, several=several).cpu().eval()
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
            output_names=list(outputs_of(program)),
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
    for name, output in zip(outputs_of(program), model.outputs, strict=True):
        output.get_tensor().set_names({name})
    return model


def outputs_of(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """The names of what a program gives."""
    with_attention = len(program.graph_signature.user_outputs) > len(OUTPUTS)
    return (*OUTPUTS, ATTENTION) if with_attention else OUTPUTS


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
