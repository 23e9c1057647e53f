"""Rollout from the end: equal to the paper's where that is defined, worked by hand elsewhere."""

import numpy as np
import pytest
import torch

from tests.contract.reduced import pictures, shared, small_models
from vitrail.inspection.attention import fused, rollout
from vitrail.inspection.flow import flow, reading
from vitrail.inspection.look import hear
from vitrail.inspection.places import Layer, Places, layers_of, windows
from vitrail.kit.errors import Error
from vitrail.models.tape import Tape
from vitrail.models.vit import VisionTransformer, ViTConfig

SMALL = small_models()


def line(tokens: int, prefix: int = 0) -> Places:
    """A grid of one row."""
    return Places(np.array([0.5]), np.arange(tokens) + 0.5, prefix)


def layer(queries: Places, keys: Places | None = None, **rest) -> Layer:
    return Layer("a.attention", 1, 0, queries, keys or queries, **rest)


@pytest.mark.parametrize("fuse", ["mean", "max", "min"])
@pytest.mark.parametrize(("residual", "discard"), [(0.5, 0.0), (0.2, 0.0), (0.5, 0.6), (0.0, 0.9)])
def test_one_stage_is_the_rows_of_rollout(fuse, residual, discard):
    generator = torch.Generator().manual_seed(0)
    attentions = [
        torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64).mul(3).softmax(-1)
        for _ in range(4)
    ]
    read = torch.rand(2, 8, generator=generator, dtype=torch.float64)
    places = Places(np.array([0.5, 1.5]), np.array([0.5, 1.5, 2.5]), 2)
    found = flow(
        [layer(places)] * 4, [fused(one, fuse, discard) for one in attentions], read, residual
    )
    whole = (read[:, None] @ rollout(attentions, fuse, residual, discard))[:, 0]
    torch.testing.assert_close(found, whole[:, 2:].reshape(2, 2, 3))


def test_two_stages_worked_by_hand():
    # Four tokens in stage 0, whose two keys are the means of two tokens each; then stage 1 has
    # two tokens, each of two tokens of stage 0. Half of everything goes by the residual path.
    pairs = (np.eye(1), windows(4, 2, 2, 2))
    first = layer(line(4), line(2), reduced=pairs)
    second = layer(line(2), arrived=pairs)
    into_keys = torch.tensor([[[1.0, 0], [1, 0], [0.5, 0.5], [0, 1]]])
    between = torch.tensor([[[0.25, 0.75], [1, 0]]])
    found = flow([first, second], [into_keys, between], torch.tensor([[1.0, 0]]))
    # Token 0 of stage 1 reads itself with 1/2 + 1/2 * 0.25 = 0.625 and its neighbour with 0.375,
    # so the tokens of stage 0 leave it with 0.3125, 0.3125, 0.1875, 0.1875. Half of that stays;
    # the other half goes to key 0 with 0.3125 + 0.3125 + 0.1875 / 2 = 0.71875, to key 1 with
    # 0.28125, each shared by its two tokens.
    expected = [
        0.3125 / 2 + 0.71875 / 4,
        0.3125 / 2 + 0.71875 / 4,
        0.1875 / 2 + 0.28125 / 4,
        0.1875 / 2 + 0.28125 / 4,
    ]
    torch.testing.assert_close(found[0, 0], torch.tensor(expected))
    assert sum(expected) == pytest.approx(1)


def test_what_a_class_token_began_with_has_no_place():
    # The class token joins in stage 1: half of what is read stays on it, by the residual path.
    joined = layer(line(2, prefix=1), arrived=(np.eye(1), windows(4, 2, 2, 2)))
    attention = torch.tensor([[[0.0, 1, 0], [0, 1, 0], [0, 0, 1]]])
    identity = torch.eye(4)[None]
    found = flow([layer(line(4)), joined], [identity, attention], torch.tensor([[1.0, 0, 0]]))
    torch.testing.assert_close(found[0, 0], torch.tensor([0.25, 0.25, 0, 0]))


@pytest.mark.parametrize("name", ["pvt_v2_b0", "t2t_vit_t_14", "botnet50_224"])
def test_nothing_is_lost_but_to_padding_and_to_class_tokens(name):
    model = shared(name)
    layers = layers_of(model)
    with torch.no_grad():
        heard = hear(model, pictures(model), layers)
    read = reading(model, layers[-1])
    torch.testing.assert_close(read.sum(1), torch.ones(1))
    found = flow(layers, heard.fused, read)
    assert found.shape == (2, *layers[0].queries.grid)
    if name != "botnet50_224":
        assert ((found.sum((1, 2)) > 0.05) & (found.sum((1, 2)) < 1)).all()
    else:
        torch.testing.assert_close(found.sum((1, 2)), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["cvt_13_224", "pvt_tiny", "pvt_v2_b0"])
def test_attention_to_all_alike_stays_so_through_stages(name):
    # At a size where borders are few. (Pooling 8 places to 7 counts some of them twice, so that
    # the linear PVT v2 is not among them.)
    model = shared(name)
    layers = layers_of(model, (256, 256))
    heads = [torch.full((1, x.queries.tokens, x.keys.tokens), 1 / x.keys.tokens) for x in layers]
    read = torch.full((1, layers[-1].queries.tokens), 1 / layers[-1].queries.tokens)
    found = flow(layers, heads, read)[0]
    inner = found[:-16, :-16]  # the last tokens of an even side are in fewer windows
    assert float(inner.std() / inner.mean()) < 0.01


@pytest.mark.parametrize(
    "config",
    [
        {"pool": "token"},
        {"pool": "token", "distilled": True},
        {"pool": "mean", "registers": 2},
        {"pool": "token_mean"},
        {"pool": "map"},
    ],
)
def test_the_reading_is_what_the_head_reads(config):
    small = {"patch_size": 4, "depth": 1, "width": 16, "heads": 2, "mlp_width": 32}
    model = VisionTransformer(ViTConfig(**small, image_size=8, num_classes=5, **config)).eval()
    torch.nn.init.normal_(model.patch_embed.proj.weight)
    tape, images = Tape(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model(images, tape=tape)
        read = reading(model, layers_of(model)[-1], tape.get("pool.attention"))
        read = read.expand(2, -1)
        mixed = (read[..., None] * tape["normed"]).sum(1)
    torch.testing.assert_close(read.sum(1), torch.ones(2))
    if config["pool"] == "token_mean":
        class_token, mean = tape["pooled"].chunk(2, dim=1)
        torch.testing.assert_close(mixed, (class_token + mean) / 2)
    elif config["pool"] == "map":
        torch.testing.assert_close(read, tape["pool.attention"].mean(1)[:, 0])
    else:
        torch.testing.assert_close(mixed, tape["pooled"])


def test_discarded_are_each_pictures_smallest_weights():
    attention = torch.tensor([[[[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.05, 0.05, 0.9]]]])
    other = torch.tensor([[[[0.0, 0.0, 1.0]] * 3]])
    both = torch.cat([attention, other])
    kept = fused(both, "mean", discard=4 / 9)
    expected = torch.tensor([[0.6, 0.3, 0], [0, 0.5, 0.3], [0, 0, 0.9]])
    torch.testing.assert_close(kept[0], expected)
    torch.testing.assert_close(kept[1], other[0, 0])
    # Then the identity is added and each row is divided by its own sum (not its column's).
    rolled = rollout([attention], discard=4 / 9)[0]
    mixed = (expected + torch.eye(3)) / 2
    torch.testing.assert_close(rolled, mixed / mixed.sum(1, keepdim=True))


def test_a_row_with_nothing_left_stays_where_it_is():
    attention = torch.tensor([[[[0.9, 0.1], [0.5, 0.5]]]])
    nothing = rollout([attention], residual=0.0, discard=0.99)[0]
    assert nothing.tolist() == [[1, 0], [0, 1]]
    found = flow(
        [layer(line(2))], [fused(attention, "mean", 0.99)], torch.tensor([[0.5, 0.5]]), 0.0
    )
    assert found.flatten().tolist() == [0.5, 0.5]


def test_a_discard_of_everything_is_refused():
    with pytest.raises(Error, match="discard is a share from 0 up to 1, not 1"):
        rollout([torch.eye(3)[None, None]], discard=1)
