"""PyTorch, ONNX Runtime and OpenVINO are one model, at every batch size, for every family."""

import numpy as np
import pytest
import torch

from tests.export.small import pictures
from tests.export.test_fold import FAMILIES, build
from vitrail.export.make import GraphWriter
from vitrail.export.names import GRAPHS
from vitrail.export.runtime import OnnxRuntime, OpenVinoRuntime
from vitrail.kit.errors import Error

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
KINDS = {"onnx": OnnxRuntime, "openvino": OpenVinoRuntime}
# What exporters got wrong once: see `export.portable`.
TRAPS = ("t2t", "relative", "pvt_v2_linear")


def exported(model, to, folder):
    folder = folder / to
    folder.mkdir(parents=True)
    GraphWriter(model, to).write(folder, "fp32")
    return KINDS[to](folder / GRAPHS[to], threads=1)


def shown(model, images):
    return np.stack([model.preprocessing.geometry(image) for image in images])


def in_batches(logits, images, batch):
    parts = [logits(images[i : i + batch]) for i in range(0, len(images), batch)]
    return np.concatenate(parts)


def in_torch(model):
    def logits(images):
        with torch.inference_mode():
            return model(model.preprocessing.normalize(torch.from_numpy(images))).numpy()

    return logits


@pytest.mark.parametrize("kind", TRAPS)
def test_what_exporters_got_wrong_is_right(kind, tmp_path):
    model = build(kind).float()
    images = shown(model, pictures(5))
    expected = in_torch(model)(images)
    logits = exported(model, "onnx", tmp_path).logits
    for batch in (1, 5):
        got = in_batches(logits, images, batch)
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_thousand_pictures_in_every_runtime(kind, tmp_path):
    """Logits within 1e-4 and every answer the same, at batch 1, 2 and 7 and alone or among 32."""
    model = build(kind).float()
    images = shown(model, a_thousand())
    reference = in_batches(in_torch(model), images, 32)
    answers = reference.argmax(1)
    for name, logits in (
        ("torch", in_torch(model)),
        *((to, exported(model, to, tmp_path).logits) for to in KINDS),
    ):
        by_size = {size: in_batches(logits, images, size) for size in (1, 2, 7, 32)}
        for size, got in by_size.items():
            assert np.abs(got - reference).max() <= 1e-4, (name, size)
            assert (got.argmax(1) == answers).all(), (name, size)
        chances = [torch.from_numpy(by_size[size]).softmax(1).numpy() for size in (1, 32)]
        assert np.abs(chances[0] - chances[1]).max() <= 1e-5


def a_thousand():
    """CIFAR-10's first test pictures where they are at hand, else smooth ones."""
    from tests.conftest import SHARED

    files = sorted((SHARED / "cifar10").rglob("test*.parquet"))
    if not files:
        return pictures(1000, side=32)
    import io

    import pyarrow.parquet as parquet
    from PIL import Image

    rows = parquet.read_table(files[0]).slice(0, 1000).to_pylist()
    column = next(name for name in ("img", "image") if name in rows[0])
    return [np.asarray(Image.open(io.BytesIO(row[column]["bytes"]))) for row in rows]


def test_a_file_that_is_no_graph_is_one_sentence(tmp_path):
    for to, kind in KINDS.items():
        (tmp_path / GRAPHS[to]).write_bytes(b"nothing")
        with pytest.raises(Error, match="cannot be opened by") as told:
            kind(tmp_path / GRAPHS[to])
        assert "\n" not in str(told.value)
