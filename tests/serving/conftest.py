"""One real model, one real server and one stand-in for all tests that do not harm them."""

from pathlib import Path

import pytest

import vitrail
from tests.export.small import CLASSES, sure_model
from tests.serving.running import Running, command, standin

for package in ("fastapi", "uvicorn", "httpx", "python_multipart", "prometheus_client"):
    pytest.importorskip(package)


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
