"""Is a bundle still what was exported, and as good as the model that it was made from?

Hashes first; then, against a live model, what the bundle says of itself (labels, preprocessing,
temperature) and the gate on the user's pictures. Each check is told with the file it is about.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.examples import Source
from vitrail.export.bundle import GRAPHS, MANIFEST, Manifest, damaged_files, read_manifest
from vitrail.export.check import (
    Gate,
    Logits,
    check_kind,
    compare,
    draw_samples,
    folded_of,
    reference_of,
)
from vitrail.export.merging import fold_merging
from vitrail.export.runtime import open_graph
from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: the file it is about, whether it passed, and what was found."""

    file: str
    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class BundleVerdict:
    """What `verify_bundle` found."""

    path: str
    checks: tuple[Finding, ...]
    gate: Gate | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> list[Finding]:
        """The checks that failed."""
        return [check for check in self.checks if not check.passed]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "path": self.path,
            "kind": "bundle",
            "passed": self.passed,
            "checks": [asdict(check) for check in self.checks],
            "gate": self.gate and self.gate.to_json(),
        }


def verify_bundle(
    folder: str | Path,
    model: ImageClassifier | None = None,
    source: Source | None = None,
    *,
    temperature: float = 1.0,
    several: bool = False,
    samples: int = 512,
    max_drop: float = 0.5,
    threads: int | None = None,
    load: Callable[[Path], ImageClassifier] | None = None,
) -> BundleVerdict:
    """Check a bundle's hashes, and with a model and pictures the gate of `export` once more.

    Args:
        folder: of the bundle.
        model: that it was made from, in float32.
        source: labelled pictures.
        temperature: of the model.
        samples: how many pictures.
        several: whether the model gives a picture several labels.
        max_drop: points of top-1 that may be lost.
        load: opens a torch bundle, which is a model folder: `weights.folder.load_model`.

    Raises:
        Error: no bundle, a newer format, a model without pictures or the other way round, pictures
            of other labels than the model's, or a torch bundle without ``load``.
    """
    folder = Path(folder).expanduser()
    if (model is None) != (source is None):
        raise Error("the gate needs both: the model (--against) and pictures (--check)")
    checks: list[Finding] = []
    try:
        manifest = read_manifest(folder)
        checks.append(Finding(MANIFEST, "sha256", True, "as it was exported"))
    except Error as error:
        if "its hash differs" not in str(error) and "damaged" not in str(error):
            raise
        return BundleVerdict(str(folder), (Finding(MANIFEST, "sha256", False, str(error)),))
    wrong = dict(damaged_files(folder, manifest))
    for name in manifest.files:
        told = wrong.get(name, "as it was exported")
        checks.append(Finding(name, "sha256", name not in wrong, told))
    if model is None or source is None or wrong:
        return BundleVerdict(str(folder), tuple(checks))
    checks += _described(manifest, model, temperature, several)
    check_kind(source, several)
    asked = _Asked(folder, manifest, model, source, temperature, samples, max_drop)
    gate = asked.gate(_exported(folder, manifest, threads, load))
    name = GRAPHS[manifest.runtime]
    for reason in gate.reasons:
        checks.append(Finding(name, "gate", False, reason))
    if gate.passed:
        named, before, after = gate.figures
        told = f"{named} {100 * before:.2f} % before, {100 * after:.2f} % after"
        checks.append(Finding(name, "gate", True, f"{told}, on {gate.n} images"))
    return BundleVerdict(str(folder), tuple(checks), gate)


def torch_logits(model: ImageClassifier, merge_tokens: int = 0) -> Logits:
    """What a torch bundle computes, as a function of uint8 pictures."""
    if merge_tokens:
        return folded_of(fold_merging(model, merge_tokens))
    return reference_of(model, model.preprocessing)


def _exported(
    folder: Path,
    manifest: Manifest,
    threads: int | None,
    load: Callable[[Path], ImageClassifier] | None,
) -> Logits:
    if manifest.runtime != "torch":
        return open_graph(folder, manifest, threads).logits
    if load is None:
        raise Error(f"{folder} is a torch bundle: say with `load` what opens a model folder")
    return torch_logits(load(folder), manifest.merge_tokens)


def _described(
    manifest: Manifest, model: ImageClassifier, temperature: float, several: bool
) -> list[Finding]:
    """What a bundle says of itself beside what the model says."""
    theirs, ours = manifest.preprocessing.to_json(), model.preprocessing.to_json()
    differ = [
        f"{name} {theirs[name]} is {ours[name]} in the model"
        for name in ours
        if theirs[name] != ours[name]
    ]
    told = "; ".join(differ) or "the model's"
    found = [Finding(MANIFEST, "preprocessing", not differ, told)]
    if model.labels is not None:
        same = manifest.labels == model.labels
        told = "the model's" if same else "not the model's, or in another order"
        found.append(Finding(MANIFEST, "labels", same, told))
    same = abs(manifest.temperature - temperature) <= 1e-6 * temperature
    told = f"{manifest.temperature:g}" + ("" if same else f", where the model has {temperature:g}")
    found.append(Finding(MANIFEST, "temperature", same, told))
    if several or manifest.several_labels:
        same = several == manifest.several_labels
        told = "the model's" if same else f"{manifest.several_labels}, and the model says {several}"
        found.append(Finding(MANIFEST, "several_labels", same, told))
    return found


@dataclass(frozen=True)
class _Asked:
    """A bundle beside its model on pictures."""

    folder: Path
    manifest: Manifest
    model: ImageClassifier
    source: Source
    temperature: float
    samples: int
    max_drop: float

    def gate(self, exported: Logits) -> Gate:
        """The finding, with what is to blame among its reasons."""
        seen = draw_samples(self.source, self.manifest.preprocessing, self.samples).images
        own = draw_samples(self.source, self.model.preprocessing, self.samples).images
        gate = self._compared(exported, self.manifest.labels, seen)
        if gate.passed or not gate.lost:
            return gate
        # With the model's own in the place of the bundle's: what mends it is to blame.
        for blame, labels, images in (
            (f"the order of the labels in {MANIFEST}", self.labels, seen),
            (f"the preprocessing in {MANIFEST}", self.manifest.labels, own),
            (f"labels and preprocessing in {MANIFEST} together", self.labels, own),
        ):
            if not self._compared(exported, labels, images).lost:
                return gate.because(f"what loses it is {blame}: with the model's it is as good")
        graph = GRAPHS[self.manifest.runtime]
        return gate.because(f"what loses it is {graph}: labels and preprocessing do not mend it")

    @property
    def labels(self) -> list[str]:
        """Of the model; where it has none, those of data with as many classes, else numbers."""
        if self.model.labels is None and len(self.source.classes) == self.model.num_classes:
            return list(self.source.classes)
        return self.model.labels or [str(index) for index in range(self.model.num_classes)]

    def _compared(self, exported: Logits, labels: Sequence[str], images: np.ndarray) -> Gate:
        manifest = self.manifest
        return compare(
            draw_samples(self.source, self.model.preprocessing, self.samples),
            reference_of(self.model, self.model.preprocessing),
            exported,
            labels=self.labels,
            exported_labels=labels,
            temperature=self.temperature,
            exported_temperature=manifest.temperature,
            exported_images=images,
            exact=manifest.precision == "fp32" and not manifest.merge_tokens,
            max_drop=self.max_drop,
            sizes=(0, sum((self.folder / name).stat().st_size for name in manifest.files)),
        )
