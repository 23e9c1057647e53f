"""Bundles: a folder with everything that a program needs to use a model, and nothing to trust.

`bundle.json` says what the pictures must be, what the classes are called, and the SHA-256 of every
file, of itself too; a bundle of which one bit is another is refused. A bundle is made in a folder
beside its own and renamed when it is whole, so there is never half of one. Its README holds the
preprocessing in ten lines of NumPy and Pillow, for who has no Vitrail.
"""

import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitrail.export.names import ATTENTION, INPUT, OPSET, OUTPUTS
from vitrail.kit.errors import Error, listing
from vitrail.kit.files import sha256_of
from vitrail.kit.preprocess import Preprocessing

FORMAT = 1
LARGE = 2**24  # bytes of a file that is opened while its hash is computed
MANIFEST = "bundle.json"
README = "README.md"
GRAPHS = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.safetensors"}
PACKAGES = {
    "onnx": ("torch", "onnx", "onnxruntime"),
    "openvino": ("torch", "openvino"),
    "torch": ("torch",),
}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `bundle.json` says.

    Args:
        runtime: ``onnx``, ``openvino`` or ``torch``: what runs the graph.
        precision: ``fp32``, ``fp16``, ``int8`` or ``int8-weights``.
        labels: the class names in the order of the logits.
        preprocessing: how pictures become the graph's input; mean and std are in the graph.
        temperature: by which logits are divided before the softmax.
        gate: what the gate found, or None where nobody looked.
        source_sha256: of the weights that the bundle was made from.
        versions: of the packages that made it.
        files: name to SHA-256.
        quantisation: what was done to layers, for a quantised graph.
        outputs: what the graph gives; ``attention`` is among them where it was asked for.
        several_labels: whether a picture may have several labels: then the probabilities are
            sigmoids, each of its own.
        merge_tokens: how many tokens are merged in each block (`export.merging`).
    """

    runtime: str
    precision: str
    labels: list[str]
    preprocessing: Preprocessing
    temperature: float = 1.0
    gate: dict[str, Any] | None = None
    source_sha256: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    quantisation: dict[str, Any] | None = None
    outputs: tuple[str, ...] = OUTPUTS
    several_labels: bool = False
    merge_tokens: int = 0

    @property
    def attends(self) -> bool:
        """Whether it gives the map of attention."""
        return ATTENTION in self.outputs

    def to_json(self) -> dict[str, Any]:
        """The whole of `bundle.json`, its own hash included."""
        height, width = self.preprocessing.size
        fields = {
            "format": FORMAT,
            "runtime": self.runtime,
            "precision": self.precision,
            "labels": self.labels,
            "preprocessing": self.preprocessing.to_json(),
            "temperature": self.temperature,
            "input": {"name": INPUT, "height": height, "width": width},
            "outputs": list(self.outputs),
            "opset": OPSET if self.runtime == "onnx" else None,
            "versions": self.versions,
            "source_sha256": self.source_sha256,
            "files": self.files,
            "gate": self.gate,
            "quantisation": self.quantisation,
            "several_labels": self.several_labels,
            "merge_tokens": self.merge_tokens,
        }
        return fields | {"sha256": _digest(fields)}


def made_with(runtime: str) -> dict[str, str]:
    """The versions of what makes a bundle."""
    from importlib.metadata import PackageNotFoundError, version  # megabytes, to who only opens one

    found = {"python": platform.python_version()}
    for package in ("vitrail", *PACKAGES[runtime]):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            from vitrail import __version__

            found[package] = __version__ if package == "vitrail" else "unknown"
    return found


def is_bundle(path: str | Path) -> bool:
    """Whether a path is a folder with a `bundle.json`."""
    return (Path(path).expanduser() / MANIFEST).is_file()


def read_manifest(folder: str | Path) -> Manifest:
    """Read a bundle's `bundle.json`, and check it against its own hash.

    Raises:
        Error: it is not there, damaged, or of a newer format.
    """
    path = Path(folder).expanduser() / MANIFEST
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        number = fields["format"]
    except OSError as error:
        raise Error(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise Error(f"{path} is damaged: it is no bundle's JSON; export the model again") from None
    if not isinstance(number, int) or number > FORMAT:
        raise Error(
            f"{path} is of format {number}, and this Vitrail reads up to {FORMAT}: update Vitrail"
        )
    given = fields.pop("sha256", None)
    if given != _digest(fields):
        raise Error(f"{path} is not what was exported: its hash differs; export the model again")
    try:
        manifest = Manifest(
            runtime=fields["runtime"],
            precision=fields["precision"],
            labels=list(fields["labels"]),
            preprocessing=Preprocessing.from_json(fields["preprocessing"]),
            temperature=float(fields["temperature"]),
            gate=fields["gate"],
            source_sha256=fields["source_sha256"],
            versions=fields["versions"],
            files=dict(fields["files"]),
            quantisation=fields.get("quantisation"),
            outputs=tuple(str(name) for name in fields["outputs"]),
            several_labels=bool(fields.get("several_labels", False)),
            merge_tokens=int(fields.get("merge_tokens", 0)),
        )
        sound = manifest.temperature > 0 and math.isfinite(manifest.temperature)
    except (KeyError, TypeError, ValueError) as error:
        raise Error(f"{path} is damaged: {error}") from None
    if manifest.runtime not in GRAPHS or not sound or not manifest.files:
        raise Error(f"{path} is damaged: no such runtime, temperature or files")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `bundle.json`."""
    text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def damaged_files(folder: Path, manifest: Manifest) -> list[tuple[str, str]]:
    """Files of a bundle that are not as they were exported: (name, what is wrong)."""
    wrong = []
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).name != name:
            wrong.append((name, "lies outside the bundle"))
        elif not path.is_file():
            wrong.append((name, "is missing"))
        elif sha256_of(path) != expected:
            wrong.append((name, "has other bytes than those that were exported"))
    return wrong


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check every file of a bundle against its hash.

    Raises:
        Error: the first that differs.
    """
    for name, reason in damaged_files(folder, manifest):
        raise Error(f"{folder / name} {reason}: export the model again")


@contextmanager
def checking_files(folder: Path, manifest: Manifest) -> Iterator[None]:
    """`check_files` for who opens the bundle inside: small files first, large ones meanwhile.

    Reading hundreds of megabytes takes as long as opening them does, so both are done at once.
    What was opened must not be used before this has ended without an error; a damaged file is what
    is said, whatever came of opening it.

    Raises:
        Error: the first that differs.
    """
    parts: tuple[dict[str, str], dict[str, str]] = {}, {}
    for name, digest in manifest.files.items():
        parts[_size(folder / name) > LARGE][name] = digest
    small, large = parts
    check_files(folder, replace(manifest, files=small))
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(check_files, folder, replace(manifest, files=large))
        try:
            yield
        finally:
            checked.result()


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def write_bundle(
    out: Path, manifest: Manifest, write: Callable[[Path], object], keep: bool = False
) -> Manifest:
    """Make a bundle, whole or not at all.

    Args:
        out: the folder; it may be there when it is empty or a bundle that ``keep`` lets go.
        manifest: all but ``files`` and ``versions``, which are filled in.
        write: puts the graph's files into the folder that it is given.
        keep: whether a bundle that is there may be replaced.

    Raises:
        Error: the folder holds something, or cannot be written.
    """
    check_free(out, keep)
    work = out.with_name(f".{out.name}.exporting-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        write(work)
        (work / README).write_text(readme(manifest), encoding="utf-8")
        names = sorted(path.name for path in work.iterdir())
        files = {name: sha256_of(work / name) for name in names}
        whole = replace(manifest, files=files, versions=made_with(manifest.runtime))
        write_manifest(work, whole)
        for path in work.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if out.is_dir():
            shutil.rmtree(out)
        work.rename(out)
    except OSError as error:
        raise Error(f"{out} cannot be written: {(error.strerror or str(error)).lower()}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return whole


def check_free(out: Path, keep: bool = False) -> None:
    """Check that a bundle may be put here.

    Raises:
        Error: there is something else.
    """
    if out.exists() and not out.is_dir():
        raise Error(f"--out {out} is a file: give a folder that is not there yet")
    if out.is_dir() and any(out.iterdir()):
        if not is_bundle(out):
            raise Error(f"--out {out} is not empty and holds no bundle: give another folder")
        if not keep:
            raise Error(f"--out {out} holds a bundle: give another folder, or --overwrite")


def _digest(fields: Mapping[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# The README and its example

RUN = {
    "onnx": (
        "onnxruntime",
        "import onnxruntime",
        'session = onnxruntime.InferenceSession(str(folder / "model.onnx"))\n'
        'logits, probabilities = session.run(["logits", "probabilities"], {"images": images})',
    ),
    "openvino": (
        "openvino",
        "import openvino",
        'model = openvino.compile_model(folder / "model.xml", "CPU",\n'
        '                               {"INFERENCE_PRECISION_HINT": "f32"})\n'
        'probabilities = model({"images": images})["probabilities"]',
    ),
    "torch": (
        "vitrail",
        "import vitrail",
        "(answer,) = vitrail.Classifier(folder)([sys.argv[1]])\n"
        "for label, probability in answer:\n"
        '    print(f"{probability:.4f} {label}")',
    ),
}
RESIZE = {
    "crop": """\
goal_h, goal_w = int(height / crop), int(width / crop)  # the shorter side becomes this
w, h = picture.size  # of an extreme strip only the middle is resized
cut_w = max(0, w - math.ceil(8 * h * goal_w / goal_h)) // 2
cut_h = max(0, h - math.ceil(8 * w * goal_h / goal_w)) // 2
picture = picture.crop((cut_w, cut_h, w - cut_w, h - cut_h))
if goal_h / picture.height >= goal_w / picture.width:
    shape = max(goal_w, int(goal_h * picture.width / picture.height)), goal_h
else:
    shape = goal_w, max(goal_h, int(goal_w * picture.height / picture.width))
picture = picture if picture.size == shape else picture.resize(shape, resample)
left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
picture = picture.crop((left, top, left + width, top + height))""",
    "squash": """\
shape = int(width / crop), int(height / crop)  # both sides, whatever the aspect ratio
picture = picture if picture.size == shape else picture.resize(shape, resample)
left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
picture = picture.crop((left, top, left + width, top + height))""",
    "letterbox": """\
goal_h, goal_w = int(height / crop), int(width / crop)  # the whole picture goes into this
scale = min(goal_h / picture.height, goal_w / picture.width)
shape = (min(goal_w, max(1, round(picture.width * scale))),
         min(goal_h, max(1, round(picture.height * scale))))
picture = picture if picture.size == shape else picture.resize(shape, resample)
w, h = min(shape[0], width), min(shape[1], height)
left, top = round((shape[0] - w) / 2), round((shape[1] - h) / 2)
inner = picture.crop((left, top, left + w, top + h))
picture = Image.new("RGB", (width, height), tuple(round(255 * m) for m in pre["mean"]))
picture.paste(inner, ((width - w) // 2, (height - h) // 2))""",
}


def example(manifest: Manifest) -> str:
    """A program that classifies a picture without Vitrail (a torch bundle's needs it)."""
    _, imported, run = RUN[manifest.runtime]
    if manifest.runtime == "torch":
        head = f"import sys\nfrom pathlib import Path\n\n{imported}\n\n"
        return f"{head}folder = Path(__file__).parent\n{run}\n"
    grey = len(manifest.preprocessing.mean) == 1
    resize = RESIZE[manifest.preprocessing.fit]
    if grey and manifest.preprocessing.fit == "letterbox":
        resize = resize.replace('for m in pre["mean"])', 'for m in 3 * pre["mean"])')
    return f"""\
import json, math, sys
from pathlib import Path
import numpy as np, {imported.removeprefix("import ")}
from PIL import Image, ImageOps

folder = Path(__file__).parent
about = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
pre, crop = about["preprocessing"], about["preprocessing"]["crop"]
(height, width), resample = pre["size"], Image.Resampling[pre["interpolation"].upper()]
picture = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
{resize}
images = np.asarray(picture)[None]  # uint8 [1, height, width, 3]: the graph does the rest
{run}
for place in probabilities[0].argsort()[::-1][:5]:
    print(f"{{probabilities[0, place]:.4f}} {{about['labels'][place]}}")
"""


def readme(manifest: Manifest) -> str:
    """The bundle's README, whose example runs without Vitrail."""
    package = RUN[manifest.runtime][0]
    return f"""\
# {GRAPHS[manifest.runtime]}

{len(manifest.labels)} classes ({listing(manifest.labels, 5)}); {manifest.precision}; runs on \
{package}. `{MANIFEST}` holds the labels in the order of the logits, the preprocessing, the
temperature and the SHA-256 of every file{_gate_in_words(manifest.gate)}

{_input_in_words(manifest)}

```python
{example(manifest)}```

Needed: `pip install {package} numpy pillow`. With Vitrail: `vitrail predict FOLDER picture.jpg`,
`vitrail verify FOLDER`, `vitrail serve FOLDER`.
"""


def _input_in_words(manifest: Manifest) -> str:
    pre, classes = manifest.preprocessing, len(manifest.labels)
    merging = ""
    if manifest.merge_tokens:
        merging = f" Each block merges {manifest.merge_tokens} tokens: faster, and not exact."
    if manifest.runtime == "torch":
        return (
            "This is a model folder: `config.json` and `model.safetensors`, for Vitrail and timm."
            + merging.replace(" Each", " Opened by Vitrail, each")
        )
    height, width = pre.size
    attention = (
        " `attention` [b, rows, columns]: how\n"
        "much of the last attention lies on each place of the input."
        if manifest.attends
        else ""
    )
    chances = (
        "sigmoid (a picture may have several labels)" if manifest.several_labels else "softmax"
    )
    return f"""\
Input `{INPUT}`: uint8 [b, {height}, {width}, 3], RGB, any number b of pictures, *not* normalised:
the mean and the deviation are in the graph. Outputs: `logits` and `probabilities` [b, {classes}],
the {chances} of logits / {manifest.temperature:g}.{attention}{merging} A picture becomes the
input by `{pre.fit}`, {pre.interpolation} (Pillow's, which
averages when it makes smaller), crop {pre.crop:g}:"""


def _gate_in_words(gate: Mapping[str, Any] | None) -> str:
    if gate is None:
        return ".\n\n**Nobody measured this bundle**: it was exported with `--no-check`."
    return (
        f".\n\nOn {gate['n']} images: {_figures_in_words(gate)}, the same answer on "
        f"{100 * gate['agreement']:.2f} %."
        + ("" if gate["passed"] else " **The gate refused it; it was kept with --keep-anyway.**")
    )


def _figures_in_words(gate: Mapping[str, Any]) -> str:
    if gate["reference_top1"] is None:
        before, after = 100 * gate["reference_map"], 100 * gate["exported_map"]
        return f"mean average precision {before:.2f} % before the export, {after:.2f} % after it"
    before, after = 100 * gate["reference_top1"], 100 * gate["exported_top1"]
    return f"{before:.2f} % right before the export, {after:.2f} % after it"


def labels_of(names: Sequence[str] | None, classes: int) -> list[str]:
    """A model's labels, or numbers where nobody named them."""
    return list(names) if names else [str(index) for index in range(classes)]
