"""transformers' plain ResNet, and torchvision's released files of it."""

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import randomise
from tests.models.resnets import pictures, random_model, small
from tests.weights.conftest import close
from vitrail import WeightsError, create_model, load_model, load_weights
from vitrail.kit.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vitrail.weights.rules import to_ours, to_theirs
from vitrail.weights.transformers_resnet import rules


def theirs_of(model):
    """transformers' network of the same sizes, random."""
    transformers = pytest.importorskip("transformers")
    c = model.config
    config = transformers.ResNetConfig(
        embedding_size=c.stem_width,
        hidden_sizes=list(c.widths),
        depths=list(c.depths),
        num_labels=c.num_classes,
    )
    theirs = transformers.ResNetForImageClassification(config).double().eval()
    randomise(theirs)
    return theirs


def publishers_shapes(config, prefix="resnet."):
    """Names and shapes as transformers/models/resnet/modeling_resnet.py has them."""
    shapes = {}

    def convolution(name, out, into, kernel):
        shapes[f"{prefix}{name}.convolution.weight"] = (out, into, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{prefix}{name}.normalization.{part}"] = (out,)
        shapes[f"{prefix}{name}.normalization.num_batches_tracked"] = ()

    convolution("embedder.embedder", config.stem_width, 3, 7)
    before = config.stem_width
    for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
        for block in range(depth):
            name = f"encoder.stages.{stage}.layers.{block}"
            if block == 0:
                convolution(f"{name}.shortcut", width, before, 1)
            convolution(f"{name}.layer.0", width // 4, before, 1)
            convolution(f"{name}.layer.1", width // 4, width // 4, 3)
            convolution(f"{name}.layer.2", width, width // 4, 1)
            before = width
    classes = config.num_classes
    return {**shapes, "classifier.1.weight": (classes, before), "classifier.1.bias": (classes,)}


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (50, 33)])
def test_transformers_files(tmp_path, size):
    ours = small("resnet")
    theirs = theirs_of(ours)
    state = theirs.state_dict()
    assert {n: tuple(t.shape) for n, t in state.items()} == publishers_shapes(ours.config)
    save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "model.safetensors")
    report = load_weights(ours, tmp_path / "model.safetensors")
    assert (report.family, report.wrappers) == ("transformers", ["resnet."])
    assert report.preprocessing.mean == IMAGENET_MEAN
    assert close(ours(pictures(*size)), theirs(pictures(*size)).logits)
    other = small("resnet", norm_eps=1e-3)
    load_weights(other, state, numerics="keep")
    assert not close(other(pictures(*size)), theirs(pictures(*size)).logits, 1e-7)
    third = {n.replace("layer.0.", "layer.9."): t for n, t in state.items()}
    with pytest.raises(WeightsError, match=r"layer\.9"):
        load_weights(small("resnet"), third)


def test_rules_go_both_ways():
    model = random_model("resnet")
    back = to_ours(rules(model.config), to_theirs(rules(model.config), model.state_dict()))
    assert not back.unknown + back.lacking + back.misshapen
    assert all(torch.equal(back.tensors[n], t) for n, t in model.state_dict().items())


def test_the_folder_says_what_it_is(tmp_path):
    theirs = theirs_of(small("resnet")).float()
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.config.depths == small("resnet").config.depths
    x = pictures().float()
    with torch.no_grad():
        assert close(model(x), theirs(x).logits, 1e-4)
    theirs.config.downsample_in_bottleneck = True  # another network, which ours is not
    theirs.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="not in the zoo"):
        load_model(tmp_path / "other")


@pytest.mark.parametrize(
    ("file", "family", "crop"),
    [
        ("resnet50-0676ba61.pth", "torchvision", 0.875),
        ("resnet50-11ad3fa6.pth", "torchvision", 224 / 232),
        ("resnet50_a1_0-14fe96d1.pth", "timm", 0.5),
        ("mine.pth", "timm", 0.5),
    ],
)
def test_files_that_torchvision_released_are_its_own(tmp_path, file, family, crop):
    """Their names and shapes are timm's; what they are called tells them."""
    theirs, ours = random_model("resnet"), small("resnet")
    ours.preprocessing = ours.preprocessing.replace(crop=0.5)
    torch.save(theirs.state_dict(), tmp_path / file)
    report = load_weights(ours, tmp_path / file)
    assert (report.family, report.preprocessing.crop) == (family, crop)
    if family == "torchvision":
        assert (report.preprocessing.mean, report.preprocessing.std) == (
            IMAGENET_MEAN,
            IMAGENET_STD,
        )
        assert report.preprocessing.interpolation == "bilinear"
    assert torch.equal(ours(pictures()), theirs(pictures()))


def test_files_from_before_the_counters_are_torchvisions(tmp_path):
    state = {n: t for n, t in random_model("resnet").state_dict().items() if "batches" not in n}
    torch.save(state, tmp_path / "x.pth")
    assert load_weights(small("resnet"), tmp_path / "x.pth").family == "torchvision"


def test_the_full_size_has_the_names_and_shapes_of_the_file():
    with torch.device("meta"):
        model = create_model("resnet50")
    theirs = to_theirs(rules(model.config), model.state_dict())
    prefixed = {n if n.startswith("classifier") else f"resnet.{n}": t for n, t in theirs.items()}
    assert {n: tuple(t.shape) for n, t in prefixed.items()} == publishers_shapes(model.config)
