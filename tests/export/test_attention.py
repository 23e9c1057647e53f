"""The map of attention: what the model's own tape says, and the logits as they were."""

import pytest
import torch
from torch import nn

from tests.contract import reduced
from tests.export.test_fold import FAMILIES, bytes_for, normalise
from vitrail.export.attention import attention_view
from vitrail.export.fold import fold
from vitrail.export.graph import WithProbabilities, outputs_of, program_of
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitrail.models.tape import Tape

LAST = "blocks.1.attention"  # of the small models: depth 2, and 2 blocks in the last stage

# What a head reads, written down family by family from the whole matrix [b h q m] on a tape, to
# [b m']: the class token's row without the class token's column, and so on.
READ = {
    "token": (LAST, lambda a: a[:, :, 0, 1:].mean(1)),
    "pre_logits": (LAST, lambda a: a[:, :, 0, 1:].mean(1)),
    "mean": (LAST, lambda a: a.mean(2).mean(1)),
    "mean_norm_after": (LAST, lambda a: a.mean(2).mean(1)),
    "token_mean": (LAST, lambda a: a[:, :, 0, 1:].mean(1)),
    "map": ("pool.attention", lambda a: a[:, :, 0].mean(1)),
    "registers": (LAST, lambda a: a[:, :, 0, 5:].mean(1)),
    "gated": (LAST, lambda a: a[:, :, 0, 1:].mean(1)),
    "layer_scale": (LAST, lambda a: a[:, :, 0, 1:].mean(1)),
    "clip": (LAST, lambda a: a[:, :, 0, 1:].mean(1)),
    "distilled": (LAST, lambda a: (a[:, :, 0, 2:] + a[:, :, 1, 2:]).mean(1) / 2),
    "relative": (LAST, lambda a: a[:, :, 0, 1:].mean(1)),
    "every_layer": (LAST, lambda a: a[:, :, 0, 1:].mean(1)),
    "grey": (LAST, lambda a: a[:, :, 0, 1:].mean(1)),
    "hybrid": (LAST, lambda a: a[:, :, 0, 1:].mean(1)),
    "hybrid_stem": (LAST, lambda a: a[:, :, 0, 1:].mean(1)),
    "botnet": ("stages.3.blocks.1.attention", lambda a: a.mean(2).mean(1)),
    "botnet_absolute": ("stages.3.blocks.1.attention", lambda a: a.mean(2).mean(1)),
    "botnet_t3": ("stages.3.blocks.1.attention", lambda a: a.mean(2).mean(1)),
    "cvt": ("stages.2.blocks.1.attention", lambda a: a[:, :, 0, 1:].mean(1)),
    "cvt_linear": ("stages.2.blocks.1.attention", lambda a: a[:, :, 0, 1:].mean(1)),
    "cvt_mean": ("stages.2.blocks.1.attention", lambda a: a.mean(2).mean(1)),
    "t2t": (LAST, lambda a: a[:, :, 0, 1:].mean(1)),
    "t2t_transformer": (LAST, lambda a: a[:, :, 0, 1:].mean(1)),
    "t2t_patches": (LAST, lambda a: a[:, :, 0, 1:].mean(1)),
    "pvt": ("stages.3.blocks.1.attention", lambda a: a[:, :, 0, 1:].mean(1)),
    "pvt_v2": ("stages.3.blocks.1.attention", lambda a: a.mean(2).mean(1)),
    "pvt_v2_linear": ("stages.3.blocks.1.attention", lambda a: a.mean(2).mean(1)),
}
WITHOUT = ("bit", "resnet")


def oblong(kind):
    """The family's small model for pictures of twice and three times its small size."""
    name, changes = FAMILIES[kind]
    side = reduced.build(name, **changes).config.image_size
    model = reduced.build(name, **changes, image_size=(2 * side, 3 * side))
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if kind != "grey" else ((0.4,), (0.3,))
    model.preprocessing = Preprocessing(size=(2 * side, 3 * side), mean=mean, std=std)
    return model


def test_every_family_is_looked_at():
    assert set(READ) | set(WITHOUT) == set(FAMILIES)


@pytest.mark.parametrize("kind", READ)
def test_the_folded_map_is_that_of_the_models_own_tape(kind):
    model = oblong(kind)
    images, (name, read) = bytes_for(model), READ[kind]
    view, tape = attention_view(model), Tape(only=name)
    seen = WithProbabilities(fold(model), 1.5, view).eval()
    blind = WithProbabilities(fold(model), 1.5).eval()
    with torch.no_grad():
        expected_logits = model(normalise(model, images), tape=tape)
        logits, probabilities, attention = seen(images)
        plain = blind(images)
    expected = read(tape[name])
    rows, columns = attention.shape[1:]
    assert expected.shape[1] == rows * columns > 1
    # a picture of 2 to 3, unless the family always looks at a square of seven by seven
    assert (rows, columns) == ((7, 7) if kind == "pvt_v2_linear" else (rows, rows * 3 // 2))
    assert (attention.flatten(1) - expected).abs().max() < 1e-10
    assert (logits - expected_logits).abs().max() < 1e-10 * expected_logits.abs().max()
    assert (logits - plain[0]).abs().max() < 1e-10 * expected_logits.abs().max()
    assert (probabilities - plain[1]).abs().max() < 1e-10
    live = view.read(tape[name])  # how a live model's map is read
    assert (live - attention).abs().max() < 1e-10


def test_rows_are_rows():
    """A token that only the lower right patch attracts shows up there."""
    model = oblong("token")
    view, tape = attention_view(model), Tape()
    with torch.no_grad():
        model(normalise(model, bytes_for(model, 1)), tape=tape)
    attention = torch.zeros_like(tape[view.name])
    attention[..., -1] = 1
    rows, columns = view.grid
    assert view.read(attention)[0].argmax() == rows * columns - 1
    attention = torch.zeros_like(attention)
    attention[..., 1 + columns] = 1  # after the class token and the first row
    assert view.read(attention)[0, 1, 0] == 1


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_network_of_convolutions_has_none(kind):
    with pytest.raises(Error, match=r"its head reads.*leave --attention out"):
        attention_view(reduced.build(FAMILIES[kind][0]))


def test_a_last_stage_of_one_place_is_no_map():
    model = reduced.build("cvt_13_224")  # 2x2 places, their keys every second of them
    with pytest.raises(Error, match="one single place"):
        attention_view(model)
    assert attention_view(model, 2 * model.config.image_size).grid == (2, 2)


def test_the_program_gives_what_was_asked_for():
    model = oblong("token").float()
    folded = fold(model)
    assert outputs_of(program_of(folded)) == ("logits", "probabilities")
    program = program_of(folded, 1.0, attention_view(model))
    assert outputs_of(program) == ("logits", "probabilities", "attention")
    images = bytes_for(model, batch=5)  # not the batch that was traced
    with torch.no_grad():
        attention = program.module()(images)[2]
    assert attention.shape == (5, *attention_view(model).grid)
    assert isinstance(folded.blocks, nn.ModuleList)


def test_the_gate_refuses_a_graph_whose_attention_is_another(monkeypatch, tmp_path):
    from tests.export.small import answered, pictures, sure_model
    from vitrail.export import make

    model = sure_model()

    def other(model, size=None):
        """The view of the block before."""
        view = attention_view(model, size)
        return type(view)("blocks.0.attention", view.grid, view.first, view.last)

    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(make, "attention_view", other)
    wanted = make.Wanted(to="onnx", source=answered(model, pictures()), attention=True)
    made = make.make_bundle(model, tmp_path / "bundle", wanted, say=lambda words: None)
    assert not made.written
    (reason,) = made.gate.reasons
    assert "attention" in reason
