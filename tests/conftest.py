"""What every test shares: quiet threads, fixed seeds, and where optional data lies."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _compiled_anew():
    """What other files compiled counts against a limit of recompilations of the same code."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    """No test leaves anything in the user's own cache."""
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def shared_data() -> Path:
    """The folder of data sets beside the repository, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs the data sets in ../shared/data, which are not there")
    return SHARED


def randomise(model: torch.nn.Module, seed: int = 0, attention: float = 4.0) -> None:
    """Fill every parameter and buffer with random numbers: biases, norms, tokens, tables, head.

    Queries and keys are made large, so that attention is not flat and a swap of k and v, another
    scale or a missing token shows in the logits.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.ndim > 1:
                fan_in = tensor[0].numel() if "pos" not in name and "token" not in name else 1
                noise = noise / max(fan_in, 1) ** 0.5
            if "norm" in name and name.endswith("weight"):
                noise = 1 + 0.3 * noise
            if "qkv.weight" in name or "q.weight" in name:
                noise = noise * attention**0.5
            if "running_var" in name:
                noise = 0.5 + noise.abs()
            tensor.copy_(noise.to(tensor.dtype))
