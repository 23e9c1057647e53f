"""What a training step takes in time, and the cards that it may run on.

Time is arithmetic over speed: 6 x MACs x images operations (8 under activation checkpointing, which
goes forward twice), at the device's peak times the share of it that is assumed to be used. The
peaks are those of the makers' data sheets for dense matrices with 32-bit accumulation; the share is
an assumption, `UTILISATION`, that can be set (`vitrail plan --utilisation`).
"""

from dataclasses import dataclass

from vitrail.kit.errors import Error, did_you_mean

GIB = 2**30
TERA = 1e12
UTILISATION = 0.4  # of a GPU's peak
UTILISATION_CPU = 0.5  # of a CPU's best matrix product, which is measured
RESERVED = 1 * GIB  # of a GPU's memory: CUDA itself and its libraries
FRAGMENTED = 0.05  # of the rest: what an allocator cannot use


@dataclass(frozen=True)
class Card:
    """A GPU, by its maker's data sheet.

    Args:
        memory: bytes.
        peaks: operations a second by precision. fp32 is true float32, without TF32.
        link: bytes a second to the other cards of its machine, one way.
    """

    memory: int
    peaks: dict[str, float]
    link: float

    @property
    def usable(self) -> int:
        """Bytes that tensors can have."""
        return round((self.memory - RESERVED) * (1 - FRAGMENTED))


def _card(memory: int, fp32: float, bf16: float, fp16: float, link: float) -> Card:
    peaks = {"fp32": fp32 * TERA, "bf16": bf16 * TERA, "fp16": fp16 * TERA}
    return Card(memory * GIB, peaks, link * 1e9)


# Memory in GiB, TFLOP/s in fp32, bf16 and fp16 (tensor cores, dense), GB/s of the link one way:
# NVIDIA's data sheets and architecture papers of these cards. A T4 and a V100 have no bf16.
CARDS: dict[str, Card] = {
    "t4": _card(16, 8.1, 0, 65, 16),
    "v100": _card(32, 15.7, 0, 125, 150),
    "rtx3090": _card(24, 35.6, 71, 71, 32),
    "rtx4090": _card(24, 82.6, 165, 165, 32),
    "l4": _card(24, 30.3, 121, 121, 32),
    "a10": _card(24, 31.2, 125, 125, 32),
    "l40s": _card(48, 91.6, 362, 362, 32),
    "a100-40": _card(40, 19.5, 312, 312, 300),
    "a100-80": _card(80, 19.5, 312, 312, 300),
    "h100": _card(80, 67, 989, 989, 450),
    "h200": _card(141, 67, 989, 989, 450),
}


def card(name: str) -> Card:
    """A card by name.

    Raises:
        Error: an unknown one; the nearest is named.
    """
    if name.lower() not in CARDS:
        near = did_you_mean(name, CARDS) or f"; there are cpu, cuda, {', '.join(CARDS)}"
        raise Error(f"unknown device {name!r}{near}")
    return CARDS[name.lower()]


def training_flops(macs: int, images: float, checkpointing: bool = False) -> float:
    """Operations of training on so many images, forward and backward."""
    return (8 if checkpointing else 6) * macs * images
