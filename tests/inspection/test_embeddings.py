"""Filters and positions, read off the weights and compared with the definition written out."""

import math

import numpy as np
import pytest
import torch

from tests.contract.reduced import shared, small_models
from vitrail.inspection.embeddings import (
    filters,
    position_similarity,
    positions,
    row_column_contrast,
    thinned,
)
from vitrail.inspection.weight_parts import color_scale, positions_part
from vitrail.models.t2t import sinusoids
from vitrail.models.vit import VisionTransformer, ViTConfig
from vitrail.models.zoo import create_model

SMALL = small_models()
TINY = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 16, "num_classes": 3}


def vit(**config) -> VisionTransformer:
    torch.manual_seed(1)
    model = VisionTransformer(ViTConfig(**{**TINY, "patch_size": 4, "image_size": 12, **config}))
    for name, parameter in model.named_parameters():
        if "pos_embed" in name:
            torch.nn.init.normal_(parameter)
    return model


def test_components_are_those_of_the_covariance():
    torch.manual_seed(0)
    model = vit(width=64)
    found = filters(model, 28)
    weights = model.patch_embed.proj.weight.detach().double().permute(0, 2, 3, 1).flatten(1)
    covariance = torch.cov(weights.T)
    values, vectors = torch.linalg.eigh(covariance)
    assert found.components.shape == (28, 4, 4, 3)
    for index in range(28):
        ours = torch.from_numpy(found.components[index].reshape(-1)).double()
        theirs = vectors[:, -1 - index]
        assert abs(float(ours @ theirs)) == pytest.approx(1, abs=1e-5)
        assert ours[ours.abs().argmax()] > 0
    shares = values.flip(0)[:28] / values.sum()
    np.testing.assert_allclose(found.explained, shares, rtol=1e-5)


def test_filters_that_differ_in_one_direction_have_one_component():
    model = vit()
    direction = torch.randn(3, 4, 4)
    scales = torch.randn(24)
    with torch.no_grad():
        model.patch_embed.proj.weight.copy_(scales.view(-1, 1, 1, 1) * direction + 5.0)
    found = filters(model)
    assert found.explained[0] == pytest.approx(1, abs=1e-6)
    expected = (direction / direction.norm()).permute(1, 2, 0).numpy()
    sign = np.sign(expected.flat[np.abs(expected).argmax()])
    np.testing.assert_allclose(found.components[0], sign * expected, atol=1e-5)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_family_has_filters_of_the_picture(name):
    found = filters(shared(name))
    assert found is not None
    count, height, width, channels = found.components.shape
    assert channels == 3
    assert found.weights.shape[1:] == (height, width, 3)
    assert count == min(28, len(found.weights), height * width * 3)
    assert np.isfinite(found.components).all()


def test_similarity_is_the_cosine_of_every_pair_prefix_left_out():
    table = torch.randn(1 + 6, 5)
    found = position_similarity(table, (2, 3), prefix=1)
    assert found.shape == (2, 3, 2, 3)
    for i in range(6):
        for j in range(6):
            a, b = table[1 + i], table[1 + j]
            expected = float(a @ b / (a.norm() * b.norm()))
            assert found[i // 3, i % 3, j // 3, j % 3] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("config", [{}, {"registers": 3}, {"position_on_prefix": False}])
def test_registers_and_class_token_have_no_place(config):
    model = vit(**config)
    (found,), text = positions(model)
    patches = model.pos_embed[0, model.config.position_rows :]
    np.testing.assert_array_equal(found.similarity, position_similarity(patches, (3, 3)))
    assert "learned table" in text


def test_a_table_of_sines_falls_with_distance_as_the_formula_says():
    (found,), text = positions(vit(position="sincos2d_mae"))
    rates = [10000 ** (-i / 6) for i in range(6)]
    for y in range(3):
        for x in range(3):
            expected = sum(math.cos(y * r) + math.cos(x * r) for r in rates) / 12
            assert found.similarity[0, 0, y, x] == pytest.approx(expected, abs=1e-5)
    assert "sines" in text
    t2t = create_model("t2t_vit_7", depth=1, width=32, heads=1, mlp_width=32, image_size=80)
    (found,), _ = positions(t2t)
    rows, columns = t2t.config.grids()[-1]
    table = sinusoids(1 + rows * columns, t2t.config.width)[0, 1:]
    np.testing.assert_allclose(
        found.similarity, position_similarity(table, (rows, columns)), atol=1e-6
    )


def test_relative_keys_of_a_sequence_by_hand():
    model = vit(position="relative")
    (found,), text = positions(model)
    keys = model.pos_embed_offset[0].detach()
    middle = keys[len(keys) // 2]
    for i in range(9):
        for j in range(9):
            key = keys[i - j + len(keys) // 2]  # query's place less key's
            expected = float(key @ middle / (key.norm() * middle.norm()))
            assert found.similarity[i // 3, i % 3, j // 3, j % 3] == pytest.approx(
                expected, abs=1e-6
            )
    assert found.relative
    assert "relative" in text


def test_botnets_relative_tables_by_hand():
    torch.manual_seed(0)
    model = create_model("botnet50_224", depths=(1, 2), widths=(16, 32), heads=2, image_size=12)
    tables, text = positions(model)
    assert [table.name for table in tables] == ["block 0", "block 1"]
    grid = model.config.grids((12, 12))[0]
    part = model.stages[-1][0].attn
    rows, columns = grid
    middle = part.rel_height[rows - 1] + part.rel_width[columns - 1]
    for i in range(rows * columns):
        for j in range(rows * columns):
            down, across = j // columns - i // columns, j % columns - i % columns
            vector = part.rel_height[down + rows - 1] + part.rel_width[across + columns - 1]
            expected = float(torch.cosine_similarity(vector, middle, dim=0).detach())
            found = tables[0].similarity[i // columns, i % columns, j // columns, j % columns]
            assert found == pytest.approx(expected, abs=1e-6)
    assert "relative" in text


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_family_shows_its_positions_or_says_where_they_come_from(name):
    model = shared(name)
    tables, text = positions(model)
    assert text.endswith(".")
    named = [key for key in model.state_dict() if "pos_embed" in key or ".rel_" in key]
    assert bool(tables) == bool(named)
    for table in tables:
        rows, columns = table.similarity.shape[:2]
        assert table.similarity.shape == (rows, columns, rows, columns)
        with_itself = np.einsum("ijij->ij", table.similarity)
        np.testing.assert_allclose(with_itself, 1, atol=1e-5)


def test_rows_and_columns_stand_out_where_they_should():
    rows, columns = torch.randn(5, 32), torch.randn(7, 32)
    table = torch.cat(
        [rows[:, None].expand(5, 7, 32), columns[None].expand(5, 7, 32)], dim=-1
    ).flatten(0, 1)
    assert row_column_contrast(position_similarity(table, (5, 7))) > 0.3
    anything = position_similarity(torch.randn(35, 64), (5, 7))
    assert abs(row_column_contrast(anything)) < 0.05
    assert math.isnan(row_column_contrast(np.ones((1, 4, 1, 4))))


def test_large_grids_are_thinned_with_their_ends():
    places = np.arange(20 * 20, dtype=float).reshape(20, 20, 1, 1) * np.ones((1, 1, 20, 20))
    found = thinned(places, 14)
    assert found.shape == (14, 14, 20, 20)
    assert found[0, 0, 0, 0] == 0
    assert found[-1, -1, 0, 0] == 399


def test_positions_are_drawn_over_the_range_that_they_have():
    close = np.full((2, 2, 2, 2), 0.9, np.float32)
    close[0, 0, 1, 1] = close[1, 1, 0, 0] = 0.8
    close.reshape(4, 4)[np.eye(4, dtype=bool)] = 1
    assert color_scale(close) == pytest.approx((0.8, 0.9))  # 1, every place's own, aside
    close[0, 0, 1, 1] = -0.2
    assert color_scale(close) == (-1, 1)
    assert color_scale(np.ones((3, 3, 3, 3))) == (-1, 1)
    assert color_scale(np.ones((1, 1, 1, 1))) == (-1, 1)
    model = create_model("vit_nano_patch7_28", num_classes=3)
    part = positions_part(model)
    low, high = color_scale(part.arrays["position_similarity"])
    figure = part.figures[0]
    assert f"from {low:.3g} (dark) to {high:.3g} (yellow)" in figure.caption
    shades = {tuple(color) for color in figure.plain.reshape(-1, 3)}
    assert len(shades) > 4  # and not one yellow
