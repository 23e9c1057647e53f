"""Making a bundle: fold, trace, convert, make smaller, check, and only then put it in its place."""

import copy
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.examples import Source
from vitrail.export import quantize
from vitrail.export.attention import attention_view
from vitrail.export.blame import MERGING, explained
from vitrail.export.bundle import GRAPHS, Manifest, check_free, labels_of, write_bundle
from vitrail.export.check import (
    Gate,
    Logits,
    Samples,
    check_kind,
    check_names,
    compare,
    draw_samples,
    folded_of,
    reference_of,
    with_attention,
)
from vitrail.export.fold import fold
from vitrail.export.graph import layers_of, outputs_of, program_of, to_onnx, to_openvino
from vitrail.export.merging import fold_merging
from vitrail.export.runtime import open_graph
from vitrail.kit.errors import Error
from vitrail.kit.extras import needed
from vitrail.models.base import ImageClassifier

PRECISIONS = ("fp32", "fp16", "int8", "int8-weights")
# What int8 tries until the gate passes: channels balanced or not (which costs a multiplication a
# norm), and the share of the layers that go back into float, the worst first.
TRIES = ((False, 0.0), (True, 0.0), (True, 0.1), (True, 0.25), (True, 0.5), (True, 0.75))
LARGEST = 2**31 - 2**24  # bytes in one protobuf
CALIBRATION = 64  # pictures for scales; more changes little, and costs memory
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be made.

    Args:
        to: ``onnx`` or ``openvino``; a ``torch`` bundle has no graph and is made by the caller.
        precision: one of `PRECISIONS`.
        source: labelled pictures for the gate; None for none.
        calibration: pictures for int8; None takes others of ``source``.
        samples: how many pictures the gate looks at.
        max_drop: points of top-1 that may be lost.
        keep_anyway: leave the bundle even when the gate refuses it.
        overwrite: let a bundle that is there go.
        attention: whether the graph gives the map of attention too.
        several: whether the model gives a picture several labels.
        merge_tokens: how many tokens each block merges (`merging`); 0 for none.
    """

    to: str
    precision: str = "fp32"
    source: Source | None = None
    calibration: Source | None = None
    samples: int = 512
    max_drop: float = 0.5
    keep_anyway: bool = False
    overwrite: bool = False
    attention: bool = False
    several: bool = False
    merge_tokens: int = 0

    @property
    def of_graph(self) -> dict[str, Any]:
        """What a `GraphWriter` is told of it."""
        return {
            "attention": self.attention,
            "several": self.several,
            "merge": self.merge_tokens,
        }


@dataclass(frozen=True)
class Made:
    """What came of it: the manifest, and the gate's finding (None where nobody looked).

    `written` is false where the gate refused and nothing was left.
    """

    manifest: Manifest
    gate: Gate | None
    written: bool


class GraphWriter:
    """Makes the graph of a model at any set of int8 layers, and writes it.

    Args:
        model: in float32; it is not changed.
        to: ``onnx`` or ``openvino``.
        temperature: of the probabilities.
        pictures: uint8 [n h w 3] for int8, or None.
        balance: whether `quantize.balanced` comes first.
        attention: whether the graph gives the map of attention too.
        several: whether a picture may have several labels.
        merge: how many tokens each block merges.

    Raises:
        Error: a model that has no such map, or tokens that cannot be merged.
    """

    def __init__(
        self,
        model: ImageClassifier,
        to: str,
        temperature: float = 1.0,
        pictures: np.ndarray | None = None,
        balance: bool = False,
        *,
        attention: bool = False,
        several: bool = False,
        merge: int = 0,
    ):
        self.to, self.pictures, self.balance = to, pictures, balance
        view = attention_view(model) if attention else None
        self.folded = fold_merging(model, merge)
        if balance and pictures is not None:
            self.folded = quantize.balanced(self.folded, pictures)
        self.program = program_of(self.folded, temperature, view, several=several)
        self.graph: Any = (to_onnx if to == "onnx" else to_openvino)(self.program)

    def write(self, folder: Path, precision: str, layers: Sequence[str] = ()) -> None:
        """Put ``model.onnx``, or ``model.xml`` and ``model.bin``, into a folder.

        Args:
            folder: where.
            precision: one of `PRECISIONS`.
            layers: for int8, those that compute in it.
        """
        path = folder / GRAPHS[self.to]
        if self.to == "onnx":
            _save_onnx(self._onnx(precision, layers), path)
        else:
            self._save_openvino(path, precision, layers)

    def _onnx(self, precision: str, layers: Sequence[str]) -> Any:
        if precision == "int8":
            assert self.pictures is not None
            return quantize.onnx_int8(self.graph, self.pictures, layers)
        if precision == "fp16":
            return quantize.onnx_fp16(self.graph)
        if precision == "int8-weights":
            return quantize.onnx_int8_weights(self.graph)
        return copy.deepcopy(self.graph)

    def _save_openvino(self, path: Path, precision: str, layers: Sequence[str]) -> None:
        import openvino

        graph = self.graph
        if precision == "int8":
            assert self.pictures is not None
            nodes = layers_of(self.program)
            graph = quantize.openvino_int8(
                graph, self.pictures, layers, nodes, attention=not self.balance
            )
        elif precision == "int8-weights":
            graph = quantize.openvino_int8_weights(graph.clone())
        openvino.save_model(graph, str(path), compress_to_fp16=precision == "fp16")


def make_bundle(
    model: ImageClassifier,
    out: Path,
    wanted: Wanted,
    *,
    temperature: float = 1.0,
    source_sha256: str | None = None,
    say: Say = print,
) -> Made:
    """Export a model as an ONNX or OpenVINO bundle, through the gate.

    Args:
        model: in float32 on the CPU.
        out: the bundle's folder.
        wanted: what is to be made.
        temperature: that belongs to the model's weights.
        source_sha256: of those weights.
        say: is told what goes on.

    Raises:
        Error: ``out`` holds something, an extra is missing, no pictures for int8, pictures of
            classes that the model does not know, tokens that cannot be merged, or no attention.
    """
    check_free(out, wanted.overwrite)
    if wanted.precision not in PRECISIONS:
        raise Error(f"a precision is one of {', '.join(PRECISIONS)}, not {wanted.precision!r}")
    needed(wanted.to, *NEEDED[wanted.to])
    if wanted.to == "openvino" and wanted.precision.startswith("int8"):
        needed("openvino", "nncf")
    if wanted.attention and wanted.merge_tokens:
        raise Error("tokens that are merged have no place in a picture: no map of attention")
    if wanted.attention:
        attention_view(model)  # says at once where there is none
    drawn, pictures = _pictures(model, wanted)
    if drawn is not None:
        check_names(drawn, names_of(model, wanted.source))
    say(f"folding and tracing for {wanted.to}")
    writer = GraphWriter(model, wanted.to, temperature, pictures, **wanted.of_graph)
    layers = _by_hurt(writer, say) if wanted.precision == "int8" else {}
    manifest = Manifest(
        runtime=wanted.to,
        precision=wanted.precision,
        labels=names_of(model, wanted.source),
        preprocessing=model.preprocessing,
        temperature=temperature,
        source_sha256=source_sha256,
        outputs=outputs_of(writer.program),
        several_labels=wanted.several,
        merge_tokens=wanted.merge_tokens,
    )
    return _Attempts(model, out, wanted, manifest, writer, layers, drawn, say).run()


class _Attempts:
    """One export, or for int8 several with more and more layers in float until one passes."""

    def __init__(
        self,
        model: ImageClassifier,
        out: Path,
        wanted: Wanted,
        manifest: Manifest,
        writer: GraphWriter,
        layers: dict[str, float],
        drawn: Samples | None,
        say: Say,
    ):
        self.model, self.out, self.wanted, self.manifest = model, out, wanted, manifest
        self.writer, self.layers, self.drawn, self.say = writer, layers, drawn, say

    def run(self) -> Made:
        tries = TRIES if self.layers and self.drawn is not None else TRIES[:1]
        with tempfile.TemporaryDirectory(prefix="vitrail-export-") as name:
            for attempt, (balance, share) in enumerate(tries):
                if balance and not self.writer.balance:
                    self.rebalance()
                work = Path(name) / str(attempt)
                work.mkdir()
                float_ones = list(self.layers)[: round(share * len(self.layers))]
                chosen = [layer for layer in self.layers if layer not in float_ones]
                self.writer.write(work, self.wanted.precision, chosen)
                gate = self.judge(work)
                if gate is None or gate.passed or attempt == len(tries) - 1:
                    break
                left = "balancing the channels" if attempt == 0 else "more layers go into float"
                self.say(f"refused so: {gate.reasons[0]}; {left}")
            gate = self.looked(self.explained(gate, work), work)
            return self.finish(work, gate, float_ones)

    def rebalance(self) -> None:
        """From here on with balanced channels."""
        writer, temperature = self.writer, self.manifest.temperature
        self.writer = GraphWriter(
            self.model, writer.to, temperature, writer.pictures, True, **self.wanted.of_graph
        )
        self.layers = _by_hurt(self.writer, self.say)

    def judge(self, work: Path) -> Gate | None:
        if self.drawn is None:
            return None
        self.say(f"checking on {len(self.drawn.keys)} pictures")
        exported = open_graph(work, self.manifest)
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return compare(
            self.drawn,
            reference_of(self.model, self.model.preprocessing),
            exported.logits,
            labels=self.manifest.labels,
            temperature=self.manifest.temperature,
            exact=self.exact,
            max_drop=self.wanted.max_drop,
            sizes=(weights, sum(path.stat().st_size for path in work.iterdir())),
        )

    @property
    def exact(self) -> bool:
        """Whether the graph claims to compute what the model does."""
        return self.wanted.precision == "fp32" and not self.wanted.merge_tokens

    def looked(self, gate: Gate | None, work: Path) -> Gate | None:
        """The gate's finding with what became of the attention, where that is wanted."""
        if gate is None or self.drawn is None or not self.wanted.attention:
            return gate
        exported = open_graph(work, self.manifest)
        return with_attention(gate, self.drawn.images, self.model, exported, self.exact)

    def explained(self, gate: Gate | None, work: Path) -> Gate | None:
        """The gate's finding with what each step did, where it refused or tokens were merged."""
        if gate is None or self.drawn is None or (gate.passed and not self.wanted.merge_tokens):
            return gate
        self.say("looking at what each step did")
        return explained(gate, self.drawn, self.chain(work), self.manifest.labels)

    def chain(self, work: Path) -> list[tuple[str, Logits]]:
        """From the model to the bundle, each step with all before it."""
        model, merge, precision = self.model, self.wanted.merge_tokens, self.wanted.precision
        steps = [
            ("the model", reference_of(model, model.preprocessing)),
            ("folding", folded_of(fold(model))),
        ]
        if merge:
            steps.append((MERGING, folded_of(fold_merging(model, merge))))
        if self.writer.balance:
            steps.append(("balancing", folded_of(self.writer.folded)))
        bundle = open_graph(work, self.manifest).logits
        if precision == "fp32":
            return [*steps, (f"the graph for {self.writer.to}", bundle)]
        plain = work.with_name(f"{work.name}-fp32")
        plain.mkdir()
        self.writer.write(plain, "fp32")
        graph = open_graph(plain, self.manifest).logits
        return [*steps, (f"the graph for {self.writer.to}", graph), (precision, bundle)]

    def finish(self, work: Path, gate: Gate | None, float_ones: list[str]) -> Made:
        report = None
        if self.layers:
            report = {
                "balanced": self.writer.balance,
                "pictures": 0 if self.writer.pictures is None else len(self.writer.pictures),
                "layers": [
                    {"name": name, "hurt": round(hurt, 6), "int8": name not in float_ones}
                    for name, hurt in self.layers.items()
                ],
            }
        found = None if gate is None else gate.to_json()
        manifest = replace(self.manifest, gate=found, quantisation=report)
        if gate is not None and not gate.passed and not self.wanted.keep_anyway:
            return Made(manifest, gate, False)

        def moved(folder: Path) -> None:
            for path in work.iterdir():
                shutil.copyfile(path, folder / path.name)

        return Made(write_bundle(self.out, manifest, moved, self.wanted.overwrite), gate, True)


def names_of(model: ImageClassifier, source: Source | None) -> list[str]:
    """A model's labels; where it has none, those of data with as many classes, else numbers."""
    if model.labels is None and source is not None and len(source.classes) == model.num_classes:
        return list(source.classes)
    return labels_of(model.labels, model.num_classes)


def _pictures(model: ImageClassifier, wanted: Wanted) -> tuple[Samples | None, np.ndarray | None]:
    """The gate's samples, and the pictures that int8 is calibrated on: never the same ones."""
    source, drawn, pictures = wanted.source, None, None
    if source is not None:
        check_kind(source, wanted.several)
        drawn = draw_samples(source, model.preprocessing, wanted.samples)
    if wanted.precision == "int8":
        others = wanted.calibration
        if others is not None:
            pictures = draw_samples(others, model.preprocessing, CALIBRATION, seed=1).images
        elif source is not None and len(source) > wanted.samples:
            rest = draw_samples(source, model.preprocessing, CALIBRATION, skip=wanted.samples)
            pictures = rest.images
        elif drawn is not None:
            pictures = drawn.images[:CALIBRATION]
        else:
            raise Error("--int8 is calibrated on your own pictures: give --check DATA")
    return drawn, pictures


def _by_hurt(writer: GraphWriter, say: Say) -> dict[str, float]:
    layers = quantize.quantisable(writer.folded)
    say(f"measuring what int8 does to each of {len(layers)} layers")
    assert writer.pictures is not None
    return quantize.hurts(writer.folded, writer.pictures[:16], layers)


def _save_onnx(model: Any, path: Path) -> None:
    import onnx

    _forget(model)
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    large = size > LARGEST
    location = f"{path.name}.data" if large else None
    onnx.save_model(model, path, save_as_external_data=large, location=location)


def _forget(model: Any) -> None:
    """Remove what the exporter wrote down of our sources: paths and lines, and a lot of it."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output):
        part.ClearField("doc_string")
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
