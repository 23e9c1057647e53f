"""One small model of every family, trained by `vitrail train` on a part of CIFAR-10.

The slow tests and `benchmarks/runtimes.py` share them: what an export must not change is looked at
on models that have learned something, their accuracy beside it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch

import vitrail
from tests.commands import call
from vitrail.data.decode import decode
from vitrail.data.sources import open_source
from vitrail.export.fold import fold
from vitrail.models.base import ImageClassifier

TRAIN, TEST = 10_000, 1_000  # images of the part
BATCHES = (1, 2, 7)
RUNTIMES = ("torch", "onnx", "openvino")

SMALL = "depth=3 width=96 heads=3 mlp_width=192 patch_size=4"
STAGES = "depths=[1,1,2] widths=[32,64,128] heads=[1,2,4]"
# A zoo name that sets the family, the fields that make it small, pixels, and steps of training.
FAMILIES: dict[str, tuple[str, str, int, int]] = {
    "ViT, class token": ("vit_tiny_patch16_224", SMALL, 32, 400),
    "ViT, mean": (
        "vit_tiny_patch16_224",
        f"{SMALL} pool=mean class_token=false position=sincos2d",
        32,
        400,
    ),
    "ViT, registers, LayerScale": ("vit_small_patch14_reg4_dinov2", SMALL, 32, 400),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", SMALL, 32, 400),
    "hybrid": (
        "vit_base_r50_s16_224",
        "depths=[1,1] widths=[128,256] stem_width=32 depth=2 width=96 heads=3 mlp_width=192",
        32,
        150,
    ),
    "BiT": ("resnetv2_50x1_bit", "depths=[1,1,1] widths=[128,256,256] stem_width=32", 32, 150),
    "ResNet": ("resnet50", "depths=[1,1,1] widths=[64,128,256] stem_width=32", 32, 150),
    "BoTNet": ("botnet50_224", "depths=[1,1,2] widths=[64,128,256] stem_width=32 heads=2", 32, 150),
    "CvT": ("cvt_13_224", STAGES, 32, 150),
    "T2T-ViT": ("t2t_vit_7", "depth=3 width=96 heads=3 mlp_width=192 token_width=32", 64, 150),
    "PVT": ("pvt_tiny", f"{STAGES} mlp_ratios=[4,4,4] reductions=[4,2,1]", 32, 150),
    "PVT v2": ("pvt_v2_b0", f"{STAGES} mlp_ratios=[4,4,4] reductions=[4,2,1]", 32, 150),
}


@dataclass(frozen=True)
class Compared:
    """What the runtimes make of one model on the part's test images.

    Attributes:
        parameters: how many.
        top1: share of right answers of the model in float32, in batches of 32.
        largest: its largest logit, absolute.
        gaps: by runtime and batch size, the largest difference of a logit from the model's.
        chances: by runtime, the largest difference of a probability at batch 1 from batch 32.
        agreement: by runtime and batch size, the share of images with the model's answer.
        folded: the largest difference of a logit of the folded model, as a share of ``largest``.
    """

    parameters: int
    top1: float
    largest: float
    gaps: dict[tuple[str, int], float]
    chances: dict[str, float]
    agreement: dict[tuple[str, int], float]
    folded: float


def part_of(cifar10: Path, folder: Path) -> Path:
    """The first images of CIFAR-10's parquet files, as a data folder; made once."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", TRAIN), ("test", TEST)):
        if not (folder / f"{name}.parquet").exists():
            table = parquet.read_table(cifar10 / f"{name}.parquet").slice(0, count)
            parquet.write_table(table, folder / f"{name}.parquet")
    return folder


def trained(family: str, data: Path, out: Path, steps: int | None = None) -> Path:
    """The model folder of a family; where it is done already, it is left."""
    name, fields, pixels, own = FAMILIES[family]
    steps = own if steps is None else steps
    words = ["train", data, "--model", name, "--image-size", pixels, "--steps", steps]
    settings = [f"model.{field}" for field in fields.split()]
    call(*words, "--lr", 0.002, "--out", out, "--set", *settings)
    return out


def bundles(model: Path, data: Path, folder: Path) -> dict[str, Path]:
    """The bundle of a model folder for every runtime, each through the gate."""
    made = {to: folder / to for to in RUNTIMES}
    for to, out in made.items():
        if not out.exists():
            call("export", model, "--to", to, "--check", data, "--samples", 256, "--out", out)
    return made


def compared(model: Path, bundles: dict[str, Path], data: Path) -> Compared:
    """Every bundle beside the model, on all the test images and at every batch size."""
    live = vitrail.load_model(model)
    images, truth = _tests(data)
    assert live.labels == list(open_source(str(data), "test").classes)
    ready = np.stack([live.preprocessing.geometry(image) for image in images])
    expected = _in_torch(live, ready)
    answers, largest = expected.argmax(1), float(np.abs(expected).max())
    gaps, agreement, chances = {}, {}, {}
    for to, folder in bundles.items():
        classify = vitrail.Classifier(folder, threads=1)
        by_size = {}
        for size in (*BATCHES, 32):
            classify.batch_size = size
            by_size[size] = classify.logits(images)
        for size in BATCHES:
            gaps[to, size] = float(np.abs(by_size[size] - expected).max())
            agreement[to, size] = float((by_size[size].argmax(1) == answers).mean())
        alone, among = (torch.from_numpy(by_size[size]).softmax(1) for size in (1, 32))
        chances[to] = float((alone - among).abs().max())
    folded = fold(live)
    with torch.inference_mode():
        rows = [folded(torch.from_numpy(ready[i : i + 50])) for i in range(0, len(ready), 50)]
    return Compared(
        parameters=sum(parameter.numel() for parameter in live.parameters()),
        top1=float((answers == truth).mean()),
        largest=largest,
        gaps=gaps,
        chances=chances,
        agreement=agreement,
        folded=float(np.abs(torch.cat(rows).numpy() - expected).max()) / largest,
    )


def _tests(data: Path) -> tuple[list[np.ndarray], np.ndarray]:
    source = open_source(str(data), "test")
    examples = [source.example(place) for place in range(len(source))]
    return [decode(example.image) for example in examples], np.array([e.label for e in examples])


def _in_torch(model: ImageClassifier, ready: np.ndarray, batch: int = 32) -> np.ndarray:
    with torch.inference_mode():
        floats = [
            model.preprocessing.normalize(torch.from_numpy(ready[i : i + batch]))
            for i in range(0, len(ready), batch)
        ]
        return np.concatenate([model(rows).numpy() for rows in floats])
