import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import randomise
from vitrail.kit.errors import WeightsError
from vitrail.models.zoo import from_config
from vitrail.weights import facebook, google, timm
from vitrail.weights.rules import Rule, misfit, to_ours, to_theirs, under


@st.composite
def models(draw):
    heads, head_width = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    pool = draw(st.sampled_from(["token", "mean", "map"]))
    model = from_config(
        "vit",
        {
            "patch_size": draw(st.integers(1, 3)),
            "image_size": 6,
            "depth": draw(st.integers(1, 3)),
            "heads": heads,
            "width": heads * head_width,
            "mlp_width": draw(st.integers(1, 7)),
            "num_classes": draw(st.integers(0, 3)),
            "in_channels": draw(st.integers(1, 3)),
            "pool": pool,
            "qkv_bias": draw(st.booleans()),
            "pre_logits": draw(st.booleans()),
        },
    )
    randomise(model)
    return model


@settings(max_examples=30, deadline=None)
@given(model=models(), newer=st.booleans())
def test_google_there_and_back(model, newer):
    rules, ours = google.rules(model.config, newer), model.state_dict()
    there = to_theirs(rules, ours)
    back = to_ours(rules, there)
    assert [] == back.unknown == back.lacking == back.misshapen
    assert back.tensors.keys() == ours.keys()
    assert all(torch.equal(back.tensors[name], ours[name]) for name in ours)
    # nothing is written twice, nothing is left out: as many numbers there as here
    assert sum(t.numel() for t in there.values()) == sum(t.numel() for t in ours.values())


@pytest.mark.parametrize("rules", [timm.IDENTITY, facebook.DEIT])
def test_timm_there_and_back(tiny, rules):
    ours = tiny(layer_scale=0.1, registers=2).state_dict()
    there = to_theirs(rules, ours)
    assert to_ours(rules, there).tensors.keys() == ours.keys()
    assert ("blocks.0.gamma_1" in there) == (rules is facebook.DEIT)


def test_leftovers_of_both_kinds_are_kept_apart():
    rules = [Rule(("a.{i}.x", "a.{i}.y"), "b.{i}", lambda x, y: x + y, lambda b: (b, b))]
    tensors = {"a.1.x": torch.ones(1), "a.1.y": torch.ones(1), "a.2.y": torch.ones(1)}
    done = to_ours(rules, {**tensors, "c": torch.ones(1)})
    assert list(done.tensors) == ["b.1"]
    assert done.lacking == ["a.2.x"]
    assert done.unknown == ["c"]


def test_letters_stand_for_numbers_and_words_for_anything():
    done = to_ours([Rule("a.{i}", "b.{i}")], {"a.1": torch.ones(1), "a.one": torch.ones(1)})
    assert list(done.tensors) == ["b.1"]
    done = to_ours([Rule("x.{name}", "{name}")], {"x.a.b": torch.ones(1), "xya": torch.ones(1)})
    assert list(done.tensors) == ["a.b"]


def test_misfit_prints_both_sides_shortened():
    missing = [f"blocks.{i}.norm1.weight" for i in range(24)]
    error = misfit("x.npz", missing, ["y"], ["z: [1] in the file, [2] in the model"])
    assert isinstance(error, WeightsError)
    assert error.missing == missing
    text = str(error)
    assert "24 tensors" in text
    assert "and 19 more" in text
    assert "(y)" in text
    assert "[1] in the file" in text
    assert "\n" not in text


def test_under():
    assert under("head.weight", ["head"])
    assert under("head.weight", ["head."])
    assert under("head.weight", ["head.weight"])
    assert not under("header.weight", ["head"])
