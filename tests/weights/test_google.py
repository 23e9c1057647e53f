import numpy as np
import pytest
import torch

from tests.conftest import randomise
from tests.weights.conftest import close
from tests.weights.publisher import Shape, arrays, forward
from vitrail import WeightsError, load_weights
from vitrail.weights.google import write_npz

# layout of the file, its pooling, and the fields of our model that go with it
LAYOUTS = {
    "original": ("original", "tok", {}),
    "big_vision token": ("big_vision", "tok", {"position_on_prefix": False}),
    "big_vision mean": ("big_vision", "gap", {"pool": "mean"}),
    "big_vision map": ("big_vision", "map", {"pool": "map"}),
    "scanned map": ("scanned", "map", {"pool": "map"}),
    "scanned token": ("scanned", "tok", {"position_on_prefix": False}),
}


def write(tmp_path, file, prefix=""):
    path = tmp_path / "weights.npz"
    np.savez(path, **{prefix + name: array for name, array in file.items()})
    return path


def jax(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize("size", [(12, 12), (20, 20), (8, 16)])
def test_computes_what_the_publisher_computes(tmp_path, tiny, images, case, size):
    layout, pool, fields = LAYOUTS[case]
    shape = Shape(pool=pool)
    file = arrays(shape, layout)
    model = tiny(**fields, image_size=size)
    report = load_weights(model, write(tmp_path, file))
    x = images(*size)
    assert close(model(x), forward(file, jax(x), shape), 1e-6 if size != (12, 12) else 1e-9)
    assert report.family == ("google" if layout == "original" else "big_vision")
    assert report.numerics["activation"] == ("gelu", "gelu_tanh")
    assert report.resized == ([] if size == (12, 12) else ["pos_embed"])
    assert {*report.matched, *report.resized} == set(model.state_dict())
    assert report.preprocessing.mean == model.preprocessing.std == (0.5, 0.5, 0.5)


def test_at_run_time_too_the_table_is_resized_as_the_publisher_does(tmp_path, tiny, images):
    file = arrays(Shape())
    model = tiny()
    load_weights(model, write(tmp_path, file))
    x = images(20, 8)
    assert close(model(x), forward(file, jax(x), Shape()))


@pytest.mark.parametrize("prefix", ["opt/target/", "params/", "params/img/"])
def test_prefixes(tmp_path, tiny, images, prefix):
    file = arrays(Shape())
    path = write(tmp_path, file, prefix)
    with np.load(path) as whole:
        np.savez(path, **whole, **{"opt/state/step": np.ones(1), "txt/kernel": np.ones(2)})
    model = tiny()
    report = load_weights(model, path)
    assert report.wrappers == [prefix]
    assert sorted(report.dropped) == ["opt/state/step", "txt/kernel"]
    assert close(model(images()), forward(file, jax(images()), Shape()))


@pytest.mark.parametrize("layout", ["original", "big_vision"])
@pytest.mark.parametrize("on_prefix", [True, False])
def test_row_of_the_class_token_moves_exactly(tmp_path, tiny, images, layout, on_prefix):
    """A table with a row for the class token, and a model without one, and the other way."""
    file = arrays(Shape(), layout)
    model = tiny(position_on_prefix=on_prefix)
    load_weights(model, write(tmp_path, file))
    assert close(model(images()), forward(file, jax(images()), Shape()))


def test_pre_logits(tmp_path, tiny, images):
    shape = Shape(pre_logits=True)
    file = arrays(shape)
    path = write(tmp_path, file)
    model = tiny(pre_logits=True)
    load_weights(model, path)
    assert close(model(images()), forward(file, jax(images()), shape))
    report = load_weights(tiny(), path, fresh="head")
    layers = ("pre_logits", "head")
    assert set(report.dropped) == {f"{n}/{part}" for n in layers for part in ("kernel", "bias")}
    report = load_weights(tiny(), path)
    assert any("pre_logits=True" in note for note in report.notes)


def test_zero_head_of_21k_files_is_said(tmp_path, tiny):
    file = arrays(Shape())
    file["head/kernel"] *= 0
    report = load_weights(tiny(), write(tmp_path, file))
    assert any("head is all zeros" in note for note in report.notes)
    assert "head is all zeros" in str(report)


def swapped_key_and_value(file):
    for name in [n for n in file if "/key/" in n]:
        other = name.replace("/key/", "/value/")
        file[name], file[other] = file[other], file[name]


def no_class_token(file):
    file["cls"] = file["cls"] * 0


def shifted_table(file):
    name = "Transformer/posembed_input/pos_embedding"
    file[name] = np.roll(file[name], 1, axis=1)


def heads_in_another_order(file):
    for name in [n for n in file if n.endswith("/query/kernel")]:
        file[name] = file[name][:, ::-1]


def turned_patches(file):
    file["embedding/kernel"] = file["embedding/kernel"].transpose(1, 0, 2, 3)


@pytest.mark.parametrize(
    "mutation",
    [swapped_key_and_value, no_class_token, shifted_table, heads_in_another_order, turned_patches],
)
def test_a_wrong_file_gives_other_logits(tmp_path, tiny, images, mutation):
    """The comparison above can fail: each of these is far outside of its tolerance."""
    right, wrong = arrays(Shape()), arrays(Shape())
    mutation(wrong)
    model = tiny()
    load_weights(model, write(tmp_path, wrong))
    assert not close(model(images()), forward(right, jax(images()), Shape()), 1e-3)


def test_numerics_matter_and_keep_keeps_them(tmp_path, tiny, images):
    file = arrays(Shape())
    model = tiny()
    report = load_weights(model, write(tmp_path, file), numerics="keep")
    assert report.numerics == {}
    assert model.config == tiny().config
    assert not close(model(images()), forward(file, jax(images()), Shape()), 1e-7)


def test_numerics_are_set_in_every_part(tmp_path, tiny, images):
    file = arrays(Shape(pool="map"), "big_vision")
    model = tiny(pool="map", norm_eps=1e-2, activation="relu", attention_scale="width")
    report = load_weights(model, write(tmp_path, file))
    assert set(report.numerics) == {
        "norm_eps",
        "activation",
        "attention_scale",
        "position_resize",
    }
    assert close(model(images()), forward(file, jax(images()), Shape(pool="map")))


def test_another_number_of_heads_is_refused(tmp_path, tiny):
    """The shapes of all tensors are the same: only the file's own axes tell."""
    with pytest.raises(WeightsError, match="3 heads in the file, 6 in the model") as caught:
        load_weights(tiny(heads=6), write(tmp_path, arrays(Shape())))
    assert any("blocks.0.attn.qkv.weight" in entry for entry in caught.value.mismatched)


def test_a_missing_part_of_a_stack_is_named(tmp_path, tiny):
    file = arrays(Shape())
    name = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel"
    del file[name]
    with pytest.raises(WeightsError, match="key/kernel") as caught:
        load_weights(tiny(), write(tmp_path, file))
    assert caught.value.missing == ["blocks.1.attn.qkv.weight"]


def test_deeper_file_is_refused_with_both_sides(tmp_path, tiny):
    with pytest.raises(WeightsError) as caught:
        load_weights(tiny(depth=1, layer_scale=0.1), write(tmp_path, arrays(Shape())))
    assert caught.value.missing == ["blocks.0.ls1.gamma", "blocks.0.ls2.gamma"]
    assert len(caught.value.unexpected) == 16
    assert all(name.startswith("Transformer/encoderblock_1/") for name in caught.value.unexpected)
    assert "blocks.0.ls1.gamma" in str(caught.value)
    assert "encoderblock_1" in str(caught.value)


def test_bfloat16_arrays(tmp_path, tiny, images):
    """numpy keeps bfloat16 as two bytes of no known kind."""
    file = arrays(Shape())
    halved = {n: torch.from_numpy(a.copy()).bfloat16() for n, a in file.items()}
    raw = {n: a.view(torch.int16).numpy().view("V2") for n, a in halved.items()}
    model = tiny()
    report = load_weights(model, write(tmp_path, raw))
    rounded = {n: a.float().numpy() for n, a in halved.items()}
    assert close(model(images()), forward(rounded, jax(images()), Shape()))
    assert any("bfloat16" in note for note in report.notes)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pool": "map"},
        {"pool": "mean"},
        {"position_on_prefix": False},
        {"pre_logits": True},
        {"qkv_bias": False},
        {"pool": "mean", "position": "sincos2d"},
        {"pool": "mean", "position": "none"},
        {"num_classes": 0},
    ],
)
def test_written_and_read_back(tmp_path, tiny, images, fields):
    model, again = tiny(**fields), tiny(**fields)
    randomise(model)
    if fields.get("position") == "sincos2d":
        model.pos_embed.copy_(again.pos_embed)
    write_npz(model, tmp_path / "ours.npz")
    load_weights(again, tmp_path / "ours.npz", numerics="keep")
    assert torch.equal(again(images()), model(images()))


def test_what_the_format_cannot_hold_is_not_written(tmp_path, tiny):
    with pytest.raises(WeightsError, match=r"blocks\.0\.ls1\.gamma"):
        write_npz(tiny(layer_scale=0.1), tmp_path / "ours.npz")


def test_written_as_the_publisher_lays_it_out(tmp_path, tiny):
    write_npz(tiny(), tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as ours:
        theirs = arrays(Shape())
        assert {n: a.shape for n, a in ours.items()} == {n: a.shape for n, a in theirs.items()}
