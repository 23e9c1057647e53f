"""The comparisons that `study ablation` knows, as data: one question, and the variants that answer.

A `Variant` says what is changed of a base: fields of the model's config, of its recipe, or a run
that comes before. All variants of a comparison set the same fields (the `Comparison.fields`), so
that nothing else can differ; where two fields are crossed, as kind and place of positions, every
variant sets one or both. The first variant is the baseline that the others' differences are taken
to. ``published`` is the top-1 of the paper named in ``source``, to be shown beside ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitrail.studies.bases import small_botnet, small_cvt, small_t2t, small_vit
from vitrail.training.recipe import Recipe

Fields = Mapping[str, Any]  # all fields of the base model's config


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One answer.

    Args:
        label: the row of the table.
        config: fields of the model's config.
        settings: fields of the recipe, by dotted names.
        rates: multiples of the base's learning rate, each tried with every seed; empty for it
            alone. The table shows the one that is best on validation.
        pretrained: the recipe of the run whose weights this one starts from; empty for fresh ones.
        cell: (row, column) in the paper's form of the table, where it has two directions.
        published: the paper's top-1, 0..1.
    """

    label: str
    config: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    pretrained: str = ""
    cell: tuple[str, str] | None = None
    published: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One question.

    Args:
        name: as the command line has it.
        asks: the question.
        source: where the comparison comes from, and what its figures are of.
        families: of models that it can be put to.
        fields: all that its variants set: config fields by name, settings with their dots,
            ``pretrained``.
        default: the words of a small model (`definition.candidate`) for pictures of a size.
        variants: from the base's config to the variants, the baseline first.
        common: settings of every run, from the base's recipe.
        few_labels: whether only a part of the pictures has labels; runs that come before learn
            from the others.
    """

    name: str
    asks: str
    source: str
    families: tuple[str, ...]
    fields: tuple[str, ...]
    default: Callable[[int], str]
    variants: Callable[[Fields], Sequence[Variant]]
    common: Callable[[Recipe], Mapping[str, Any]] = lambda recipe: {}
    few_labels: bool = False


# -------------------------------------------------------------------------------------------------
# Variants


def fixed(*variants: Variant) -> Callable[[Fields], Sequence[Variant]]:
    """The same variants whatever the base."""
    return lambda fields: variants


def multiples(name: str, *factors: float) -> Callable[[Fields], Sequence[Variant]]:
    """A whole number of the base's config times each factor; the base itself is first."""

    def made(fields: Fields) -> Sequence[Variant]:
        values = dict.fromkeys(max(1, round(fields[name] * factor)) for factor in (1, *factors))
        return [Variant(label=f"{name} {value}", config={name: value}) for value in values]

    return made


def _patches(fields: Fields) -> Sequence[Variant]:
    """Patches of the base's size, half and twice of it, as far as they divide the pictures."""
    patch, size = fields["patch_size"], fields["image_size"]
    sides = (size, size) if isinstance(size, int) else size
    fitting = [p for p in (patch // 2, 2 * patch) if p and not any(side % p for side in sides)]
    return [Variant(label=f"patch {p}", config={"patch_size": p}) for p in (patch, *fitting)]


def _projections(fields: Fields) -> Sequence[Variant]:
    """Convolutional projections in all stages, then in ever fewer of the first ones, then in none.

    Published for three stages alone.
    """
    stages = len(fields["depths"])

    def mixed(n: int) -> list[str]:
        return ["convolution"] * n + ["linear"] * (stages - n)

    words = ("convolution", "linear")
    published = (0.806, 0.808, 0.810, 0.816) if stages == 3 else (None,) * (stages + 1)
    labels = {0: "no stage", 1: "stage 1", stages: "all stages"}
    return [
        Variant(
            label=labels.get(n, f"stages 1 to {n}"),
            config={"projections": words[n == 0] if n in (0, stages) else mixed(n)},
            published=published[n],
        )
        for n in range(stages, -1, -1)
    ]


def _same_decay(recipe: Recipe) -> Mapping[str, Any]:
    """Weight decay of the same strength a step for every optimiser, whatever its rate is.

    ``torch``'s decay is multiplied by the rate, which differs a hundredfold between SGD and Adam.
    """
    share = recipe.optim.weight_decay
    if recipe.optim.decay == "torch":
        share *= recipe.optim.lr
    return {"optim.decay": "independent", "optim.weight_decay": share}


TABLE_8 = {  # the ViT paper's, ImageNet 5-shot linear with B/16: kind, its word there, and places
    "learned": ("1-D", {"input": 0.64206, "layers": 0.63964, "layers_shared": 0.64292}),
    "learned2d": ("2-D", {"input": 0.64001, "layers": 0.64046, "layers_shared": 0.64022}),
}
PLACES = {"input": "stem", "layers": "every layer", "layers_shared": "every layer, shared"}
POSITIONS = (
    *(
        Variant(
            label=f"{word}, {PLACES[place]}",
            config={"position": kind, "position_at": place},
            cell=(word, PLACES[place]),
            published=published,
        )
        for kind, (word, places) in TABLE_8.items()
        for place, published in places.items()
    ),
    Variant(
        label="none",
        config={"position": "none", "position_at": "input"},
        cell=("none", "stem"),
        published=0.61382,
    ),
    Variant(
        label="relative",
        config={"position": "relative", "position_at": "input"},
        cell=("relative", "stem"),
        published=0.64032,
    ),
    Variant(
        label="fixed sin-cos",
        config={"position": "sincos2d", "position_at": "input"},
        cell=("fixed sin-cos", "stem"),
    ),
)
SWEEP = (0.3, 1.0, 3.0)
PLAIN = ("vit", "hybrid")

COMPARISONS: dict[str, Comparison] = {
    one.name: one
    for one in (
        Comparison(
            name="pooling",
            asks="Class token, mean or attention pooling, each at its own learning rate?",
            source="ViT paper, appendix D.3 and figure 9; attention pooling: big_vision's MAPHead",
            families=PLAIN,
            fields=("pool",),
            default=small_vit,
            variants=fixed(
                Variant(label="class token", config={"pool": "token"}, rates=SWEEP),
                Variant(label="mean", config={"pool": "mean"}, rates=SWEEP),
                Variant(label="attention", config={"pool": "map"}, rates=SWEEP),
            ),
        ),
        Comparison(
            name="position",
            asks="Which position embedding, and where is it added?",
            source="ViT paper, appendix D.4 and table 8 (ImageNet, 5 shots, B/16); sin-cos is ours",
            families=PLAIN,
            fields=("position", "position_at"),
            default=small_vit,
            variants=fixed(*POSITIONS),
        ),
        Comparison(
            name="optimizer",
            asks="Adam or SGD, each at its own learning rate?",
            source="ViT paper, appendix D.1 and table 7, for ResNets; weight decay is the same "
            "here for both, step by step",
            families=("vit", "hybrid", "cvt", "t2t", "pvt", "pvt_v2", "bit", "resnet", "botnet"),
            fields=("optim.name",),
            default=small_vit,
            variants=fixed(
                Variant(
                    label="AdamW", settings={"optim.name": "adamw"}, rates=(0.1, 0.3, 1.0, 3.0)
                ),
                Variant(
                    label="SGD", settings={"optim.name": "sgd"}, rates=(10.0, 30.0, 100.0, 300.0)
                ),
            ),
            common=_same_decay,
        ),
        Comparison(
            name="depth",
            asks="How much does depth bring?",
            source="ViT paper, appendix D.2",
            families=("vit", "hybrid", "t2t"),
            fields=("depth",),
            default=small_vit,
            variants=multiples("depth", 0.25, 0.5, 2),
        ),
        Comparison(
            name="width",
            asks="How much does the width of the tokens bring, with as many heads?",
            source="ViT paper, appendix D.2",
            families=("vit", "hybrid", "t2t"),
            fields=("width",),
            default=small_vit,
            variants=multiples("width", 0.5, 2),
        ),
        Comparison(
            name="mlp_width",
            asks="How much does the width of the MLP bring?",
            source="ViT paper, appendix D.2",
            families=("vit", "hybrid", "t2t"),
            fields=("mlp_width",),
            default=small_vit,
            variants=multiples("mlp_width", 0.5, 2),
        ),
        Comparison(
            name="patch",
            asks="How much do smaller patches bring?",
            source="ViT paper, appendix D.2",
            families=("vit",),
            fields=("patch_size",),
            default=small_vit,
            variants=_patches,
        ),
        Comparison(
            name="cvt_embedding",
            asks="Convolutional embedding or patches, with positions or without?",
            source="CvT paper, ablations (CvT-13, ImageNet); positions: in the first stage",
            families=("cvt",),
            fields=("embedding", "position"),
            default=small_cvt,
            variants=fixed(
                *(
                    Variant(
                        label=f"{'convolution' if kind == 'convolution' else 'patches'}"
                        f"{', positions' if position == 'first' else ''}",
                        config={"embedding": kind, "position": position},
                        published=published,
                    )
                    for kind, position, published in (
                        ("convolution", "none", 0.816),
                        ("convolution", "first", 0.814),
                        ("patch", "none", 0.811),
                        ("patch", "first", 0.807),
                    )
                )
            ),
        ),
        Comparison(
            name="cvt_projection",
            asks="Convolutional or linear projections of queries, keys and values?",
            source="CvT paper, ablations (CvT-13, ImageNet). Linear ones have no stride",
            families=("cvt",),
            fields=("projections",),
            default=small_cvt,
            variants=_projections,
        ),
        Comparison(
            name="cvt_position",
            asks="Does CvT need position embeddings?",
            source="CvT paper, ablations (CvT-13, ImageNet)",
            families=("cvt",),
            fields=("position",),
            default=small_cvt,
            variants=fixed(
                Variant(label="none", config={"position": "none"}, published=0.816),
                Variant(label="every stage", config={"position": "every"}, published=0.815),
                Variant(label="first stage", config={"position": "first"}, published=0.814),
                Variant(label="last stage", config={"position": "last"}, published=0.814),
            ),
        ),
        Comparison(
            name="cvt_kv_stride",
            asks="What does a stride of keys and values cost, and what does it save?",
            source="CvT paper, ablations (CvT-13, ImageNet): 6.55 and 4.53 GFLOPs; 4 is ours",
            families=("cvt",),
            fields=("kv_strides",),
            default=small_cvt,
            variants=fixed(
                Variant(label="stride 2", config={"kv_strides": 2}, published=0.816),
                Variant(label="stride 1", config={"kv_strides": 1}, published=0.823),
                Variant(label="stride 4", config={"kv_strides": 4}),
            ),
        ),
        Comparison(
            name="botnet",
            asks="Does attention in the last stage help over the same ResNet?",
            source="BoTNet paper (arXiv 2101.11605), section 4; without positions: its ablation",
            families=("botnet",),
            fields=("last_stage", "position"),
            default=small_botnet,
            variants=fixed(
                Variant(label="ResNet", config={"last_stage": "convolution"}),
                Variant(
                    label="attention, relative positions",
                    config={"last_stage": "attention", "position": "relative"},
                ),
                Variant(
                    label="attention, absolute positions",
                    config={"last_stage": "attention", "position": "absolute"},
                ),
                Variant(
                    label="attention, no positions",
                    config={"last_stage": "attention", "position": "none"},
                ),
            ),
        ),
        Comparison(
            name="t2t",
            asks="Do overlapping tokens help over plain patches?",
            source="T2T-ViT paper (arXiv 2101.11986)",
            families=("t2t",),
            fields=("tokens",),
            default=small_t2t,
            variants=fixed(
                Variant(label="patches", config={"tokens": "patches"}),
                Variant(label="Performer", config={"tokens": "performer"}),
                Variant(label="Transformer", config={"tokens": "transformer"}),
            ),
        ),
        Comparison(
            name="averaging",
            asks="Does averaging the weights help?",
            source="ViT paper, appendix B.1.1 (Polyak averaging); here with a decay that warms up",
            families=("vit", "hybrid", "cvt", "t2t", "pvt", "pvt_v2", "bit", "resnet", "botnet"),
            fields=("ema",),
            default=small_vit,
            variants=fixed(
                Variant(label="last weights", settings={"ema": None}),
                Variant(label="average", settings={"ema": 0.9999}),
            ),
        ),
        Comparison(
            name="self_supervised",
            asks="Learn without labels first, from nothing, or with labels first?",
            source="ViT paper, section 4.6: 2 points over scratch, 4 below supervised (B/16)",
            families=PLAIN,
            fields=("pretrained",),
            default=small_vit,
            few_labels=True,
            variants=fixed(
                Variant(label="from nothing", rates=SWEEP),
                Variant(label="masked patches", pretrained="masked_patch", rates=SWEEP),
                Variant(label="masked autoencoder", pretrained="mae", rates=SWEEP),
                Variant(label="supervised", pretrained="scratch", rates=SWEEP),
            ),
        ),
    )
}
