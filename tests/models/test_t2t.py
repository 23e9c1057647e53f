"""T2T-ViT: the authors' logits, the published counts, and what the config varies."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models.authors import cases, fill, images_of, logits_of
from vitrail import Error, Tape, create_model, list_models
from vitrail.models.base import height_width
from vitrail.models.cost import cost
from vitrail.models.parts import drop_paths, set_drop_path_draws
from vitrail.models.t2t import T2TConfig, T2TViT, sinusoids
from vitrail.models.vit import PatchEmbed
from vitrail.models.zoo import resolve

TOLERANCE = 1e-11
# The Performers' tokens must be small, or all features are zero beside the 1e-8.
SHARP = {".attn.qkv.weight": 2.5, "kqv.weight": 0.3, "kqv.bias": 0.3, ".w": 5.7}
SMALL = {
    "depth": 2,
    "width": 24,
    "heads": 3,
    "mlp_width": 72,
    "num_classes": 5,
    "image_size": 64,
}
CASES = cases("t2t")
VARIANTS = {
    "performer": {},
    "transformer": {"tokens": "transformer", "attention_scale": "width"},
    "not square, grey": {"image_size": (48, 75), "in_channels": 1, "token_width": 16},
    "dropout": {"dropout": 0.1, "drop_path": 0.2, "activation": "quick_gelu", "qkv_bias": True},
    "no dropout, no head": {"token_dropout": 0.0, "num_classes": 0},
    "patches": {"tokens": "patches"},
    "patches, not square, grey": {"tokens": "patches", "image_size": (48, 83), "in_channels": 1},
}


def random_model(seed=0, **fields):
    model = T2TViT(T2TConfig(**{**SMALL, **fields})).double().eval()
    fill(model, seed, SHARP)
    return model


def images_for(model, batch=3, size=None):
    size = height_width(model.image_size if size is None else size)
    generator = torch.Generator().manual_seed(1)
    shape = (batch, model.config.in_channels, *size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@torch.no_grad()
def difference(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def of_case(case, **wrong):
    model = T2TViT(T2TConfig(**{**case["config"], **wrong})).double().eval()
    fill(model, case["seed"], SHARP)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_authors(name):
    case = CASES[name]
    assert difference(of_case(case)(images_of(case)), logits_of(case)) < TOLERANCE


def thirds(ending, order):
    """What is stacked in one matrix, in another order."""

    def mutate(model):
        hit = [t for name, t in model.state_dict().items() if name.endswith(ending)]
        assert hit
        for tensor in hit:
            parts = tensor.clone().chunk(3)
            tensor.copy_(torch.cat([parts[i] for i in order]))

    return mutate


def zeroed(name):
    def mutate(model):
        model.state_dict()[name].zero_()

    return mutate


def other_features(model):
    torch.nn.init.orthogonal_(model.tokens_to_token.attention1.w)


def computed_table(model):
    model.pos_embed.copy_(sinusoids(model.pos_embed.shape[1], model.config.width))


def table_without_the_class_tokens_row(model):
    model.pos_embed.copy_(model.pos_embed.roll(1, dims=1))


def scale_of_the_inner_width(model):
    for block in (model.tokens_to_token.attention1, model.tokens_to_token.attention2):
        block.attn.scale = 64**-0.5


PERFORMER, TRANSFORMER = "performer, as released", "transformer, as released"
MUTATIONS = {
    "head's scale": (PERFORMER, {"attention_scale": "head"}, None),
    "tanh gelu": (PERFORMER, {"activation": "gelu_tanh"}, None),
    "another eps": (PERFORMER, {"norm_eps": 1e-6}, None),
    "kqv read as qkv": (PERFORMER, {}, thirds("kqv.weight", (1, 0, 2))),
    "keys and values swapped": (PERFORMER, {}, thirds("attn.qkv.weight", (0, 2, 1))),
    "queries and keys swapped": (TRANSFORMER, {}, thirds("attn.qkv.weight", (1, 0, 2))),
    "token lost": (PERFORMER, {}, zeroed("cls_token")),
    "features drawn anew": (PERFORMER, {}, other_features),
    "the table of the formula": (PERFORMER, {}, computed_table),
    "the table shifted": (PERFORMER, {}, table_without_the_class_tokens_row),
    "tokens' scale of 64": (TRANSFORMER, {}, scale_of_the_inner_width),
    "tokens' scale as the backbone's": (TRANSFORMER, {"attention_scale": "head"}, None),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_model_is_found_a_hundred_times_over(name):
    which, wrong, mutate = MUTATIONS[name]
    case = CASES[which]
    model = of_case(case, **wrong)
    if mutate:
        mutate(model)
    assert difference(model(images_of(case)), logits_of(case)) > 100 * TOLERANCE


@torch.no_grad()
def test_the_residual_of_the_tokens_is_their_values():
    for name in (PERFORMER, TRANSFORMER):
        model = of_case(CASES[name])
        block = model.tokens_to_token.attention1
        block.attn_proj = block.attn.proj if name == TRANSFORMER else block.proj
        for linear in (block.attn_proj, block.mlp[-1 if name == TRANSFORMER else 2]):
            linear.weight.zero_()
            linear.bias.zero_()
        x = torch.randn(2, 9, 147, dtype=torch.float64)
        packed = block.attn.qkv if name == TRANSFORMER else block.kqv
        assert torch.equal(block(x), packed(block.norm1(x))[..., 128:])


@torch.no_grad()
def test_performers_tend_to_attention_with_many_features():
    # the mean over random w of phi(q) phi(k) is exp(q.k): what the formula is for
    torch.manual_seed(0)
    performer = T2TViT(T2TConfig(**SMALL)).tokens_to_token.attention1.double()
    performer.w = torch.nn.Parameter(torch.randn(200_000, 64).double(), requires_grad=False)
    query, key, value = (0.15 * torch.randn(1, 7, 64).double() for _ in range(3))
    exact = (query @ key.transpose(1, 2)).softmax(-1) @ value
    assert difference(performer.attend(query, key, value), exact) < 0.02
    assert difference(value.mean(dim=1, keepdim=True).expand_as(exact), exact) > 0.1


# Trainable numbers and the frozen random features (4,096 of a Performer's), without the table.
# The last column is the authors' README, in GMACs.
FIGURES = {
    "t2t_vit_7": (4_259_790, 1.1468, 1.1),
    "t2t_vit_10": (5_838_798, 1.5163, 1.5),
    "t2t_vit_12": (6_891_470, 1.7626, 1.8),
    "t2t_vit_14": (21_469_902, 4.7835, 4.8),
    "t2t_vit_19": (39_089_166, 8.4797, 8.5),
    "t2t_vit_24": (64_005_070, 13.6619, 13.8),
    "t2t_vit_t_14": (21_465_422, 6.0887, 6.1),
    "t2t_vit_t_19": (39_084_686, 9.7849, 9.8),
    "t2t_vit_t_24": (64_000_590, 14.9671, 15.0),
}
TABLES = {256: 50_432, 384: 75_648, 448: 88_256, 512: 100_864}


def on_meta(name, **config):
    with torch.device("meta"):
        return create_model(name, **config)


@pytest.mark.parametrize("name", FIGURES)
def test_parameters_and_macs(name):
    parameters, gmacs, reported = FIGURES[name]
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == cost(model).parameters == parameters
    assert [b.numel() for b in model.buffers()] == [TABLES[model.config.width]]
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert frozen == (0 if "_t_" in name else 4096)
    assert cost(model).macs / 1e9 == pytest.approx(gmacs, abs=1e-4)
    # the README rounds to a tenth; its 13.8 of T2T-ViT-24 is 1 % above the products
    assert gmacs == pytest.approx(reported, abs=0.14 if "24" in name else 0.05)


def test_names():
    assert list_models("t2t*") == list(FIGURES)
    for alias, name in {
        "T2T-ViT-14": "t2t_vit_14",
        "T2T-ViT_t-19": "t2t_vit_t_19",
        "T2T-ViT-t-24": "t2t_vit_t_24",
        "t2t_vit_14_384": "t2t_vit_14_384",
    }.items():
        assert resolve(alias)[0] == name
    assert on_meta("t2t_vit_14_384").image_size == 384
    with pytest.raises(Error, match="did you mean 't2t_vit_1"):
        create_model("t2t_vit_15")
    preprocessing = on_meta("t2t_vit_14").preprocessing
    assert (preprocessing.crop, preprocessing.interpolation) == (0.9, "bicubic")
    assert preprocessing.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", VARIANTS)
def test_layers_and_macs_are_those_of_the_model(name):
    model = T2TViT(T2TConfig(**{**SMALL, **VARIANTS[name]})).eval()
    layers = cost(model).layers
    assert len({layer.name for layer in layers}) == len(layers)
    state = dict(model.named_parameters())
    for layer in layers:
        own = {key for key in state if key == layer.name or key.rpartition(".")[0] == layer.name}
        assert layer.parameters == sum(state.pop(key).numel() for key in own), layer.name
    assert not state, "parameters that no layer counts"
    meta = model.to("meta")
    images = torch.empty(1, meta.config.in_channels, *height_width(meta.image_size), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta(images, tape=Tape(only="normed"))  # of all tokens, as papers count
    assert counter.get_total_flops() == 2 * cost(model).macs


@pytest.mark.parametrize("name", VARIANTS)
def test_activations_are_what_autograd_keeps(name):
    model = T2TViT(T2TConfig(**{**SMALL, **VARIANTS[name]})).train()
    set_drop_path_draws(model, torch.ones(4, len(drop_paths(model))))  # nothing is dropped
    images = images_for(model, batch=4).float()
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(images)
    measured = sum(size for size, _ in kept.values()) / 4 / len(images)
    assert cost(model).activations == pytest.approx(measured, rel=2e-3)


@torch.no_grad()
def test_plain_patches_are_those_of_a_plain_vit():
    """The projection of patches as the plain ViT's convolution has it; the rest is T2T-ViT's."""
    model = random_model(tokens="patches", num_classes=0)
    images, tape = images_for(model), Tape()
    model(images, tape=tape)
    plain = PatchEmbed(16, 3, 24).double()
    project = model.tokens_to_token.project
    plain.proj.weight.copy_(project.weight.unflatten(1, (3, 16, 16)))
    plain.proj.bias.copy_(project.bias)
    assert difference(tape["patches"], plain(images).flatten(2).transpose(1, 2)) < TOLERANCE
    rest = {key for key in model.state_dict() if not key.startswith("tokens_to_token.")}
    other = random_model(num_classes=0).state_dict()
    assert rest == {key for key in other if not key.startswith("tokens_to_token.")}


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_the_tape_changes_nothing_and_has_the_shapes_of_the_cost(name):
    model = random_model(**VARIANTS[name])
    images, tape = images_for(model), Tape()
    torch.testing.assert_close(model(images, tape=tape), model(images), rtol=1e-12, atol=1e-12)
    named = {layer.name: layer.shape for layer in cost(model).layers}
    for key in tape:
        if key in named:
            assert named[key] == tuple(tape[key].shape[1:]), key
    between = set() if model.config.tokens == "patches" else {"tokens.0.out", "tokens.1.out"}
    assert {*between, "patches", "blocks.1.attention", "pooled"} <= set(tape)
    assert between == {key for key in tape if key.startswith("tokens.") and key.endswith(".out")}
    assert ("tokens.0.attention" in tape) == (model.config.tokens == "transformer")


@torch.no_grad()
@pytest.mark.parametrize("name", ["performer", "transformer"])
def test_any_size_and_any_batch(name):
    model = random_model(**VARIANTS[name])
    for size in (96, (48, 75), (3, 100)):
        images = images_for(model, batch=4, size=size)
        each = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(model(images), each, rtol=1e-10, atol=1e-10)
        (only,) = maps = model.feature_maps(images)
        assert maps.strides == [16]
        assert only.shape[1:] == (24, *model.config.grids(height_width(size))[-1])
    assert model.config.grids((96, 160)) == [(24, 40), (12, 20), (6, 10)]
    # at another size the table is computed, as in a model that was made at that size
    small = T2TViT(T2TConfig(**{**SMALL, "image_size": (48, 80)}))
    large = T2TViT(T2TConfig(**SMALL))
    state = {k: t for k, t in small.state_dict().items() if k != "pos_embed"}
    large.load_state_dict(state, strict=False)
    images = images_for(small).float()
    torch.testing.assert_close(small.eval()(images), large.eval()(images))


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_every_trained_parameter_and_checkpointing_changes_none(name):
    outcomes = []
    for checkpointing in (False, True):
        model = random_model(**VARIANTS[name])
        model.checkpointing = checkpointing
        model.train()
        torch.manual_seed(3)
        model(images_for(model)).square().sum().backward()
        outcomes.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, gradient in outcomes[0].items():
        if key.endswith(".w"):
            assert gradient is None
        else:
            assert gradient is not None, key
            assert gradient.isfinite().all(), key
            torch.testing.assert_close(gradient, outcomes[1][key])


def test_random_features_are_never_trained():
    model = T2TViT(T2TConfig(**SMALL))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(images_for(model).float()).sum().backward()
    assert model.tokens_to_token.attention1.w.grad is None


@torch.no_grad()
def test_half_precision_does_not_overflow_in_the_features():
    model = random_model().float()
    images = images_for(model).float()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.isfinite().all()
    assert difference(logits.double(), model(images).double()) < 0.2


@torch.no_grad()
@pytest.mark.parametrize("name", ["performer", "transformer"])
def test_compiles_whole_and_exports(name):
    torch.compiler.reset()
    model = random_model(**{**VARIANTS[name], "depth": 1}).float()
    images = images_for(model).float()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    tape = Tape(only="*.attention")
    torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled(images, tape=tape), model(images), rtol=1e-5, atol=1e-5)
    assert len(tape) == (3 if name == "transformer" else 1)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (images,), dynamic_shapes=(batch,))
    other = torch.randn(5, *images.shape[1:])
    torch.testing.assert_close(program.module()(other), model(other), rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


def test_the_first_weights_are_the_authors():
    torch.manual_seed(0)
    model = create_model("t2t_vit_14", depth=1)
    performer = model.tokens_to_token.attention1
    # orthogonal rows of length sqrt(32)
    torch.testing.assert_close(performer.w @ performer.w.T, 32 * torch.eye(32))
    block = model.blocks[0]
    for linear in (performer.kqv, model.tokens_to_token.project, block.attn.qkv, model.head):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not performer.kqv.bias.any()
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.15)
    # row 0 is the class token's: sines of 0, cosines of 0
    assert torch.equal(model.pos_embed[0, 0], torch.tensor([0.0, 1.0]).repeat(192))
    assert model.pos_embed[0, 5, :2].tolist() == pytest.approx([-0.958924, 0.283662], abs=1e-6)
    assert model.pos_embed[0, 196, 382].item() == pytest.approx(196 * 10000 ** (-382 / 384), 1e-3)


def test_depths_for_layer_wise_rates():
    model = on_meta("t2t_vit_14")
    for parameter, depth in {
        "tokens_to_token.attention2.kqv.weight": 0,
        "cls_token": 0,
        "blocks.13.norm1.weight": 14,
        "norm.weight": 15,
        "head.bias": 15,
    }.items():
        assert model.depth_of(parameter) == depth
    assert model.layers == 15


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": "performers"}, "did you mean 'performer'"),
        ({"heads": 5}, "5 heads do not divide a width of 384"),
        ({"image_size": 2}, "3 pixels are the least"),
        ({"image_size": 15, "tokens": "patches"}, "16 pixels are the least"),
        ({"tokens": "patch"}, "did you mean 'patches'"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"attention_scale": "full"}, "it is one of head, width"),
        ({"token_dropout": 1.0}, "from 0 up to 1"),
        ({"mlp_ratio": 3}, "T2TConfig has no field 'mlp_ratio'"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(Error, match=message):
        create_model("t2t_vit_14", **fields)
