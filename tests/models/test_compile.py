"""A model goes through torch.compile whole, and through torch.export with any batch size."""

import pytest
import torch

from tests.models.oracles import images_for, random_model, small
from vitrail import Recorded, Tape
from vitrail.models.parts import set_drop_path_draws

FIELDS = [
    {"depth": 1},
    {"depth": 2, "pool": "map", "registers": 2, "layer_scale": 0.1, "activation": "quick_gelu"},
    {"depth": 1, "pool": "mean", "position": "sincos2d", "norm_after_pool": True},
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def prepared(**fields):
    model = random_model(small(**fields)).float()
    return model, images_for(small()).float()


@pytest.mark.parametrize(
    ("fields", "backend"), [*((fields, "eager") for fields in FIELDS), (FIELDS[1], "aot_eager")]
)
def test_compiles_whole_with_and_without_a_tape(fields, backend):
    model, images = prepared(**fields)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)
        for only in (None, ["pooled", "*.attention"]):
            plain, taped = Tape(only=only), Tape(only=only)
            torch.testing.assert_close(
                compiled(images, tape=taped), model(images, tape=plain), rtol=1e-5, atol=1e-5
            )
            assert list(taped) == list(plain)
            for name in plain:
                torch.testing.assert_close(taped[name], plain[name], rtol=1e-5, atol=1e-5)


def test_compiles_to_machine_code_with_and_without_a_tape():
    model, images = prepared(depth=1, width=16, heads=2, mlp_width=32)
    compiled = torch.compile(model, fullgraph=True)
    tape = Tape()
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(compiled(images), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(compiled(images, tape=tape), expected, rtol=1e-5, atol=1e-5)
    assert tape["blocks.0.attention"].shape == (3, 2, 17, 17)


def test_compiles_whole_at_another_size_of_picture():
    model, _ = prepared(depth=1)
    wide = images_for(small(image_size=(24, 48))).float()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(wide), model(wide), rtol=1e-5, atol=1e-5)


def test_new_draws_for_drop_path_compile_nothing_again():
    model, images = prepared(depth=2, drop_path=0.5)
    model.train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    draws = torch.rand(5, len(images), 2)
    set_drop_path_draws(model, draws[0])
    compiled(images)
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in draws:
            set_drop_path_draws(model, step)
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)


BATCH = {0: torch.export.Dim("batch", min=1, max=64)}


@pytest.mark.parametrize("fields", FIELDS)
def test_exports_with_any_batch_size(fields):
    model, images = prepared(**fields)
    program = torch.export.export(model, (images,), dynamic_shapes=(BATCH,))
    for batch in (1, 2, 7):
        other = images_for(small(), batch=batch, seed=batch).float()
        with torch.no_grad():
            torch.testing.assert_close(program.module()(other), model(other), rtol=1e-5, atol=1e-5)


def test_a_recorded_model_exports_with_any_batch_size():
    model, images = prepared(depth=2, pool="map")
    recorded = Recorded(model, ["blocks.*.attention", "pool.attention", "pooled"])
    program = torch.export.export(recorded, (images,), dynamic_shapes={"images": BATCH})
    for batch in (1, 5):
        other = images_for(small(), batch=batch, seed=batch).float()
        tape = Tape()
        with torch.no_grad():
            expected = model(other, tape=tape)
            logits, tensors = program.module()(other)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        assert set(tensors) == {
            "blocks.0.attention",
            "blocks.1.attention",
            "pool.attention",
            "pooled",
        }
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, tape[name], rtol=1e-5, atol=1e-5)
