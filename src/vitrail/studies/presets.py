"""Lists of models and sizes by name, for those who do not want to make their own.

``paper`` of scaling is the ViT paper's Table 6, its 18 rows shrunk in proportion for pictures of 32
pixels: width by 16, depth by 3, the side of a patch by 4 (H/14 has that of /16), the ResNets' depth
by 3 and width by 8, and no stage narrower than the 128 channels that 32 groups need. 7 epochs are
the duration, 14 are twice as much.
``page`` is what docs/studies.md was made with; ``quick`` shows in a minute or two that all works.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrail.kit.errors import Error, did_you_mean
from vitrail.studies.definition import Ask


def vit(label: str, patch: int, width: int, depth: int, heads: int) -> str:
    """A plain ViT for small pictures; its MLP is four times as wide."""
    shape = f"patch_size={patch}:width={width}:depth={depth}:heads={heads}:mlp_width={4 * width}"
    return f"{label}=vit_nano_patch4_32:{shape}:pool=token:position=learned"


def bit(label: str, depths: list[int], widths: list[int], stem: int = 64) -> str:
    """A BiT ResNet for small pictures; a stem as of `hybrid`."""
    return (
        f"{label}=resnetv2_50x1_bit:depths={_list(depths)}:widths={_list(widths)}:stem_width={stem}"
    )


def hybrid(
    label: str, depths: list[int], width: int, depth: int, heads: int, stem: int = 64
) -> str:
    """A hybrid for small pictures: a stage or two of a ResNet, then a plain transformer.

    As in the original, the stem's norm of 32 groups has two channels a group: with one, it would
    take the mean of every filter away, which costs a third of the accuracy.
    """
    return (
        f"{label}=vit_base_r50_s16_224:depths={_list(depths)}:widths={_list([128] * len(depths))}"
        f":stem_width={stem}:width={width}:depth={depth}:heads={heads}:mlp_width={4 * width}"
    )


def cvt(label: str, depths: list[int], widths: list[int], heads: list[int]) -> str:
    """A CvT for small pictures."""
    return (
        f"{label}=cvt_13_224:depths={_list(depths)}:widths={_list(widths)}:heads={_list(heads)}"
        ":drop_path=0"
    )


def _list(numbers: list[int]) -> str:
    return "[" + ",".join(map(str, numbers)) + "]"


@dataclass(frozen=True)
class Preset:
    """One list.

    Args:
        models: as of ``--models``.
        words: other fields of `Ask`; those that the user gave win.
        factors: by label, what a model's durations are multiplied by; 1 where it is not named.
    """

    models: tuple[str, ...] = ()
    words: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Presets:
    """A kind's own models and its presets by name."""

    kind: str
    models: tuple[str, ...]
    named: Mapping[str, Preset]

    def get(self, name: str) -> Preset:
        """A preset.

        Raises:
            Error: there is none of that name.
        """
        if not name:
            return Preset()
        if name not in self.named:
            near = did_you_mean(name, self.named) or f"; there are {', '.join(self.named)}"
            raise Error(f"{self.kind} has no preset {name!r}{near}")
        return self.named[name]

    def applied(self, ask: Ask) -> Ask:
        """What was asked for, with the preset's words where the user gave none of their own."""
        preset = self.get(ask.preset)
        models = tuple(_without(words, ask.settings) for words in preset.models)
        words: dict[str, Any] = {"models": models, **preset.words}
        return ask.replace(**{k: value for k, value in words.items() if not getattr(ask, k)})


def _without(words: str, settings: Mapping[str, Any]) -> str:
    """A model in words, but for what these settings say otherwise."""
    return ":".join(part for part in words.split(":") if part.partition("=")[0] not in settings)


PAGE_RATES = {  # by the beginning of a label; `benchmarks/studies.py --only rates` finds them
    "ViT": 0.001,
    "BiT": 0.004,
    "hybrid 16": 0.002,
    "hybrid": 0.001,
    "CvT": 0.002,
}


def rated(words: str) -> str:
    """A model in words, with the learning rate that the page gives to its kind."""
    rate = next(rate for begins, rate in PAGE_RATES.items() if words.startswith(begins))
    return f"{words}:optim.lr={rate}"


PAPER = Preset(
    models=(
        vit("B/32", 8, 48, 4, 3),
        vit("B/16", 4, 48, 4, 3),
        vit("L/32", 8, 64, 8, 4),
        vit("L/16", 4, 64, 8, 4),
        vit("L/16 x2", 4, 64, 8, 4),
        vit("H/14 x2", 4, 80, 11, 5),
        bit("R50x1", [1, 1, 2, 1], [128, 128, 128, 256]),
        bit("R50x2", [1, 1, 2, 1], [128, 128, 256, 512]),
        bit("R101x1", [1, 1, 8, 1], [128, 128, 128, 256]),
        bit("R152x1", [1, 3, 12, 1], [128, 128, 128, 256]),
        bit("R152x2", [1, 3, 12, 1], [128, 128, 256, 512]),
        bit("R152x2 x2", [1, 3, 12, 1], [128, 128, 256, 512]),
        bit("R200x3 x2", [1, 8, 12, 1], [128, 256, 384, 768], 96),
        hybrid("R50+B/32", [1, 1], 48, 4, 3),
        hybrid("R50+B/16", [1], 48, 4, 3),
        hybrid("R50+L/32", [1, 1], 64, 8, 4),
        hybrid("R50+L/16", [1], 64, 8, 4),
        hybrid("R50+L/16 x2", [1], 64, 8, 4),
    ),
    words={"image_size": 32, "durations": ("7 epochs",), "batch_size": 128},
    factors=dict.fromkeys(("L/16 x2", "H/14 x2", "R152x2 x2", "R200x3 x2", "R50+L/16 x2"), 2),
)

SMALL = (
    bit("BiT ResNet", [1, 1, 1], [128, 128, 256]),
    vit("ViT", 4, 64, 4, 4),
    hybrid("hybrid", [1], 64, 4, 4),
    cvt("CvT", [1, 1, 2], [32, 64, 128], [1, 2, 4]),
)
GROWING = (
    vit("ViT 8/48/3", 8, 48, 3, 3),
    vit("ViT 4/64/4", 4, 64, 4, 4),
    bit("BiT 1-1-1", [1, 1, 1], [128, 128, 256]),
    bit("BiT 2-2-2", [2, 2, 2], [128, 128, 256]),
    hybrid("hybrid 16/64/4", [1, 1], 64, 4, 4),
    hybrid("hybrid 64/64/4", [1], 64, 4, 4),
    cvt("CvT 1-1-2", [1, 1, 2], [32, 64, 128], [1, 2, 4]),
)
FASTEST = (bit("BiT ResNet", [1, 1], [128, 128]), vit("ViT", 8, 48, 3, 3))

DATA_SIZE = Presets(
    "data-size",
    models=SMALL,
    named={
        "page": Preset(
            tuple(map(rated, SMALL)),
            {
                "image_size": 32,
                "batch_size": 32,
                "sizes": (500, 2000, 8000, 0),
                "durations": ("60000 examples",),
            },
        ),
        "quick": Preset(
            FASTEST,
            {
                "image_size": 32,
                "batch_size": 32,
                "sizes": (200, 800),
                "durations": ("1600 examples",),
            },
        ),
    },
)
SCALING = Presets(
    "scaling",
    models=SMALL,
    named={
        "paper": PAPER,
        "page": Preset(
            tuple(map(rated, GROWING)),
            {
                "image_size": 32,
                "batch_size": 32,
                "durations": tuple(f"{6000 * times} examples" for times in (1, 2, 4, 8)),
            },
        ),
        "quick": Preset(
            (*FASTEST, vit("ViT larger", 4, 48, 3, 3)),
            {
                "image_size": 32,
                "batch_size": 32,
                "durations": ("640 examples", "1600 examples"),
            },
        ),
    },
)
