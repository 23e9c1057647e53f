"""The tape: what is on it, in which order, and that looking changes nothing."""

import pytest
import torch

from tests.models.oracles import images_for, random_model, small
from vitrail import Error, Recorded, Tape


def test_a_tape_changes_no_logits():
    for fields in ({}, {"pool": "map", "registers": 2}, {"pool": "mean", "norm_after_pool": True}):
        model, images = random_model(small(**fields)), images_for(small())
        with torch.no_grad():
            plain = model(images)
            assert torch.equal(model(images, tape=Tape(only="blocks.0.out")), plain)
            torch.testing.assert_close(model(images, tape=Tape()), plain, rtol=1e-12, atol=1e-12)
            tape = Tape()
            model.float()(images.float(), tape=tape)
            torch.testing.assert_close(
                tape["logits"], plain.float(), rtol=1e-4, atol=1e-4, check_dtype=True
            )


def test_names_come_in_call_order_with_their_shapes():
    model, tape = random_model(small(registers=2)), Tape()
    logits = model(images_for(small(), batch=5), tape=tape)
    block = {"attention": (5, 3, 19, 19), "mlp.hidden": (5, 19, 96), "out": (5, 19, 48)}
    expected = {
        "patches": (5, 16, 48),
        "embedded": (5, 19, 48),
        **{f"blocks.0.{name}": shape for name, shape in block.items()},
        **{f"blocks.1.{name}": shape for name, shape in block.items()},
        "normed": (5, 19, 48),
        "pooled": (5, 48),
        "logits": (5, 7),
    }
    assert [(name, tuple(tensor.shape)) for name, tensor in tape.items()] == list(expected.items())
    assert tape["logits"] is logits
    assert len(tape) == len(expected)
    assert "blocks.1.out" in tape
    assert "blocks.2.out" not in tape


def test_patches_have_no_position_yet_and_pooled_is_what_the_head_sees():
    model, tape, images = random_model(small()), Tape(), images_for(small())
    model(images, tape=tape)
    torch.testing.assert_close(
        tape["embedded"][:, 1:], tape["patches"] + model.pos_embed[:, 1:], rtol=0, atol=1e-12
    )
    torch.testing.assert_close(model.head(tape["pooled"]), tape["logits"], rtol=0, atol=0)
    torch.testing.assert_close(model.features(images), tape["pooled"], rtol=1e-12, atol=1e-12)


def test_rows_of_attention_sum_to_one():
    model, tape = random_model(small(pool="map")), Tape(only="*attention")
    model(images_for(small()), tape=tape)
    assert list(tape) == ["blocks.0.attention", "blocks.1.attention", "pool.attention"]
    assert tape["pool.attention"].shape == (3, 3, 1, 16)
    for weights in tape.values():
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))


def test_recorded_attention_times_values_is_what_flows_on():
    """The map on the tape is the one that was used, not one beside it."""
    model, tape, images = random_model(small(depth=1)), Tape(), images_for(small())
    with torch.no_grad():
        model(images, tape=tape)
        block = model.blocks[0]
        value = block.attn.qkv(block.norm1(tape["embedded"]))[..., 96:]
        mixed = tape["blocks.0.attention"] @ value.unflatten(-1, (3, 16)).transpose(1, 2)
        x = tape["embedded"] + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(x, tape["blocks.0.out"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("only", "kept"),
    [
        ("logits", ["logits"]),
        ("blocks.*.attention", ["blocks.0.attention", "blocks.1.attention"]),
        ("blocks.1.*", ["blocks.1.attention", "blocks.1.mlp.hidden", "blocks.1.out"]),
        (["pooled", "patches"], ["patches", "pooled"]),
        (("*.out", "nothing"), ["blocks.0.out", "blocks.1.out"]),
        ("b*0*n", ["blocks.0.attention", "blocks.0.mlp.hidden"]),
        ("*", None),
        ("**", None),
        ("", []),
        ([], []),
        ("attention", []),
        ("blocks.0", []),
        ("blocks.*.attention.*", []),
        ("pooled*pooled", []),  # the two halves must not overlap
        ("po*oled", ["pooled"]),
        ("logits*", ["logits"]),
        ("*logits", ["logits"]),
        ("blocks.?.out", []),  # only the star is special
        ("[b]locks.0.out", []),
    ],
)
def test_only(only, kept):
    model, everything, tape = random_model(small()), Tape(), Tape(only=only)
    images = images_for(small(), batch=1)
    model(images, tape=everything)
    model(images, tape=tape)
    assert list(tape) == (list(everything) if kept is None else kept)


def test_asking_for_one_map_keeps_the_others_fused(monkeypatch):
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(1)
        return fused(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    model, images = random_model(small(depth=4)), images_for(small(), batch=1)
    for only, explicit in [(None, 4), ("blocks.2.attention", 1), ("blocks.*.out", 0)]:
        calls.clear()
        model(images, tape=Tape(only=only))
        assert len(calls) == 4 - explicit
    calls.clear()
    model(images)
    assert len(calls) == 4


def test_a_view_shares_the_tape_under_a_prefix():
    tape, one = Tape(), torch.ones(1)
    inner = tape.at("blocks.1").at("mlp")
    inner.put("hidden", one)
    tape.at("blocks.10").put("out", one)
    assert list(tape) == ["blocks.1.mlp.hidden", "blocks.10.out"]
    assert list(tape.at("blocks.1")) == ["mlp.hidden"]
    assert tape.at("blocks.1")["mlp.hidden"] is one
    assert len(tape.at("blocks")) == 2
    narrow = Tape(only="blocks.*.out")
    assert narrow.at("blocks.3").wants("out")
    assert not narrow.at("blocks.3").wants("attention")
    assert not narrow.wants("out")


def test_an_unknown_name_names_the_nearest():
    model, tape = random_model(small()), Tape()
    model(images_for(small(), batch=1), tape=tape)
    with pytest.raises(KeyError, match=r"blocks\.1\.atention.*did you mean 'blocks\.1\.attention'"):
        tape["blocks.1.atention"]
    with pytest.raises(KeyError, match="did you mean 'attention'"):
        tape.at("blocks.1")["atention"]
    assert tape.get("no such name") is None
    assert "pooled [1, 48]" in repr(tape)


def test_gradients_reach_what_is_on_the_tape():
    model, tape = random_model(small()), Tape(only="blocks.0.attention")
    logits = model(images_for(small(), batch=1), tape=tape)
    (gradient,) = torch.autograd.grad(logits.sum(), tape["blocks.0.attention"])
    assert gradient.abs().max() > 0


def test_recorded_gives_logits_and_tensors_and_refuses_unknown_names():
    model, images = random_model(small()), images_for(small())
    logits, tensors = Recorded(model, ["pooled", "blocks.*.attention"])(images)
    torch.testing.assert_close(logits, model(images), rtol=1e-12, atol=1e-12)
    assert sorted(tensors) == ["blocks.0.attention", "blocks.1.attention", "pooled"]
    with pytest.raises(Error, match=r"no tensor named 'blocks\.7\.out'"):
        Recorded(model, ("pooled", "blocks.7.out"))(images)
