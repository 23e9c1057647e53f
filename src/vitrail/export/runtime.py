"""What runs a bundle: ONNX Runtime, OpenVINO or torch behind one face.

A runtime takes uint8 pictures [b h w 3] at the bundle's size and gives float32 logits [b k], and
where the model can be asked for it the map of attention [b rows columns] (`attention`). All
compute in float32 unless the graph itself says otherwise: OpenVINO would take bfloat16 by itself
where the processor has it, which moves logits in the second digit.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vitrail.export.bundle import Manifest
from vitrail.export.names import ATTENTION, GRAPHS, INPUT
from vitrail.kit.errors import Error
from vitrail.kit.extras import needed

if TYPE_CHECKING:  # a graph runs without torch, and without the memory that it takes
    import torch

    from vitrail.export.attention import AttentionView
    from vitrail.models.base import ImageClassifier
    from vitrail.models.tape import Tape

WITHOUT = "this bundle gives no map of attention: export the model again with --attention"
MERGED = f"{WITHOUT} and without --merge-tokens"


class Runtime(Protocol):
    """See the module's head."""

    device: str
    attends: bool
    """Whether it gives the map of attention."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 [b h w 3] to float32 [b k]."""
        ...

    def with_attention(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [b h w 3] to float32 logits [b k] and attention [b rows columns].

        Raises:
            Error: the model has none, or was exported without it.
        """
        ...


class TorchRuntime:
    """A live model, with its own preprocessing."""

    def __init__(self, model: "ImageClassifier", device: "torch.device"):
        from vitrail.export.attention import attention_view

        self.model, self.device = model.to(device).eval(), str(device)
        self.view: AttentionView | None = None
        try:
            self.view = attention_view(model, model.preprocessing.size)
        except Error as error:
            self.blind = str(error)
        self.attends = self.view is not None

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 [b h w 3] to float32 [b k]."""
        return self._run(images, None)

    def with_attention(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [b h w 3] to float32 logits [b k] and attention [b rows columns].

        Raises:
            Error: the model has none.
        """
        from vitrail.models.tape import Tape

        if self.view is None:
            raise Error(self.blind)
        tape = Tape(only=self.view.name)
        logits = self._run(images, tape)
        return logits, self.view.read(tape[self.view.name]).float().cpu().numpy()

    def _run(self, images: np.ndarray, tape: "Tape | None") -> np.ndarray:
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(images).to(self.device)
            floats = self.model.preprocessing.normalize(batch)
            return self.model(floats, tape=tape).float().cpu().numpy()


class MergingRuntime:
    """A live model that merges tokens in each block (`merging`).

    It gives no map of attention: merged tokens have no place in the picture.
    """

    attends = False

    def __init__(self, model: "ImageClassifier", tokens: int, device: str):
        from vitrail.export.merging import fold_merging

        self.folded, self.device = fold_merging(model, tokens).to(device), device

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 [b h w 3] to float32 [b k]."""
        import torch

        with torch.inference_mode():
            return self.folded(torch.from_numpy(images).to(self.device)).float().cpu().numpy()

    def with_attention(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """There is none.

        Raises:
            Error: always.
        """
        raise Error(MERGED)


class OnnxRuntime:
    """A `model.onnx` in ONNX Runtime.

    Args:
        path: of the file.
        threads, device: see `Classifier`.
        shared: whether others need the cores between two calls. Its threads then sleep; else they
            spin for a while, which answers the next call a little sooner.

    Raises:
        Error: the extra is not installed, no such device, or a file that cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        device: str | None = None,
        shared: bool = False,
    ):
        needed("onnx", "onnxruntime")
        import onnxruntime

        cuda = "CUDAExecutionProvider"
        has_cuda = cuda in onnxruntime.get_available_providers()
        if device not in (None, "cpu") and not (device.startswith("cuda") and has_cuda):
            raise Error(f"ONNX Runtime has no device {device!r} here: use cpu, or None")
        use_cuda = has_cuda and device != "cpu"
        providers = [cuda, "CPUExecutionProvider"] if use_cuda else ["CPUExecutionProvider"]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        if shared:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its errors have no class in common
            raise Error(f"{path} cannot be opened by ONNX Runtime: {_line(error)}") from None
        self.device = "cuda" if use_cuda else "cpu"
        self.attends = ATTENTION in [output.name for output in self.session.get_outputs()]

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 [b h w 3] to float32 [b k]."""
        return np.asarray(self.session.run(["logits"], {INPUT: images})[0])

    def with_attention(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [b h w 3] to float32 logits [b k] and attention [b rows columns].

        Raises:
            Error: it was exported without.
        """
        if not self.attends:
            raise Error(WITHOUT)
        logits, attention = self.session.run(["logits", ATTENTION], {INPUT: images})
        return np.asarray(logits), np.asarray(attention)


class OpenVinoRuntime:
    """A `model.xml` in OpenVINO, on the processor.

    Raises:
        Error: the extra is not installed, no such device, or a file that cannot be opened.
    """

    device = "cpu"

    def __init__(self, path: Path, threads: int | None = None, device: str | None = None):
        needed("openvino", "openvino")

        if device not in (None, "cpu"):
            raise Error(f"an OpenVINO bundle runs on the cpu, not on {device!r}")
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self.compiled = _core().compile_model(str(path), "CPU", settings)
        except Exception as error:  # its errors have no class in common
            raise Error(f"{path} cannot be opened by OpenVINO: {_line(error)}") from None
        self.attends = any(ATTENTION in output.get_names() for output in self.compiled.outputs)
        self.request = self.compiled.create_infer_request()

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 [b h w 3] to float32 [b k]."""
        return self.request.infer({INPUT: images}, share_inputs=True)["logits"].copy()

    def with_attention(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [b h w 3] to float32 logits [b k] and attention [b rows columns].

        Raises:
            Error: it was exported without.
        """
        if not self.attends:
            raise Error(WITHOUT)
        made = self.request.infer({INPUT: images}, share_inputs=True)
        return made["logits"].copy(), made[ATTENTION].copy()


@functools.cache
def _core() -> Any:
    """OpenVINO's core, one for the process and never let go.

    The plugin of each core sets a stack of its own for signals, and gives back the one before when
    it ends. Of two that live at once the first to end frees the stack that the second then gives
    back: the next signal that Python handles, such as the end of a loader's worker, is a crash.
    """
    import openvino

    return openvino.Core()


def open_graph(
    folder: Path,
    manifest: Manifest,
    threads: int | None = None,
    device: str | None = None,
    shared: bool = False,
) -> OnnxRuntime | OpenVinoRuntime:
    """The runtime of an ONNX or OpenVINO bundle; a torch bundle is a model folder.

    ``shared``: whether others need the cores between two calls.

    Raises:
        Error: see the runtimes.
    """
    path = folder / GRAPHS[manifest.runtime]
    if manifest.runtime == "onnx":
        return OnnxRuntime(path, threads, device, shared)
    return OpenVinoRuntime(path, threads, device)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
