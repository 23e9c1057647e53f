"""One short run of every family through the real loop, to a folder that opens and a report."""

import numpy as np
import pytest

import vitrail

STAGES = {"model.depths": [1, 1, 1, 1]}
RUNS = {
    "vit_nano_patch7_28": {},
    "deit_tiny_distilled_patch16_224": {"model.depth": 1},
    "vit_small_patch14_reg4_dinov2": {"model.depth": 1, "model.width": 64, "model.heads": 2},
    "vit_tiny_r_s16_p8_224": {"model.depth": 1},
    "resnet50": STAGES,
    "resnetv2_50x1_bit": STAGES,
    "botnet50_224": STAGES,
    "cvt_13_224": {"model.depths": [1, 1, 1]},
    "t2t_vit_7": {"model.depth": 1},
    "pvt_tiny": STAGES,
    "pvt_v2_b0": STAGES,
}


@pytest.mark.parametrize("name", RUNS)
def test_every_family_trains_opens_and_answers(name, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 40, 40, 3), dtype=np.uint8)
    labels = np.arange(30) % 3
    size = {"vit_nano_patch7_28": 28, "vit_small_patch14_reg4_dinov2": 56}.get(name, 64)
    run = vitrail.train(
        (images, labels),
        model=name,
        out=tmp_path / "run",
        image_size=size,
        steps=2,
        batch_size=6,
        set={**RUNS[name], "model.drop_path": 0.1},
    )
    assert run.report is not None
    assert run.report.stat().st_size > 10_000
    before = vitrail.Classifier(run.folder).logits(list(images[:4]))
    assert np.isfinite(before).all()
    again = vitrail.train(
        (images, labels), weights=run.folder, out=tmp_path / "again", steps=1, batch_size=6
    )
    assert type(vitrail.load_model(again.folder)) is type(vitrail.load_model(run.folder))
