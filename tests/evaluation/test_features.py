"""Features and their cache: what is computed, what is kept, what is never trusted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from tests.commands import QUIET, call, start
from vitrail.data.sources import ArraySource, open_source
from vitrail.evaluation import features as module
from vitrail.evaluation.features import cache_folder, extract
from vitrail.kit.errors import Error
from vitrail.weights.folder import save_model

SIZE = 16


def make_model(seed=0, **config):
    torch.manual_seed(seed)
    fields = {"width": 24, "depth": 2, "heads": 2, "mlp_width": 32, **config}
    return vitrail.create_model(
        "vit_tiny_patch16_224", num_classes=3, image_size=SIZE, patch_size=8, **fields
    )


def pictures(n=20, seed=0, labels=3):
    numbers = np.random.default_rng(seed)
    images = numbers.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(n) % labels)


@pytest.fixture
def photos(tmp_path) -> Path:
    numbers = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(6):
            pixels = numbers.integers(0, 255, (20, 18, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{i}.png")
    return tmp_path / "photos"


def test_values_are_the_models_features(tmp_path):
    model, source = make_model().train(), pictures()
    found = extract(model, source, cache=tmp_path, batch_size=7)
    assert model.training
    expected = model.eval().features(model.preprocessing.normalize(torch.from_numpy(source.images)))
    np.testing.assert_allclose(found.values, expected.detach(), atol=1e-5)
    assert isinstance(found.values, np.memmap)
    assert found.labels.tolist() == source.labels.tolist()
    assert list(found.keys) == [str(i) for i in range(20)]
    assert (found.computed, found.skipped) == (20, ())
    assert 0 < found.forward_seconds <= found.seconds
    some = found.rows([3, 1])
    np.testing.assert_array_equal(some.values, np.asarray(found.values)[[3, 1]])
    assert (some.keys, some.labels.tolist()) == (["3", "1"], [0, 1])


def test_any_tensor_of_the_tape(tmp_path):
    model, source = make_model(), pictures()
    tape = vitrail.Tape()
    with torch.inference_mode():
        model(model.preprocessing.normalize(torch.from_numpy(source.images)), tape=tape)
    for name in ("pooled", "blocks.1.attention", "logits"):
        found = extract(model, source, name=name, cache=tmp_path)
        np.testing.assert_allclose(found.values, tape[name], atol=1e-5)
        assert extract(model, source, name=name, cache=tmp_path).computed == 0
    with pytest.raises(Error, match=r"nothing called 'blocks.1.atention'; did you mean 'blocks.1"):
        extract(model, source, name="blocks.1.atention", cache=tmp_path)


def test_a_second_call_computes_nothing(tmp_path):
    source = pictures()
    first = extract(make_model(), source, cache=tmp_path)
    told = []
    again = extract(
        make_model(), source, cache=tmp_path, progress=lambda done, total: told.append(done)
    )
    assert (again.computed, told) == (0, [])
    np.testing.assert_array_equal(again.values, first.values)
    assert again.seconds == first.seconds


def test_only_what_features_follow_from_is_in_the_key(tmp_path):
    model, source = make_model(), pictures()
    extract(model, source, cache=tmp_path)

    def computed(model=model, source=source, **options):
        return extract(model, source, cache=tmp_path, **options).computed

    relabelled = ArraySource(source.images, (source.labels + 1) % 3)
    assert extract(model, relabelled, cache=tmp_path).labels[0] == 1
    assert computed(source=relabelled) == 0
    assert computed(make_model().set_labels(["x", "y", "z"])) == 0
    # Each of these gives other features, so none may come from the cache.
    assert computed(make_model(seed=1)) == 20
    with torch.no_grad():
        other = make_model()
        other.norm.bias[0] += 1e-6
    assert computed(other) == 20
    assert computed(make_model(activation="quick_gelu")) == 20
    brighter = make_model()
    brighter.preprocessing = brighter.preprocessing.replace(std=(0.6, 0.5, 0.5))
    assert computed(brighter) == 20
    images = source.images.copy()
    images[7, 0, 0, 0] ^= 1
    assert computed(source=ArraySource(images, source.labels)) == 20
    assert computed(source=source.subset(np.arange(20)[::-1])) == 20
    assert computed(dtype="float16") == 20
    assert computed(name="pooled") == 20
    assert computed() == 0


def test_values_in_float16_and_in_memory(tmp_path):
    model, source = make_model(), pictures()
    full = extract(model, source, cache=False)
    assert full.path is None
    half = extract(model, source, cache=tmp_path, dtype="float16")
    assert half.values.dtype == np.float16
    np.testing.assert_allclose(half.values, full.values, atol=2e-3)
    assert (half.path / "values.bin").stat().st_size == 20 * 24 * 2
    with pytest.raises(Error, match="float32 or float16"):
        extract(model, source, dtype="int8")


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine" / "features"
    found = extract(make_model(), pictures())
    assert found.path.parent == tmp_path / "mine" / "features"
    monkeypatch.delenv("VITRAIL_CACHE")
    assert cache_folder() == Path.home() / ".cache/vitrail/features"


def test_bad_pictures_are_skipped_named_and_rows_stay_aligned(photos, tmp_path):
    whole = extract(make_model(), open_source(photos), cache=False)
    (photos / "a" / "2.png").write_bytes(b"no picture")
    (photos / "b" / "0.png").write_bytes((photos / "b" / "0.png").read_bytes()[:100])
    source = open_source(photos)
    for _ in range(2):  # computed, then from the cache
        found = extract(make_model(), source, cache=tmp_path / "cache", batch_size=5)
        assert [key for key, _ in found.skipped] == ["a/2.png", "b/0.png"]
        assert all(reason for _, reason in found.skipped)
        good = [0, 1, 3, 4, 5, 7, 8, 9, 10, 11]
        assert found.indices.tolist() == good
        assert list(found.keys) == [source.keys[i] for i in good]
        assert found.labels.tolist() == source.labels[good].tolist()
        np.testing.assert_allclose(found.values, whole.values[good], atol=1e-5)
    for path in photos.glob("*/*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(Error, match="no picture can be read"):
        extract(make_model(), open_source(photos), cache=tmp_path / "cache")


def test_features_that_are_not_finite_are_named(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(Error, match="features of 0 are not finite"):
        extract(model, pictures(), cache=tmp_path)
    model = make_model()
    with torch.no_grad():
        model.norm.weight.fill_(1e6)
    with pytest.raises(Error, match="too large for float16"):
        extract(model, pictures(), cache=tmp_path, dtype="float16")


# Damage


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 8)


def test_a_damaged_block_is_computed_again_and_only_that(small_blocks, tmp_path):
    model, source = make_model(), pictures(30)
    first = extract(model, source, cache=tmp_path, batch_size=4)
    before = (first.path / "values.bin").read_bytes()
    broken = bytearray(before)
    broken[10 * 24 * 4 + 5] ^= 64
    (first.path / "values.bin").write_bytes(broken)
    again = extract(model, source, cache=tmp_path, batch_size=4)
    assert again.computed == 8
    assert (first.path / "values.bin").read_bytes() == before
    assert extract(model, source, cache=tmp_path).computed == 0


@pytest.mark.parametrize("harm", ["cut values", "no values", "cut journal", "no journal", "words"])
def test_any_damage_ends_in_the_right_values(small_blocks, tmp_path, harm):
    model, source = make_model(), pictures(30)
    first = extract(model, source, cache=tmp_path, batch_size=4)
    before = np.array(first.values)
    values, journal = first.path / "values.bin", first.path / "blocks.jsonl"
    if harm == "cut values":
        values.write_bytes(values.read_bytes()[: 20 * 24 * 4 + 3])
    elif harm == "no values":
        values.unlink()
    elif harm == "cut journal":
        journal.write_text(journal.read_text()[:-30])
    elif harm == "no journal":
        journal.unlink()
    else:
        journal.write_text("[]\n")
    again = extract(model, source, cache=tmp_path, batch_size=4)
    np.testing.assert_array_equal(again.values, before)
    assert again.computed > 0
    assert extract(model, source, cache=tmp_path).computed == 0


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match="set VITRAIL_CACHE to a folder with room"):
        extract(make_model(), pictures(), cache=tmp_path / "file")


SCRIPT = """
import sys
import time
from vitrail.data.sources import open_source
from vitrail.evaluation import features
from vitrail.weights.folder import load_model
features.BLOCK_ROWS = 8
def progress(done, total):
    print(done, flush=True)
    time.sleep(0.05)
found = features.extract(
    load_model(sys.argv[1]), open_source(sys.argv[2]), cache=sys.argv[3], batch_size=2,
    progress=progress)
print("computed", found.computed)
"""


def test_goes_on_after_a_kill_from_outside(tmp_path):
    """The real command, killed when the first block is on the disk."""
    torch.manual_seed(0)
    model = vitrail.create_model("vit_mu_patch8_32", num_classes=10, image_size=32)
    save_model(model, tmp_path / "model")
    words = ["probe", "demo:fashion", "--models", tmp_path / "model", "--limit", 0]
    words += ["--shots", 1, "--seeds", 1, "--cache", tmp_path / "cache", "--json"]
    killed = start(*words)
    journal = None
    while not (journal and journal.exists() and journal.read_text().endswith("}\n")):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
        journal = next((tmp_path / "cache").glob("*/blocks.jsonl"), None)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = [json.loads(line) for line in journal.read_text().splitlines()]
    assert 0 < kept[-1]["stop"] < 10_000
    # What a kill in the middle of a line would leave besides.
    with journal.open("a") as file:
        file.write('{"start": 24, "st')
    out, err = call(*words)
    assert json.loads(out)["rows"][0]["train_images"] == 10_000
    # It said from where it went on: the first that it told of are past those that were kept.
    (told,) = (line for line in err.splitlines() if "features of train" in line)
    assert "10,000 of 10,000" in told
    kept_now = [json.loads(line) for line in journal.read_text().splitlines()]
    assert kept_now[: len(kept)] == kept
    source = open_source("demo:fashion", "train")
    whole = extract(model, source, cache=tmp_path / "other")
    assert (journal.parent / "values.bin").read_bytes() == whole.values.tobytes()


def test_two_processes_at_the_same_features_do_not_harm_each_other(photos, tmp_path):
    save_model(make_model(), tmp_path / "model")
    words = [sys.executable, "-c", SCRIPT, tmp_path / "model", photos, tmp_path / "cache"]
    both = [
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, **QUIET})
        for _ in range(2)
    ]
    last = sorted(one.communicate()[0].splitlines()[-1] for one in both)
    assert last == ["computed 0", "computed 12"]
    found = extract(make_model(), open_source(photos), cache=tmp_path / "cache")
    whole = extract(make_model(), open_source(photos), cache=False, batch_size=2)
    np.testing.assert_array_equal(found.values, whole.values)
