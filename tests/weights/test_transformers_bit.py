"""transformers' BiT, and hybrids put together of its BiT backbone and its ViT."""

import dataclasses

import pytest
import torch

from tests.conftest import randomise
from tests.models.oracles import transformers_names, transformers_twin
from tests.models.resnets import VIT, pictures, small
from tests.weights.conftest import close
from vitrail import WeightsError, load_weights
from vitrail.models.vit import VisionTransformer, ViTConfig

pytest.importorskip("transformers")
STAGES = {"embedding_size": 32, "hidden_sizes": [128, 256], "depths": [1, 2]}


def bit():
    from transformers import BitConfig, BitForImageClassification

    model = BitForImageClassification(BitConfig(**STAGES, num_labels=7)).double().eval()
    randomise(model)
    return model


def hybrid():
    """Their ResNet, their ViT on its 4x4 map, and the file that ViT-Hybrid makes of both."""
    from transformers import BitBackbone, BitConfig

    options = {"layer_type": "bottleneck", "global_padding": "same"}
    options |= {"embedding_dynamic_padding": True, "out_features": ["stage2"]}
    resnet = BitBackbone(BitConfig(**STAGES, **options)).double().eval()
    randomise(resnet)
    config = ViTConfig(**VIT, patch_size=1, image_size=4, in_channels=256, num_classes=7)
    plain = VisionTransformer(dataclasses.replace(config, norm_eps=1e-12)).double().eval()
    randomise(plain)
    vit = transformers_twin(plain)
    # A file has the names that transformers 4 had in memory too.
    root = "vit.embeddings.patch_embeddings.backbone."
    file = transformers_names(plain.state_dict(), "vit.")
    file |= {root + name: tensor for name, tensor in resnet.state_dict().items()}
    return file, lambda images: vit(resnet(images).feature_maps[-1]).logits


@pytest.mark.parametrize("size", [(32, 32), (50, 33)])
def test_bit_gives_transformers_logits(tmp_path, size):
    theirs, ours = bit(), small("bit", standardize_eps=1e-10)
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    report = load_weights(ours, tmp_path / "x.pth")
    assert (report.family, report.wrappers) == ("transformers", ["bit."])
    assert report.numerics == {"standardize_eps": (1e-10, 1e-8)}
    with torch.no_grad():
        assert close(ours(pictures(*size)), theirs(pictures(*size)).logits)


def test_hybrids_give_transformers_logits(tmp_path):
    file, forward = hybrid()
    torch.save(file, tmp_path / "x.pth")
    ours = small("hybrid")
    report = load_weights(ours, tmp_path / "x.pth")
    assert report.family == "transformers"
    assert set(report.matched) == set(ours.state_dict())
    assert report.numerics["norm_eps"] == (1e-6, 1e-12)
    with torch.no_grad():
        assert close(ours(pictures()), forward(pictures()))


def test_a_backbone_without_its_head():
    state = bit().state_dict()
    headless = {n: t for n, t in state.items() if not n.startswith("classifier")}
    with pytest.raises(WeightsError, match="has no head"):
        load_weights(small("bit"), headless)
    ours = small("bit", num_classes=0)
    assert load_weights(ours, state).dropped == ["classifier.1.weight", "classifier.1.bias"]
    bare = {n.removeprefix("bit."): t for n, t in headless.items()}
    report = load_weights(small("bit"), bare, fresh=("head",))
    assert report.fresh == ["head.fc.weight", "head.fc.bias"]


def test_missing_and_unexpected_tensors_are_named():
    state = bit().state_dict()
    del state["bit.encoder.stages.1.layers.1.norm2.bias"]
    state["bit.encoder.stages.1.layers.2.norm2.bias"] = torch.ones(64)
    with pytest.raises(WeightsError) as caught:
        load_weights(small("bit"), state)
    assert caught.value.missing == ["stages.1.blocks.1.norm2.bias"]
    assert caught.value.unexpected == ["bit.encoder.stages.1.layers.2.norm2.bias"]
    with pytest.raises(WeightsError, match="transformers' BiT"):
        load_weights(small("resnet"), state)
