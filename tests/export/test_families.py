"""A trained model of every family: the same logits in PyTorch, ONNX Runtime and OpenVINO."""

import pytest

from tests.export import families

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


@pytest.mark.slow
@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_trained_model_is_one_model_in_every_runtime(family, shared_data, work):
    """Logits within 1e-4 and every answer the same on 1,000 images at batch 1, 2 and 7."""
    data = families.part_of(shared_data / "cifar10", work / "part")
    model = families.trained(family, data, work / family / "model")
    found = families.compared(model, families.bundles(model, data, work / family), data)
    assert found.top1 > 0.2, "chance is 0.1"
    assert found.folded <= 1e-5
    for (runtime, size), gap in found.gaps.items():
        assert gap <= 1e-4, (runtime, size)
        assert found.agreement[runtime, size] == 1, (runtime, size)
    for runtime, gap in found.chances.items():
        assert gap <= 1e-5, runtime


def test_there_is_one_model_of_every_family_of_the_zoo():
    import vitrail
    from vitrail.models.zoo import resolve

    known = {resolve(name)[1].family for name in vitrail.list_models()}
    assert {resolve(name)[1].family for name, *_ in families.FAMILIES.values()} == known
