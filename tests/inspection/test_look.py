"""The pass over pictures: averages as they would be by hand, memory that does not grow."""

import weakref

import numpy as np
import pytest
import torch

from tests.conftest import randomise
from tests.contract.reduced import shared
from vitrail.inspection.attention import attention_distance, entropy, rollout
from vitrail.inspection.look import Rollout, chosen, look
from vitrail.inspection.pictures import Pictures, as_input
from vitrail.inspection.places import layers_of
from vitrail.kit.errors import Error
from vitrail.models.tape import Listener, Tape
from vitrail.models.vit import VisionTransformer, ViTConfig

SMALL = {"patch_size": 4, "depth": 3, "width": 16, "heads": 2, "mlp_width": 32, "num_classes": 5}


def a_model(**config) -> VisionTransformer:
    model = VisionTransformer(ViTConfig(**{**SMALL, "image_size": (12, 8), **config}))
    randomise(model)
    return model.eval()


def some_pictures(model, count=3, height=12, width=8) -> Pictures:
    def read(index: int) -> np.ndarray:
        generator = np.random.default_rng(index)
        return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)

    return Pictures(model, [f"{index}.png" for index in range(count)], read)


def test_averages_are_those_of_each_picture_by_itself():
    model = a_model()
    pictures = some_pictures(model)
    found = look(model, pictures, show=[1], how=Rollout("max", 0.3))
    tapes = []
    for picture in pictures:
        tape = Tape(only="blocks.*.attention")
        with torch.no_grad():
            model(as_input(model, picture), tape=tape)
        tapes.append(tape)
    for i in range(3):
        attention = torch.cat([tape[f"blocks.{i}.attention"] for tape in tapes])
        distance = attention_distance(attention, (3, 2), 4).mean(0)
        np.testing.assert_allclose(found.distance[i], distance, rtol=1e-5)
        np.testing.assert_allclose(found.entropy[i], entropy(attention).mean(0), rtol=1e-5)
        shown = attention[1, :, 0, 1:].reshape(2, 3, 2)
        np.testing.assert_allclose(found.shown[0].maps[i], shown, rtol=1e-6)
    for index, tape in enumerate(tapes):
        layers = [tape[f"blocks.{i}.attention"] for i in range(3)]
        expected = rollout(layers, "max", 0.3)[0, 0, 1:].reshape(3, 2)
        np.testing.assert_allclose(found.rollout[index], expected, rtol=1e-5)
    assert [shown.index for shown in found.shown] == [1]
    assert found.logit_gap < 1e-5


def test_a_layer_without_a_class_token_shows_what_all_patches_see_on_average():
    model = a_model(pool="mean", registers=2)
    found = look(model, some_pictures(model), show=[0])
    tape = Tape()
    with torch.no_grad():
        model(as_input(model, some_pictures(model)[0]), tape=tape)
    expected = tape["blocks.0.attention"][0, :, 2:, 2:].mean(1).reshape(2, 3, 2)
    np.testing.assert_allclose(found.shown[0].maps[0], expected, rtol=1e-6)


@pytest.mark.parametrize("config", [{"num_classes": 0}, {"pool": "none", "class_token": True}])
def test_models_without_one_answer_are_looked_at_too(config):
    model = a_model(**config)
    found = look(model, some_pictures(model), show=[0])
    assert found.shown[0].answer is None
    assert found.rollout.shape == (3, 3, 2)
    assert found.logit_gap < 1e-5


def test_attention_pooling_is_kept_by_itself():
    model = a_model(pool="map")
    found = look(model, some_pictures(model))
    assert found.pooling is not None
    assert found.pooling.shape == (3, 3, 2)
    np.testing.assert_allclose(found.pooling.sum((1, 2)), 1, rtol=1e-5)


def test_pictures_and_attention_are_let_go():
    model = a_model()
    alive: list[weakref.ref] = []
    most = 0

    def read(index: int) -> np.ndarray:
        nonlocal most
        picture = np.full((12, 8, 3), index, np.uint8)
        alive.append(weakref.ref(picture))
        most = max(most, sum(one() is not None for one in alive))
        return picture

    look(model, Pictures(model, [str(i) for i in range(12)], read))
    assert len(alive) == 12
    assert most <= 2


def test_a_listener_keeps_nothing_and_hears_whole_names():
    model, heard = a_model(), {}
    listener = Listener(lambda name, tensor: heard.update({name: tensor.shape}), "blocks.*.mlp.*")
    with torch.no_grad():
        plain = model(torch.zeros(1, 3, 12, 8))
        told = model(torch.zeros(1, 3, 12, 8), tape=listener)
    torch.testing.assert_close(told, plain, rtol=1e-5, atol=1e-6)
    assert heard == {f"blocks.{i}.mlp.hidden": (1, 7, 32) for i in range(3)}
    assert len(listener) == 0


def test_the_model_is_left_as_it_was():
    model = a_model(dropout=0.5).train()
    first, second = (look(model, some_pictures(model)) for _ in range(2))
    assert model.training
    np.testing.assert_array_equal(first.rollout, second.rollout)


def test_layers_are_named_by_number_or_name():
    layers = layers_of(shared("cvt_13_224"))
    assert chosen(layers, ["0", "stages.2.blocks.1"]) == [0, 3]
    assert chosen(layers, ["stages.2.blocks.1.attention", "3"]) == [3]
    with pytest.raises(Error, match=r"no layer '7': the model attends in 4 layers, 0 to 3"):
        chosen(layers, ["7"])
    with pytest.raises(Error, match=r"did you mean 'stages.2.blocks.1'"):
        chosen(layers, ["stages.2.blocks.11"])


def test_nothing_to_look_at_is_refused():
    with pytest.raises(Error, match="BiTResNet has no attention from place to place"):
        look(shared("resnetv2_50x1_bit"), some_pictures(a_model()))
    with pytest.raises(Error, match="no pictures to look at"):
        look(a_model(), some_pictures(a_model(), count=0))
    with pytest.raises(Error, match="did you mean 'mean'"):
        Rollout("meen")
