"""Patches and position tables, against the libraries whose tables they must be."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

import tests.reference.torchvision_stub  # noqa: F401  (before timm)
from vitrail import Error
from vitrail.kit.grid import (
    RESIZES,
    check_divides,
    patchify,
    resize_table,
    sincos2d,
    sincos2d_mae,
)

SIZES = [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((4, 6), (9, 5)), ((14, 14), (24, 32))]


def table(grid, prefix=1, width=6, dtype=torch.float32):
    """A table with structure at every scale, so that the ways of resizing differ."""
    generator = torch.Generator().manual_seed(5)
    rows = prefix + grid[0] * grid[1]
    return torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(
    ("how", "interpolation", "antialias"),
    [("bicubic_antialias", "bicubic", True), ("bilinear", "bilinear", False)],
)
def test_timms(old, new, prefix, how, interpolation, antialias):
    from timm.layers import resample_abs_pos_embed

    ours = table(old, prefix)[None]
    theirs = resample_abs_pos_embed(
        ours, list(new), list(old), prefix, interpolation=interpolation, antialias=antialias
    )
    torch.testing.assert_close(resize_table(ours, old, new, how, prefix), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_googles_zoom(old, new):
    ours = table(old, 1, dtype=torch.float64)
    picture = ours[1:].reshape(*old, -1).numpy()
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    expected = scipy.ndimage.zoom(picture, zoom, order=1).reshape(-1, ours.shape[-1])
    resized = resize_table(ours, old, new, "bilinear_corners", 1)
    np.testing.assert_allclose(resized[1:].numpy(), expected, rtol=0, atol=1e-12)
    assert torch.equal(resized[0], ours[0])


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize(("how", "corners"), [("bicubic", False), ("bicubic_corners", True)])
def test_facebooks_and_torchvisions_bicubic(old, new, how, corners):
    ours = table(old, 1)
    picture = ours[1:].T.reshape(1, -1, *old)
    expected = F.interpolate(picture, new, mode="bicubic", align_corners=corners)
    resized = resize_table(ours, old, new, how, 1)
    torch.testing.assert_close(resized[1:], expected[0].flatten(1).T, rtol=0, atol=1e-6)


def test_the_ways_of_resizing_all_differ():
    for new in [(9, 9), (5, 5)]:
        ways = [resize_table(table((7, 7)), (7, 7), new, how, 1) for how in RESIZES]
        for i, one in enumerate(ways):
            for j, other in enumerate(ways[:i]):
                alike = torch.allclose(one, other, atol=1e-3)
                assert not alike, (new, list(RESIZES)[i], list(RESIZES)[j])


@pytest.mark.parametrize("how", RESIZES)
def test_what_every_way_keeps(how):
    flat = torch.full((2 + 9, 4), 3.0)
    torch.testing.assert_close(resize_table(flat, (3, 3), (5, 2), how, 2), flat[:1].expand(12, 4))
    original = table((4, 6), 3)
    same = resize_table(original, (4, 6), (4, 6), how, 3)
    assert torch.equal(same, original)
    # the same number of patches in another shape is another table
    turned = resize_table(original, (4, 6), (6, 4), how, 3)
    assert turned.shape == original.shape
    assert torch.equal(turned[:3], original[:3])
    assert not torch.allclose(turned, original)
    # rows and columns are not mixed up: resizing the transposed grid is transposing the result
    picture = original[3:].reshape(4, 6, -1)
    across = resize_table(picture.transpose(0, 1).reshape(24, -1), (6, 4), (9, 5), how)
    down = resize_table(picture.reshape(24, -1), (4, 6), (5, 9), how)
    torch.testing.assert_close(
        across.reshape(9, 5, -1).transpose(0, 1), down.reshape(5, 9, -1), rtol=0, atol=1e-5
    )


def test_dtypes_and_the_leading_axis():
    small = table((4, 4))
    expected = resize_table(small, (4, 4), (6, 6), "bicubic", 1)
    for dtype, gap in [(torch.float64, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)]:
        resized = resize_table(small.to(dtype)[None], (4, 4), (6, 6), "bicubic", 1)
        assert resized.dtype == dtype
        assert resized.shape == (1, 37, 6)
        torch.testing.assert_close(resized[0].float(), expected, rtol=0, atol=gap)


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(Error, match="17 rows does not cover a grid of 4x5 and 1 prefix"):
        resize_table(table((4, 4)), (4, 5), (6, 6), "bicubic", 1)


@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (1, 1)])
def test_sincos_tables_by_their_formulas(grid):
    width = 16
    for ours, divisor in [(sincos2d, width // 4 - 1), (sincos2d_mae, width // 4)]:
        expected = []
        for y in range(grid[0]):
            for x in range(grid[1]):
                rates = [10000 ** (-i / divisor) for i in range(width // 4)]
                expected.append(
                    [math.sin(x * r) for r in rates]
                    + [math.cos(x * r) for r in rates]
                    + [math.sin(y * r) for r in rates]
                    + [math.cos(y * r) for r in rates]
                )
        computed = ours(grid, width)
        assert computed.dtype == torch.float32
        torch.testing.assert_close(computed, torch.tensor(expected), rtol=0, atol=1e-6)


def test_the_two_sincos_tables_are_not_the_same():
    assert (sincos2d((14, 14), 64) - sincos2d_mae((14, 14), 64)).abs().max() > 0.2


@pytest.mark.parametrize(("make", "width"), [(sincos2d, 6), (sincos2d, 4), (sincos2d_mae, 2)])
def test_sincos_tables_refuse_widths_that_they_cannot_fill(make, width):
    with pytest.raises(Error, match=f"multiple of 4.* not {width}|above 4.* not {width}"):
        make((2, 2), width)


def test_patchify_cuts_row_by_row_with_channels_last():
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            window = images[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[1, 3 * row + column], window.permute(1, 2, 0).flatten())
    with pytest.raises(Error, match="use 4 or 6"):
        patchify(torch.zeros(1, 3, 4, 5), 2)


@pytest.mark.parametrize(
    ("size", "patch", "sentence"),
    [
        ((225, 224), 16, "225x224 cannot be cut into patches of 16: 225 is not.*use 224 or 240"),
        ((224, 230), 14, "230 is not a multiple of 14; use 224 or 238"),
        ((8, 32), 16, "8 is not a multiple of 16; use 16$"),
        ((0, 32), 16, "0 is not a multiple"),
    ],
)
def test_a_size_that_the_patch_does_not_divide_names_the_nearest(size, patch, sentence):
    with pytest.raises(Error, match=sentence):
        check_divides(size, patch)
    check_divides((patch, 10 * patch), patch)
