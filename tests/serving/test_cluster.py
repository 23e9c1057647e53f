"""The same predictor on Ray: answers, errors and order as the classifier gives them."""

import shutil
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitrail
from vitrail.serving.images import find_images

pytestmark = [
    pytest.mark.slow,  # Ray takes a while to start
    pytest.mark.skipif(not find_spec("ray"), reason="needs the extra [cluster]"),
]


@pytest.fixture(scope="module")
def cluster():
    """A local Ray that writes nowhere but into a folder of ours."""
    import ray
    import ray.data

    # Its sockets' names have room for about 60 letters of the folder's.
    place = tempfile.mkdtemp(prefix="ray")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # it would write a token into the home folder
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=80 * 2**20,
            _temp_dir=place,
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()
    shutil.rmtree(place, ignore_errors=True)


def test_files_get_the_classifiers_answers_in_their_order(cluster, bundle, pictures):
    from vitrail.serving.cluster import predict_dataset

    rows = predict_dataset(pictures, bundle, top_k=3, actors=1).take_all()
    names = find_images([str(pictures)])
    classify = vitrail.Classifier(bundle, threads=1)
    expected = list(classify.stream([names.path(i) for i in range(len(names))], top_k=3))
    assert [row["path"] for row in rows] == [row.path for row in expected]
    assert [row["error"] for row in rows] == [row.error for row in expected]
    assert [row.error is None for row in expected].count(False) == 3
    for row, other in zip(rows, expected, strict=True):
        assert [p["label"] for p in row["predictions"]] == [label for label, _ in other.labels]
        assert [p["probability"] for p in row["predictions"]] == pytest.approx(
            [chance for _, chance in other.labels], abs=1e-6
        )


def test_a_data_set_brings_bytes_arrays_and_columns_of_its_own(cluster, bundle, pictures):
    import ray.data

    from vitrail.serving.cluster import predict_dataset

    paths = [next(pictures.rglob(f"{i:02}.*")) for i in (1, 2, 4, 20)]
    classify = vitrail.Classifier(bundle, threads=1)
    expected = [labels[0][0] for labels in classify(paths[:3], top_k=1)]
    items = [{"bytes": path.read_bytes(), "id": i} for i, path in enumerate(paths)]
    rows = predict_dataset(ray.data.from_items(items), bundle, top_k=1, keep=["id"]).take_all()
    assert [row["id"] for row in rows] == [0, 1, 2, 3]
    assert [row["predictions"][0]["label"] for row in rows[:3]] == expected
    assert rows[3]["predictions"] == []
    assert rows[3]["error"]
    assert [row["path"] for row in rows] == [None] * 4
    arrays = [{"pixels": np.asarray(Image.open(path).convert("RGB"))} for path in paths[:3]]
    rows = predict_dataset(ray.data.from_items(arrays), bundle, top_k=1, column="pixels").take_all()
    assert [row["predictions"][0]["label"] for row in rows] == expected
    nested = [{"image": {"bytes": path.read_bytes(), "path": path.name}} for path in paths[:3]]
    rows = predict_dataset(ray.data.from_items(nested), bundle, top_k=1).take_all()
    assert [row["predictions"][0]["label"] for row in rows] == expected
    assert [row["path"] for row in rows] == [path.name for path in paths[:3]]


def test_what_is_missing_is_said_before_anything_is_started(cluster, bundle, pictures, tmp_path):
    import ray.data

    from vitrail.serving.cluster import predict_dataset

    numbers = ray.data.from_items([{"id": 1}])
    for arguments, options, sentence in (
        ((pictures, tmp_path / "none"), {}, "no model folder or bundle"),
        ((tmp_path, bundle), {}, "no pictures were found"),
        ((numbers, bundle), {}, "no column of pictures among id"),
        ((numbers, bundle), {"column": "picture"}, "no column 'picture': it has id"),
        ((pictures, bundle), {"top_k": 0}, "top_k must be at least 1"),
        ((pictures, bundle), {"keep": ["id"]}, "names of files"),
    ):
        with pytest.raises(vitrail.Error, match=sentence):
            predict_dataset(*arguments, **options)


def test_nothing_else_imports_ray():
    sources = Path(vitrail.__file__).parent
    named = [path for path in sources.rglob("*.py") if "import ray" in path.read_text()]
    assert [path.name for path in named] == ["cluster.py"]
