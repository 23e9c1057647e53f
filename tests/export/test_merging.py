"""Token merging: what the paper says, in every runtime, and nothing where none are merged."""

import numpy as np
import pytest
import torch

from tests.export.small import pictures, sure_model
from tests.export.test_fold import build, bytes_for, normalise
from vitrail.export.fold import FoldedTransformer, fold
from vitrail.export.make import GraphWriter
from vitrail.export.merging import MergingTransformer, fold_merging, merge
from vitrail.export.runtime import OnnxRuntime, OpenVinoRuntime
from vitrail.kit.errors import Error


def merged_by_hand(x, sizes, keys, count, first):
    """One picture: the paper's steps one pair at a time. [n d], [n], [n e] to lists of both."""
    going = list(range(first, len(x), 2))
    staying = list(range(1 - first, len(x), 2))
    unit = keys / keys.norm(dim=-1, keepdim=True)
    edges = []
    for i in going:
        likeness = [float(unit[i] @ unit[j]) for j in staying]
        edges.append((max(likeness), i, staying[int(np.argmax(likeness))]))
    sums = {j: x[j] * sizes[j] for j in staying}
    counts = {j: float(sizes[j]) for j in staying}
    gone = set()
    for _, i, j in sorted(edges, reverse=True)[:count]:
        sums[j] = sums[j] + x[i] * sizes[i]
        counts[j] += float(sizes[i])
        gone.add(i)
    left = [i for i in going if i not in gone]
    tokens = [x[i] for i in left] + [sums[j] / counts[j] for j in staying]
    return torch.stack(tokens), torch.tensor([float(sizes[i]) for i in left] + [*counts.values()])


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("n", "count"), [(16, 1), (15, 4), (16, 8), (17, 8)])
def test_pairs_are_merged_as_by_hand(n, count, first):
    generator = torch.Generator().manual_seed(n + first)
    x, keys = (torch.randn(3, n, d, generator=generator, dtype=torch.float64) for d in (6, 5))
    sizes = torch.randint(1, 5, (3, n, 1), generator=generator).double()
    tokens, grown = merge(x, sizes, keys, count, first)
    assert tokens.shape == (3, n - count, 6)
    assert torch.equal(grown.sum(1), sizes.sum(1))  # no patch is lost
    assert torch.allclose((tokens * grown).sum(1), (x * sizes).sum(1))
    for i in range(3):
        expected, counts = merged_by_hand(x[i], sizes[i, :, 0], keys[i], count, first)
        assert torch.allclose(tokens[i], expected, atol=1e-12)
        assert torch.equal(grown[i, :, 0], counts)


def forward_by_hand(model, image, count):
    """One normalised picture [1 3 h w] through the model's own parts, merging by hand."""
    c = model.config
    x = model.norm_pre(model.embed(model.project(image)))[0]
    sizes = torch.ones(len(x), dtype=x.dtype)
    for block in model.blocks:
        normed = block.norm1(x[None])
        qkv = block.attn.qkv(normed).reshape(1, len(x), 3, c.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        logits = query @ key.mT * block.attn.scale + sizes.log()
        mixed = (logits.softmax(-1) @ value).transpose(1, 2).reshape(1, len(x), -1)
        x = x + block.ls1(block.attn.proj(mixed))[0]
        here = min(count, (len(x) - c.prefix) // 2)
        patches, grown = merged_by_hand(
            x[c.prefix :], sizes[c.prefix :], key[0].mean(0)[c.prefix :], here, c.prefix % 2
        )
        x = torch.cat([x[: c.prefix], patches])
        sizes = torch.cat([sizes[: c.prefix], grown.to(x.dtype)])
        x = x + block.ls2(block.mlp(block.norm2(x[None])))[0]
    x = model.norm(x)
    if c.distilled:
        return (model.head(x[0]) + model.head_dist(x[1])) / 2
    mean = (x[c.prefix :] * sizes[c.prefix :, None]).sum(0) / sizes[c.prefix :].sum()
    pooled = {"token": x[0], "mean": mean, "token_mean": torch.cat([x[0], mean])}[c.pool]
    return model.head(model.pre_logits(model.fc_norm(pooled)))


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", ["token", "mean", "mean_norm_after", "token_mean", "registers", "distilled", "hybrid"]
)
def test_a_folded_model_merges_as_the_model_by_hand(kind):
    model = build(kind)
    images = bytes_for(model, batch=3)
    patches = model.config.grid[0] * model.config.grid[1]
    count = max(1, patches // 4)
    got = fold_merging(model, count)(images)
    expected = torch.stack(
        [forward_by_hand(model, image[None], count) for image in normalise(model, images)]
    )
    assert (got - expected).abs().max() < 1e-9 * expected.abs().max()
    exact = fold(model)(images)
    assert (got - exact).abs().max() > 1e-6 * exact.abs().max()  # it did something


def test_none_merged_is_the_plain_graph():
    model = sure_model(patch_size=4)
    none, plain = fold_merging(model, 0), fold(model)
    assert type(none) is FoldedTransformer
    assert all(torch.equal(a, b) for a, b in zip(*map(tensors_of, (none, plain)), strict=True))
    images = torch.from_numpy(pictures(4, side=32))
    assert torch.equal(none(images), plain(images))


def tensors_of(module):
    return list(module.state_dict().values())


@pytest.mark.parametrize("to", ["openvino", pytest.param("onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("pool", ["token", pytest.param("mean", marks=pytest.mark.slow)])
def test_a_merging_graph_is_the_same_in_every_runtime(to, pool, tmp_path):
    pytest.importorskip({"openvino": "openvino", "onnx": "onnxruntime"}[to])
    model = sure_model(patch_size=4, depth=3, pool=pool, class_token=pool == "token")
    images = np.stack([model.preprocessing.geometry(image) for image in pictures(40)])
    folded = fold_merging(model, 9)
    assert isinstance(folded, MergingTransformer)
    assert folded.merged == ([9, 9, 0] if pool == "token" else [9, 9, 9])
    assert folded.left == 64 - sum(folded.merged)
    expected = folded(torch.from_numpy(images)).numpy()
    GraphWriter(model, to, merge=9).write(tmp_path, "fp32")
    kind, name = {"openvino": (OpenVinoRuntime, "model.xml"), "onnx": (OnnxRuntime, "model.onnx")}[
        to
    ]
    logits = kind(tmp_path / name, threads=1).logits
    for size in (1, 2, 7):
        got = np.concatenate([logits(images[i : i + size]) for i in range(0, 40, size)])
        # Which of two nearly equal pairs goes may differ, so one picture in forty may.
        same = np.abs(got - expected).max(1) < 1e-4
        assert same.mean() >= 0.97
        assert (got.argmax(1) == expected.argmax(1))[same].all()


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("map", "pooling is 'map'"),
        ("relative", "every layer adds positions"),
        ("every_layer", "every layer adds positions"),
        ("cvt", "not in a CvT"),
        ("t2t", "not in a T2TViT"),
    ],
)
def test_what_cannot_merge_says_so(kind, sentence):
    with pytest.raises(Error, match=sentence):
        fold_merging(build(kind), 1)


def test_more_than_half_of_the_patches_is_refused():
    for count in (33, -1):
        with pytest.raises(Error, match="half of the 64 patches"):
            fold_merging(sure_model(patch_size=4), count)
    fold_merging(sure_model(patch_size=4), 32)
