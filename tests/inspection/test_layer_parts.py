"""The sections on explanations and on layers: their numbers are those of what they show."""

import numpy as np
import pytest
import torch

from tests.contract.reduced import build
from vitrail.inspection.explained_parts import STEPS, explained_part
from vitrail.inspection.layer_parts import layer_parts
from vitrail.inspection.map_parts import maps_part
from vitrail.inspection.pictures import Pictures, as_input
from vitrail.inspection.relevance import explain, predicted
from vitrail.inspection.report import Choices, check_choices, inspect
from vitrail.inspection.scores import curves, patch_means, patch_of, patch_order
from vitrail.inspection.similarity import layer_similarity
from vitrail.inspection.tokens import token_norms
from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier


def pictures_for(model: ImageClassifier, count: int) -> Pictures:
    numbers = np.random.default_rng(0)
    pictures = [numbers.integers(0, 256, (40, 56, 3), dtype=np.uint8) for _ in range(count)]
    return Pictures(model, [f"folder/{i}.png" for i in range(count)], pictures.__getitem__)


def small(name: str) -> ImageClassifier:
    return build(name).float().set_labels([f"thing {k}" for k in range(7)])


def test_the_explanations_that_are_shown_are_those_that_were_scored():
    model = small("pvt_tiny").train()
    pictures = pictures_for(model, 3)
    part = explained_part(model, pictures, 2)
    assert model.training
    model.eval()
    images = as_input(model, *(pictures[i] for i in range(2)))
    patch, classes = patch_of(model, images.shape[-2:]), predicted(model, images)
    heat = explain(model, images, "relevance", classes)
    shown = torch.from_numpy(part.arrays["explanations.relevance"])
    torch.testing.assert_close(shown, patch_means(heat, patch).float(), rtol=1e-3, atol=1e-9)
    order = patch_order(heat, patch)
    found = curves(model, images, order, patch, "deletion", "grey", STEPS, classes)
    np.testing.assert_allclose(
        part.arrays["deletion.relevance"], found.probabilities.numpy(), atol=1e-4
    )
    area = found.areas.mean().item()
    assert part.summary["explanations"]["relevance"]["deletion"] == pytest.approx(area, abs=1e-3)
    assert set(part.summary["explanations"]) == {
        *("relevance", "rollout", "attention", "gradient", "random")
    }
    assert [figure.name for figure in part.figures] == ["explanations", "deletion", "insertion"]
    assert explained_part(model, pictures, 0) is None


def test_the_sections_on_layers_share_a_pass_and_say_what_the_functions_say():
    model, other = small("vit_small_patch14_reg4_dinov2"), small("resnet50")
    pictures = pictures_for(model, 10)  # a last batch of two
    norms, alike, near = layer_parts(model, pictures, most=4, other=other, names=("ours", "theirs"))
    everything = as_input(model, *pictures)
    expected = token_norms(model, [everything])
    np.testing.assert_allclose(
        norms.arrays["token_norm_median"], [one.median for one in expected], rtol=1e-5
    )
    assert norms.summary["tokens"][1]["outlier_share"] == pytest.approx(expected[1].share, abs=1e-6)
    theirs = as_input(other, *pictures.seen_by(other))
    batches = [(everything[:8], theirs[:8])]  # two are too few for a batch
    cka = layer_similarity(model, batches, other)
    np.testing.assert_allclose(alike.arrays["layer_similarity"], cka.matrix.numpy(), atol=1e-3)
    assert alike.summary["similarity"]["pictures"] == 8
    assert [name + ".out" for name in alike.summary["similarity"]["second"]] == cka.second
    assert set(near.summary["neighbours"]) == {"blocks.0", "blocks.1"}
    rows = near.summary["neighbours"]["blocks.1"]
    assert len(rows) == 4  # pictures
    assert all(row[:3] == sorted(row[:3], reverse=True) for row in rows)


def test_too_few_pictures_to_compare_layers_are_told_so():
    model = small("vit_tiny_patch16_224")
    part = next(layer_parts(model, pictures_for(model, 3), ["similarity"]))
    assert "at least 4 pictures" in part.text[0]
    assert not part.figures


@pytest.mark.parametrize("name", ["resnet50", "cvt_13_224"])
def test_a_report_of_these_sections_alone(name, tmp_path):
    model = small(name)
    kinds = ("explanations", "tokens", "similarity", "neighbours")
    done = []
    summary = inspect(
        model,
        pictures_for(model, 5),
        tmp_path,
        Choices(figures=kinds, explain=1, show=2),
        progress=lambda *what: done.append(what),
    )
    assert {"explaining", "looking at layers"} <= {what[0] for what in done}
    html = (tmp_path / "report.html").read_text()
    for heading in ("Why it says so", "Tokens that stand out", "Layers alike", "Patches alike"):
        assert f">{heading}<" in html
    assert "seen as thing" in html
    assert ("attention x gradient" in html) == (name != "resnet50")
    assert ("Grad-CAM" in html) == (name == "resnet50")
    for figure in ("explanations", "deletion", "token_norms", "layer_similarity"):
        assert figure in summary["figures"]
        for suffix in ("png", "svg"):
            assert (tmp_path / "figures" / f"{figure}.{suffix}").stat().st_size > 2000
    with np.load(tmp_path / "arrays.npz") as arrays:
        layers = len(arrays["token_layers"])
        assert arrays["layer_similarity"].shape == (layers, layers)
        np.testing.assert_allclose(arrays["layer_similarity"].diagonal(), 1, atol=1e-5)
        assert arrays["deletion.gradient"].shape[0] == 1


def test_a_model_without_one_answer_is_inspected_from_all_other_sides(tmp_path):
    model = build("vit_base_r50_s16_224", pool="none").float()
    summary = inspect(model, pictures_for(model, 4), tmp_path, Choices(explain=1, show=1))
    page = (tmp_path / "report.html").read_text()
    assert "gives every token to its head, so there is no one class to explain" in page
    assert "seen as" not in page
    assert {"feature_maps", "rollout", "token_norms"} <= set(summary["figures"])


def test_maps_that_say_nothing_are_not_drawn_and_that_is_said(tmp_path):
    model = small("t2t_vit_14")
    found = inspect(model, pictures_for(model, 1), tmp_path, Choices(figures=["maps"]))
    assert found["figures"] == []
    assert "T2TViT has no feature maps to draw" in (tmp_path / "report.html").read_text()
    assert maps_part(small("vit_tiny_patch16_224"), pictures_for(model, 1), 1) is None


def test_fewer_than_no_pictures_to_explain_are_refused():
    with pytest.raises(Error, match="--explain is how many"):
        check_choices(small("resnet50"), Choices(explain=-1))
