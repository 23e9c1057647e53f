"""Twenty losses of a small seeded run: a refactor must give them again.

They were written by `python -m tests.training.test_golden`. On another processor or build of
torch the last digits may differ; there they must agree to 1e-5.
"""

import json
from pathlib import Path

import pytest
import torch

from vitrail.recipes.run import train

FILE = Path(__file__).parent / "golden_losses.json"


def losses(out: Path) -> list[float]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(
            "demo:fashion",
            model="vit_mu_patch7_28",
            out=out,
            steps=20,
            batch_size=16,
            seed=7,
            set={
                "model.depth": 2,
                "model.dropout": 0.1,
                "model.drop_path": 0.1,
                "model.registers": 2,
                "model.layer_scale": 0.5,
                "augment.flip": 0.5,
                "target.mixup": 0.2,
                "target.label_smoothing": 0.1,
                "eval_every": 20,
            },
        )
    finally:
        torch.set_num_threads(before)
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in lines if record["kind"] == "step"]


def machine() -> str:
    return f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}"


def test_the_losses_are_those_of_before(tmp_path):
    golden = json.loads(FILE.read_text())
    now = losses(tmp_path / "run")
    assert len(now) == 20
    assert now == pytest.approx(golden["losses"], rel=1e-5)
    if golden["machine"] == machine():
        assert now == golden["losses"]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = {"machine": machine(), "losses": losses(Path(folder) / "run")}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
