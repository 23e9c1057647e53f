"""The ledger: what a run cost, in units that can be compared with the papers'.

Arithmetic is counted from the model's layers, never timed: 2 operations a multiply-add, and a
training step costs three forward passes (the ViT paper's Table 6 is reproduced by this rule:
L/16 for 14 epochs of JFT-300M gives 1,567 exaFLOPs).
"""

from dataclasses import asdict, dataclass
from typing import Any

FLOPS_PER_MAC = 2
TRAINING_PASSES = 3  # one forward; the backward pass costs two


@dataclass(frozen=True)
class Ledger:
    """What one run has cost so far.

    Args:
        device: in words.
        macs_per_image: of one forward pass.
        images: seen in training, again and again counted.
        seconds: of training, evaluation and saving included, over all restarts.
    """

    device: str
    macs_per_image: int
    images: int = 0
    seconds: float = 0.0

    @property
    def flops(self) -> int:
        """Operations of all training steps, forward and backward."""
        return TRAINING_PASSES * FLOPS_PER_MAC * self.macs_per_image * self.images

    def to_json(self) -> dict[str, Any]:
        """Fields and derived figures, for the model folder and the report."""
        return {
            **asdict(self),
            "flops": self.flops,
            "exaflops": self.flops / 1e18,
            "device_hours": self.seconds / 3600,
            "images_per_second": self.images / self.seconds if self.seconds else None,
        }
