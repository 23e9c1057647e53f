"""Duplicates are found, whatever was done to them, and nothing else is."""

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.doctor.planting import KINDS, changed, encoded, scene
from vitrail.data.examples import ArraySource, Source
from vitrail.evaluation.doctor.duplicates import aligned, detail_of, duplicates, groups, unit
from vitrail.evaluation.doctor.prints import look


class Files(Source):
    """Encoded pictures in memory."""

    def __init__(self, files, labels=None, classes=("a", "b")):
        self.name, self.classes, self.files = "files", classes, list(files)
        self.labels = np.array(labels if labels is not None else [0] * len(self.files), np.int64)
        self.keys = [f"{i}.jpg" for i in range(len(self.files))]

    def image(self, i):
        return self.files[i]

    def size(self, i):
        return len(self.files[i])


SCENES = [encoded(scene(seed)) for seed in range(60)]


def test_every_kind_is_found_and_nothing_else():
    planted = [changed(SCENES[i], KINDS[i % len(KINDS)]) for i in range(48)]
    prints = look(Files([*SCENES, *planted]), threads=1)
    found = duplicates(prints).pairs
    assert [(pair.a, pair.b) for pair in found] == [(i, 60 + i) for i in range(48)]
    for pair in found:
        kind = KINDS[pair.a % len(KINDS)]
        assert pair.exact == (kind == "exact"), kind
        assert pair.mirrored == (kind == "mirrored"), kind
        assert pair.score > 0.955


def test_between_two_sets():
    planted = [changed(SCENES[i], KINDS[i % len(KINDS)]) for i in range(12)]
    found = duplicates(look(Files(SCENES), threads=1), look(Files(planted), threads=1)).pairs
    assert [(pair.a, pair.b) for pair in found] == [(i, i) for i in range(12)]


def test_a_horizon_is_no_duplicate():
    def landscape(seed: int) -> bytes:
        rows = np.where(np.arange(64) < 32, 200.0, 90.0)[:, None, None]
        noise = np.random.default_rng(seed).normal(0, 6, (64, 64, 3))
        return encoded(Image.fromarray(np.clip(rows + noise, 0, 255).astype(np.uint8)))

    prints = look(Files([landscape(seed) for seed in range(12)]), threads=1)
    flat = np.asarray(prints.thumbs, np.float32).reshape(12, -1)
    assert np.corrcoef(flat).min() > 0.95  # alike they are
    assert duplicates(prints).pairs == []


def test_every_pair_of_a_group_is_listed():
    one = SCENES[0]
    family = [one, one, changed(one, "half"), changed(one, "recompressed")]
    found = duplicates(look(Files([*family, SCENES[1]]), threads=1)).pairs
    assert {(p.a, p.b) for p in found} == {(a, b) for a in range(4) for b in range(a + 1, 4)}
    assert groups(5, found) == [[0, 1, 2, 3]]


def test_blocks_do_not_change_what_is_found(monkeypatch):
    from vitrail.evaluation.doctor import duplicates as module

    planted = [changed(SCENES[i], KINDS[i % len(KINDS)]) for i in range(24)]
    prints = look(Files([*SCENES, *planted]), threads=1)
    whole = duplicates(prints)
    monkeypatch.setattr(module, "PRODUCT", 84 * 7)
    assert duplicates(prints) == whole


def test_alignment_undoes_a_crop():
    image = scene(5, 400, 400)
    cut = image.crop((20, 0, 400, 380))  # 5 % away, from the left and the bottom
    prints = look(Files([encoded(image), encoded(cut)]), threads=1)
    import torch

    a, b = torch.from_numpy(prints.thumbs).float()[:, None].unbind(0)
    whole, detail = aligned(a, b)
    small = torch.nn.functional.avg_pool2d(torch.stack([a, b]), 2)
    plain = (unit(small[0]) * unit(small[1])).sum()
    assert whole > 0.995
    assert detail > 0.98
    assert plain < whole - 0.02


def test_what_is_left_of_a_thumbnail_has_no_rows_and_columns():
    import torch

    image = torch.randn(3, 8, 8)
    assert detail_of(image).mean(-1).abs().max() < 1e-6
    assert detail_of(image).mean(-2).abs().max() < 1e-6


def test_unreadable_pictures_are_named_and_are_no_duplicates():
    files = [SCENES[0], b"no picture", b"no picture", SCENES[0][:100]]
    prints = look(Files(files), threads=1)
    assert [key for key, _ in prints.unreadable] == ["1.jpg", "2.jpg", "3.jpg"]
    assert duplicates(prints).pairs == []


@pytest.mark.parametrize("threads", [1, 3])
def test_prints_do_not_depend_on_threads(threads):
    prints = look(Files(SCENES[:20]), threads=threads)
    again = look(Files(SCENES[:20]), threads=1)
    assert (prints.thumbs == again.thumbs).all()
    assert (prints.digests == again.digests).all()
    assert prints.sizes.tolist() == [[96, 72]] * 20


def test_clothes_are_no_duplicates_of_each_other():
    """Where everything resembles everything, only what is nearly the same counts."""
    from vitrail.data import fashion

    source = fashion.load()["test"]
    images = source.arrays(np.arange(1500))
    planted = images[:40].astype(int) + np.random.default_rng(0).integers(-3, 4, images[:40].shape)
    every = np.concatenate([images, np.clip(planted, 0, 255).astype(np.uint8)])
    prints = look(ArraySource(every, np.zeros(len(every), int), ["x"]), threads=1)
    found = duplicates(prints)
    assert found.level > 0
    pairs = {(pair.a, pair.b) for pair in found.pairs}
    assert len({(i, 1500 + i) for i in range(40)} & pairs) >= 36
    assert len(pairs) < 1500
