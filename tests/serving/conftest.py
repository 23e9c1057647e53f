"""Real models, a bundle, pictures, one real server and one stand-in for all tests of serving."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitrail
from tests.commands import call
from tests.export.small import CLASSES, sure_model
from tests.serving.running import Running, command, standin
from vitrail.kit.preprocess import Preprocessing

for package in ("fastapi", "uvicorn", "httpx", "python_multipart", "prometheus_client"):
    pytest.importorskip(package)

SUFFIXES = ("jpg", "png", "webp", "bmp")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A small model with an opinion."""
    folder = tmp_path_factory.mktemp("serving") / "trees"
    vitrail.save_model(sure_model(), folder, labels=list(CLASSES))
    return folder


@pytest.fixture(scope="session")
def real(model_folder, tmp_path_factory):
    """The real command on the real model."""
    folder = tmp_path_factory.mktemp("real")
    with command(folder, model_folder, "--threads", 1, "--body-seconds", 2) as server:
        yield server


@pytest.fixture
def serving(tmp_path):
    """Starts stand-ins, and ends them."""
    started: list[Running] = []

    def start(**options) -> Running:
        started.append(standin(tmp_path / str(len(started)), **options))
        return started[-1]

    yield start
    for server in started:
        server.__exit__()


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A model folder that has an opinion and cuts off the edges of a picture."""
    made = sure_model()
    made.preprocessing = Preprocessing(size=(32, 32), crop=0.875)
    return vitrail.save_model(made, tmp_path_factory.mktemp("serving") / "model")


@pytest.fixture(scope="session")
def bundle(model) -> Path:
    """The same for ONNX Runtime, which starts several times as fast as torch."""
    pytest.importorskip("onnxruntime")
    out = model.with_name("bundle")
    call("export", model, "--to", "onnx", "--no-check", "--out", out)
    return out


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """47 pictures of many sizes and formats in folders of folders, three of them broken."""
    root = tmp_path_factory.mktemp("pictures")
    numbers = np.random.default_rng(0)
    for i in range(47):
        place = root / ("b", "a.c", "a/inner", "a")[i % 4]
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{i:02}.{SUFFIXES[i % 3]}"
        side = 900 if i % 5 == 0 else 40 + i  # large ones come late where nobody waits for them
        small = Image.fromarray(numbers.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        small.resize((side, side + i)).save(path)
        if i in (3, 20, 46):
            path.write_bytes(path.read_bytes()[:60])
    return root
