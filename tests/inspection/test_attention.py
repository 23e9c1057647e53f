import math

import pytest
import torch

from vitrail.inspection.attention import attention_distance, entropy, rollout
from vitrail.kit.errors import Error


def random_attention(b=2, h=3, n=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(b, h, n, n, generator=generator, dtype=torch.float64).softmax(-1)


def test_attention_to_oneself_goes_no_way():
    identity = torch.eye(10).expand(2, 3, 10, 10)
    assert attention_distance(identity, 3, 16).tolist() == [[0.0] * 3] * 2


def test_attention_to_the_right_hand_neighbour_goes_one_patch():
    # 2 rows of 3 patches, each attending to the next column, the last one to itself.
    shift = torch.zeros(1, 1, 6, 6)
    for row in range(2):
        for column in range(3):
            shift[0, 0, 3 * row + column, 3 * row + min(column + 1, 2)] = 1
    distance = attention_distance(shift, (2, 3), (8, 16), prefix=0)
    assert distance.item() == pytest.approx(2 / 3 * 16)


def test_uniform_attention_on_the_papers_grid():
    # L/16 at 224: the mean distance of two patches of a 14 x 14 grid of 16 pixels.
    uniform = torch.full((1, 1, 197, 197), 1 / 197)
    side = [abs(i - j) for i in range(14) for j in range(14)]
    expected = 16 * sum(math.hypot(y, x) for y in side for x in side) / len(side) ** 2
    assert attention_distance(uniform, 14, 16).item() == pytest.approx(expected, rel=1e-5)
    corner = torch.zeros(1, 1, 4, 4)
    corner[..., 0, 3] = corner[..., 3, 0] = corner[..., 1, 2] = corner[..., 2, 1] = 1
    assert attention_distance(corner, 2, 16, prefix=0).item() == pytest.approx(16 * math.sqrt(2))


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_distance_equals_the_definition_written_out(prefix):
    rows, columns, height, width = 2, 3, 4, 7
    attention = random_attention(n=prefix + rows * columns)
    found = attention_distance(attention, (rows, columns), (height, width), prefix)
    for b in range(2):
        for h in range(3):
            total = 0.0
            for i in range(rows * columns):
                weights = attention[b, h, prefix + i, prefix:]
                for j in range(rows * columns):
                    y = (i // columns - j // columns) * height
                    x = (i % columns - j % columns) * width
                    total += float(weights[j] / weights.sum()) * math.hypot(y, x)
            assert found[b, h].item() == pytest.approx(total / (rows * columns), rel=1e-12)


def test_patches_that_see_only_the_class_token_do_not_count():
    attention = torch.zeros(1, 2, 3, 3)
    attention[..., 0] = 1
    attention[0, 0, 1] = torch.tensor([0.5, 0, 0.5])  # one patch looks at its neighbour
    distance = attention_distance(attention, (1, 2), 16)
    assert distance[0, 0].item() == 16
    assert math.isnan(distance[0, 1].item())


@pytest.mark.parametrize(
    ("grid", "prefix", "keys"), [(3, 0, 10), (4, 1, 10), ((3, 3), 1, 5), (3, 5, 10)]
)
def test_a_grid_that_does_not_fit_is_refused(grid, prefix, keys):
    with pytest.raises(Error, match="does not fit a grid of"):
        attention_distance(torch.ones(1, 1, 10, keys), grid, 16, prefix)


def test_entropy_is_nothing_for_one_key_and_the_logarithm_for_all():
    assert entropy(torch.eye(9).expand(2, 3, 9, 9)).tolist() == [[0.0] * 3] * 2
    uniform = torch.full((1, 1, 5, 8), 1 / 8)  # reduced attention: fewer keys than queries
    assert entropy(uniform).item() == pytest.approx(math.log(8))
    half = torch.tensor([[0.5, 0.5], [1.0, 0.0]])[None, None]
    assert entropy(half).item() == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("residual", [0.5, 0.0, 0.3])
@pytest.mark.parametrize("fuse", ["mean", "max", "min"])
def test_rollout_equals_the_paper_written_out(fuse, residual):
    layers = [random_attention(seed=seed) for seed in range(3)]
    found = rollout(layers, fuse, residual)
    n = 7
    for b in range(2):
        rolled = [[float(i == j) for j in range(n)] for i in range(n)]
        for layer in layers:
            mixed = []
            for i in range(n):
                heads = layer[b, :, i].tolist()
                if fuse == "mean":
                    row = [sum(column) / 3 for column in zip(*heads, strict=True)]
                else:
                    row = [{"max": max, "min": min}[fuse](c) for c in zip(*heads, strict=True)]
                row = [(1 - residual) * a + residual * (i == j) for j, a in enumerate(row)]
                mixed.append([a / sum(row) for a in row])
            rolled = [
                [sum(mixed[i][m] * rolled[m][j] for m in range(n)) for j in range(n)]
                for i in range(n)
            ]
        torch.testing.assert_close(found[b], torch.tensor(rolled, dtype=torch.float64))


def test_rollout_keeps_all_that_flows():
    found = rollout([random_attention(seed=seed) for seed in range(4)])
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 7, dtype=torch.float64))
    identity = torch.eye(7, dtype=torch.float64).expand(2, 3, 7, 7)
    torch.testing.assert_close(rollout([identity] * 3), identity[:, 0])
    uniform = torch.full((1, 2, 4, 4), 0.25)
    expected = torch.full((4, 4), 0.125) + 0.5 * torch.eye(4)
    torch.testing.assert_close(rollout([uniform])[0], expected)


def test_the_last_layer_stands_leftmost():
    # First token 1 reads token 2, then token 0 reads token 1: so token 0 holds token 2.
    first, second = torch.eye(3)[None, None].clone(), torch.eye(3)[None, None].clone()
    first[0, 0, 1] = torch.tensor([0.0, 0.0, 1.0])
    second[0, 0, 0] = torch.tensor([0.0, 1.0, 0.0])
    assert rollout([first, second], residual=0)[0, 0].tolist() == [0, 0, 1]
    assert rollout([second, first], residual=0)[0, 0].tolist() == [0, 1, 0]


def test_what_cannot_be_rolled_out_is_refused():
    with pytest.raises(Error, match="the tape holds none"):
        rollout([])
    with pytest.raises(Error, match="did you mean 'mean'"):
        rollout([random_attention()], fuse="meen")
    with pytest.raises(Error, match="not 2"):
        rollout([random_attention()], residual=2)
    with pytest.raises(Error, match="every token attending to all"):
        rollout([random_attention()[..., :4]])
    with pytest.raises(Error, match="one number of tokens"):
        rollout([random_attention(n=7), random_attention(n=5)])
