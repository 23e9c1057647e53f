"""Is a bundle still what was exported, and as good as the model that it was made from?

Hashes first; then, against a live model, what the bundle says of itself (labels, preprocessing,
temperature) and the gate on the user's pictures. Each check is told with the file it is about.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitrail.data.examples import Source
from vitrail.export.bundle import GRAPHS, MANIFEST, Manifest, damaged_files, read_manifest
from vitrail.export.check import Gate, compare, draw_samples, reference_of
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
    samples: int = 512,
    max_drop: float = 0.5,
    threads: int | None = None,
) -> BundleVerdict:
    """Check a bundle's hashes, and with a model and pictures the gate of `export` once more.

    Args:
        folder: of the bundle.
        model: that it was made from, in float32.
        source: labelled pictures.
        temperature: of the model.
        samples: how many pictures.
        max_drop: points of top-1 that may be lost.

    Raises:
        Error: no bundle, a newer format, or a model without pictures or the other way round.
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
    checks += _described(manifest, model, temperature)
    if manifest.runtime == "torch":
        told = "a torch bundle is its model folder: the hashes are all there is"
        return BundleVerdict(str(folder), (*checks, Finding(MANIFEST, "gate", True, told)))
    gate = _gate(folder, manifest, model, source, temperature, samples, max_drop, threads)
    name = GRAPHS[manifest.runtime]
    for reason in gate.reasons:
        checks.append(Finding(name, "gate", False, reason))
    if gate.passed:
        told = f"top-1 {100 * gate.reference_top1:.2f} % before, {100 * gate.exported_top1:.2f} %"
        checks.append(Finding(name, "gate", True, f"{told} after, on {gate.n} images"))
    return BundleVerdict(str(folder), tuple(checks), gate)


def _described(manifest: Manifest, model: ImageClassifier, temperature: float) -> list[Finding]:
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
    return [*found, Finding(MANIFEST, "temperature", same, told)]


def _gate(
    folder: Path,
    manifest: Manifest,
    model: ImageClassifier,
    source: Source,
    temperature: float,
    samples: int,
    max_drop: float,
    threads: int | None,
) -> Gate:
    drawn = draw_samples(source, model.preprocessing, samples)
    seen = draw_samples(source, manifest.preprocessing, samples).images
    exported = open_graph(folder, manifest, threads)
    own = model.labels or [str(index) for index in range(model.num_classes)]
    if model.labels is None and len(source.classes) == model.num_classes:
        own = list(source.classes)
    return compare(
        drawn,
        reference_of(model, model.preprocessing),
        exported.logits,
        labels=own,
        exported_labels=manifest.labels,
        temperature=temperature,
        exported_temperature=manifest.temperature,
        exported_images=seen,
        exact=manifest.precision == "fp32",
        max_drop=max_drop,
        sizes=(0, sum((folder / name).stat().st_size for name in manifest.files)),
    )
