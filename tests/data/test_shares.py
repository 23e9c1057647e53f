"""Processes share out every batch of every kind of sampling, and of streams."""

import pytest
import torch

from tests.data.layouts import class_label, write_parquet
from tests.data.pictures import encoded, smooth
from vitrail.data.loader import train_batches
from vitrail.data.sources import open_source
from vitrail.data.stream import open_stream
from vitrail.data.transforms import Augment
from vitrail.kit.preprocess import Preprocessing

SIZE = Preprocessing(size=(8, 8))
STRONG = Augment(crop="inception", flip=0.5, jitter=0.3)


@pytest.mark.parametrize(
    "words",
    [{}, {"sampling": "balanced"}, {"sampling": "nearby"}, {"repeats": 3}, {"stream": True}],
)
@pytest.mark.parametrize("world", [2, 4])
def test_shares_of_a_batch_are_its_rows(tmp_path, monkeypatch, words, world):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    pictures = [encoded(smooth(12, 10, seed=k)) for k in range(20)]
    label = class_label(["a", "b"])
    write_parquet(
        tmp_path / "set" / "train.parquet", pictures, [0, 1, 1, 1] * 5, label, row_group_size=5
    )
    stream = words.get("stream")
    data = open_stream(f"hf:{tmp_path}/set", window=7) if stream else open_source(tmp_path / "set")
    options = {k: v for k, v in words.items() if k != "stream"} | {"seed": 2, "stop_sample": 45}
    whole = list(train_batches(data, SIZE, STRONG, 9, **options))
    shares = [
        list(
            train_batches(
                data,
                SIZE,
                STRONG,
                9,
                rank=rank,
                world=world,
                before=True,
                workers=rank % 2,
                **options,
            )
        )
        for rank in range(world)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        for name in ("images", "labels", "indices", "epochs", "repeats"):
            assert torch.equal(
                torch.cat([getattr(part, name) for part in parts]), getattr(batch, name)
            )
        assert [key for part in parts for key in part.keys] == batch.keys
        first = 0
        for part in parts:
            assert (part.epoch, part.position) == (batch.epoch, batch.position)
            image, label = part.before
            assert torch.equal(image[0], batch.images[first - 1])
            assert label[0] == batch.labels[first - 1]
            first += len(part.keys)
