import pytest
import torch

from tests.contract.reduced import pictures, shared, small_models
from tests.models.oracles import images_for, random_model, small
from vitrail.inspection.tokens import Norms, token_norms, tokens_of
from vitrail.kit.errors import Error
from vitrail.models.tape import Tape


@pytest.mark.parametrize("name", small_models())
def test_every_familys_tokens_lie_on_their_grids(name):
    model, images, tape = shared(name), pictures(shared(name), height=2), Tape(only="*.out")
    with torch.no_grad():
        model(images, tape=tape)
    found = tokens_of(model, images)
    assert [tokens.name for tokens in found] == list(tape)
    for tokens in found:
        tensor = tape[tokens.name]
        rows, columns = tokens.grid
        assert tokens.places.shape[:2] == (2, rows * columns)
        assert rows >= 1.5 * columns  # the pictures are twice as high as they are wide
        if tensor.ndim == 4:
            torch.testing.assert_close(
                tokens.places.unflatten(1, tokens.grid), tensor.permute(0, 2, 3, 1)
            )
        else:
            torch.testing.assert_close(torch.cat([tokens.prefix, tokens.places], 1), tensor)


def test_norms_are_those_of_what_leaves_each_layer():
    model, images, tape = random_model(small(registers=2)).float(), images_for(small()), Tape()
    images = images.float()
    with torch.no_grad():
        model(images, tape=tape)
    found = token_norms(model, images.split(2))
    assert [norms.name for norms in found] == ["blocks.0.out", "blocks.1.out"]
    for norms in found:
        expected = tape[norms.name].norm(dim=2)
        torch.testing.assert_close(norms.prefix, expected[:, :3])
        torch.testing.assert_close(norms.places, expected[:, 3:].reshape(3, 4, 4))
        assert norms.median == pytest.approx(norms.places.flatten().sort()[0][23].item())


def test_tokens_that_stand_out_are_found_where_they_are():
    model, images = random_model(small()).float(), images_for(small(), batch=2).float()
    with torch.no_grad():
        for block in model.blocks:  # what leaves a block is what entered it, and no more
            block.attn.proj.weight.zero_(), block.attn.proj.bias.zero_()
            block.mlp.fc2.weight.zero_(), block.mlp.fc2.bias.zero_()
        model.pos_embed[:, 1:] = 0
        model.pos_embed[0, 1 + 6] = 100  # row 1, column 2
        model.pos_embed[0, 1 + 15] = 200  # row 3, column 3
    for norms in token_norms(model, [images]):
        assert norms.share == 2 / 16
        places = [place[:3] for place in norms.where()]  # the longest first
        assert set(places[:2]) == {(0, 3, 3), (1, 3, 3)}
        assert set(places[2:]) == {(0, 1, 2), (1, 1, 2)}
        assert norms.cutoff == pytest.approx(3 * norms.median)
        assert norms.where()[0][3] == pytest.approx(200 * 48**0.5, rel=0.1)
    high = token_norms(model, [images], cutoff=150 * 48**0.5)
    assert [norms.share for norms in high] == [1 / 16, 1 / 16]
    assert token_norms(model, [images], "blocks.1.out", times=1000)[0].share == 0


def test_a_layer_that_does_not_exist_is_refused():
    model, images = random_model(small()), images_for(small())
    with pytest.raises(
        Error, match=r"has no layer 'blocks\.2\.out'; did you mean 'blocks\.1\.out'"
    ):
        tokens_of(model, images, "blocks.2.out")
    with pytest.raises(Error, match="no pictures"):
        token_norms(model, [])
    with pytest.raises(Error, match="no pictures"):
        Norms().result()
