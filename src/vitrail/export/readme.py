"""A bundle's README: what is in it, and the preprocessing as an example without Vitrail."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitrail.export.names import GRAPHS, INPUT, MANIFEST
from vitrail.kit.errors import listing

if TYPE_CHECKING:
    from vitrail.export.bundle import Manifest

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


def example(manifest: "Manifest") -> str:
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


def readme(manifest: "Manifest") -> str:
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


def _input_in_words(manifest: "Manifest") -> str:
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
