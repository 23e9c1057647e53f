"""Bundles: made whole or not at all, the same answers in every runtime, and nothing trusted."""

import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from tests.commands import call, start
from tests.export.small import CLASSES, answered, class_folder, pictures, sure_model
from vitrail.export.bundle import Manifest, read_manifest, write_manifest
from vitrail.export.make import Wanted, make_bundle
from vitrail.export.readme import example
from vitrail.export.verify import verify_bundle
from vitrail.kit.preprocess import Preprocessing
from vitrail.weights.folder import update_details

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
RUNTIMES = ("onnx", "openvino", "torch")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model folder, data that it is right on, and a bundle for every runtime."""
    place = tmp_path_factory.mktemp("export")
    model = sure_model()
    model.preprocessing = Preprocessing(
        size=(32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), crop=0.875
    )
    vitrail.save_model(model, place / "model")
    update_details(place / "model", temperature={"final": 1.7})
    class_folder(place / "data", answered(model, pictures()))
    for to in RUNTIMES:
        call("export", place / "model", "--to", to, "--check", place / "data", "--out", place / to)
    return place


@pytest.fixture
def bundle(place, tmp_path):
    return shutil.copytree(place / "onnx", tmp_path / "bundle")


@pytest.mark.parametrize("to", RUNTIMES)
def test_every_runtime_gives_the_models_answers(place, to):
    model, classify = vitrail.Classifier(place / "model"), vitrail.Classifier(place / to, threads=1)
    images = list(pictures(7, seed=9))
    assert classify.runtime == to
    assert classify.labels == list(CLASSES)
    assert classify.preprocessing == model.preprocessing
    assert classify.image_size == 32
    expected = model.logits(images)
    for batch in (1, 2, 7):
        classify.batch_size = batch
        got = classify.logits(images)
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() <= 1e-4
    assert [[label for label, _ in row] for row in classify(images)] == [
        [label for label, _ in row] for row in model(images)
    ]
    theirs, ours = (np.array([[p for _, p in row] for row in c(images)]) for c in (classify, model))
    assert np.abs(theirs - ours).max() < 1e-5  # the temperature came along


def test_the_bundle_says_what_the_contract_lists(place):
    about = json.loads((place / "onnx" / "bundle.json").read_text())
    assert about["format"] == 1
    assert about["labels"] == list(CLASSES)
    assert about["input"] == {"name": "images", "height": 32, "width": 32}
    assert about["outputs"] == ["logits", "probabilities"]
    assert about["temperature"] == 1.7
    assert about["preprocessing"]["mean"] == [0.4, 0.5, 0.6]
    assert set(about["files"]) == {"model.onnx", "README.md"}
    recorded = json.loads((place / "model" / "config.json").read_text())["vitrail"]["sha256"]
    assert about["source_sha256"] == recorded
    gate = about["gate"]
    assert gate["n"] == 48
    assert gate["reference_top1"] == gate["exported_top1"] == gate["agreement"] == 1
    assert gate["passed"] is True
    assert gate["max_logit_gap"] < 1e-4
    assert set(json.loads((place / "openvino" / "bundle.json").read_text())["files"]) == {
        *("model.xml", "model.bin", "README.md")
    }


def test_the_graphs_probabilities_are_those_of_the_temperature(place):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(place / "onnx" / "model.onnx"))
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [32, 32, 3])
    images = np.stack([image[:32, :32] for image in pictures(3)])
    logits, probabilities = session.run(None, {"images": images})
    expected = torch.softmax(torch.from_numpy(logits) / 1.7, dim=-1).numpy()
    assert np.abs(probabilities - expected).max() < 1e-6


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_the_readmes_example_runs_without_vitrail(place, tmp_path, to):
    text = (place / to / "README.md").read_text()
    program = text.partition("```python\n")[2].partition("```")[0]
    assert len(program.splitlines()) < 30
    folder = shutil.copytree(place / to, tmp_path / "bundle")
    (folder / "example.py").write_text(program)
    Image.fromarray(pictures(1, side=77, seed=4)[0]).resize((90, 61)).save(tmp_path / "p.png")
    hidden = "import sys; sys.modules['vitrail'] = sys.modules['torch'] = None; import runpy; "
    words = ["example.py", str(tmp_path / "p.png")]
    run = f"sys.argv = {words}; runpy.run_path({str(folder / 'example.py')!r})"
    done = subprocess.run(
        [sys.executable, "-c", hidden + run], capture_output=True, text=True, check=True
    )
    (expected,) = vitrail.Classifier(place / "model")([tmp_path / "p.png"], top_k=4)
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert [label for _, label in lines] == [label for label, _ in expected]
    for (shown, _), (_, chance) in zip(lines, expected, strict=True):
        assert abs(float(shown) - chance) < 1e-4


@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_the_readmes_resize_and_crop_are_ours_pixel_for_pixel(fit, interpolation, tmp_path):
    numbers = np.random.default_rng(2)
    for crop in (1.0, 0.875, 0.9):
        pre = Preprocessing(size=(33, 48), crop=crop, fit=fit, interpolation=interpolation)
        manifest = Manifest(runtime="onnx", precision="fp32", labels=["a"], preprocessing=pre)
        (tmp_path / "bundle.json").write_text(json.dumps(manifest.to_json()))
        program = example(manifest).partition("session =")[0].replace("onnxruntime", "json")
        for size in ((33, 48), (48, 33), (200, 31), (57, 300), (91, 91)):
            picture = numbers.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "p.png")
            names = {"__file__": str(tmp_path / "example.py")}
            before, sys.argv = sys.argv, ["example.py", str(tmp_path / "p.png")]
            try:
                exec(compile(program, "example.py", "exec"), names)
            finally:
                sys.argv = before
            assert np.array_equal(names["images"][0], pre.geometry(picture)), (crop, size)


@pytest.mark.parametrize("large", [2**24, 0])  # with 0 every file is opened while it is checked
def test_one_flipped_bit_anywhere_is_refused(bundle, large, monkeypatch):
    monkeypatch.setattr("vitrail.export.bundle.LARGE", large)
    draw = random.Random(0)
    files = [bundle / name for name in ("model.onnx", "bundle.json", "README.md")]
    for k in range(30):
        path = files[k % 3]
        good = path.read_bytes()
        damaged = bytearray(good)
        damaged[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(vitrail.Error) as told:
            vitrail.Classifier(bundle)
        assert path.name in str(told.value)
        path.write_bytes(good)
    vitrail.Classifier(bundle)


def resigned(bundle, **changes):
    """The manifest with other fields, and a hash that is right for them."""
    from dataclasses import replace

    write_manifest(bundle, replace(read_manifest(bundle), **changes))


def verified(place, bundle):
    from vitrail.data.sources import open_source

    source = open_source(place / "data", "train")
    model = vitrail.load_model(place / "model")
    return verify_bundle(bundle, model, source, temperature=1.7)


def test_a_good_bundle_is_verified(place, bundle):
    verdict = verified(place, bundle)
    assert verdict.passed, verdict.failures
    assert verdict.gate is not None
    assert verdict.gate.agreement == 1
    assert json.loads(json.dumps(verdict.to_json()))["passed"] is True


def test_a_wrong_mean_in_the_bundle_is_refused(place, bundle):
    resigned(bundle, preprocessing=read_manifest(bundle).preprocessing.replace(mean=(0.5,) * 3))
    (failure,) = verified(place, bundle).failures
    assert (failure.file, failure.name) == ("bundle.json", "preprocessing")
    assert "mean" in failure.detail


def test_a_graph_made_with_another_mean_is_refused(place, bundle, tmp_path):
    model = vitrail.load_model(place / "model")
    model.preprocessing = model.preprocessing.replace(mean=(0.485, 0.456, 0.406), std=(0.5,) * 3)
    vitrail.save_model(model, tmp_path / "other")
    call("export", tmp_path / "other", "--to", "onnx", "--no-check", "--out", tmp_path / "b")
    right = read_manifest(bundle)
    resigned(tmp_path / "b", preprocessing=right.preprocessing, temperature=right.temperature)
    verdict = verified(place, tmp_path / "b")
    assert {failure.name for failure in verdict.failures} == {"gate"}
    assert "does not compute" in " ".join(failure.detail for failure in verdict.failures)


def test_labels_in_another_order_are_refused(place, bundle):
    resigned(bundle, labels=list(CLASSES[::-1]))
    verdict = verified(place, bundle)
    assert {failure.name for failure in verdict.failures} == {"labels", "gate"}
    assert verdict.gate is not None
    assert verdict.gate.exported_top1 < verdict.gate.reference_top1 == 1


def test_another_temperature_is_refused(place, bundle):
    resigned(bundle, temperature=1.0)
    assert [failure.name for failure in verified(place, bundle).failures] == ["temperature"]


def test_a_damaged_file_fails_by_its_name(place, bundle):
    with (bundle / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\0\0\0\1")
    assert [f.file for f in verified(place, bundle).failures] == ["model.onnx"]
    os.remove(bundle / "README.md")
    assert [f.file for f in verify_bundle(bundle).failures] == ["README.md", "model.onnx"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"format": 2}', "update Vitrail"),
        ("{", "damaged"),
        ('{"format": 1}', "hash differs"),
        ("[]", "damaged"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_one_sentence(bundle, text, sentence):
    (bundle / "bundle.json").write_text(text)
    with pytest.raises(vitrail.Error, match=sentence) as told:
        vitrail.Classifier(bundle)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("to", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_extra_says_which(place, to, package, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else found(name, *a)
    )
    with pytest.raises(vitrail.Error, match=rf"vitrail\[{to}\]"):
        vitrail.Classifier(place / to)
    call("export", place / "model", "--to", to, "--no-check", "--out", place / "n", status=2)
    assert not (place / "n").exists()


def test_a_device_that_is_not_there(place):
    for to in ("onnx", "openvino"):
        with pytest.raises(vitrail.Error, match="tpu"):
            vitrail.Classifier(place / to, device="tpu")


def test_flags_that_do_not_go_together(place, tmp_path):
    model, out = place / "model", ("--out", tmp_path / "b")
    call("export", model, "--to", "onnx", *out, status=2)
    call("export", model, "--to", "onnx", *out, "--check", place / "data", "--no-check", status=2)
    call("export", model, "--to", "onnx", *out, "--no-check", "--int8", status=2)
    call("export", model, "--to", "onnx", *out, "--no-check", "--int8", "--fp16", status=2)
    call("export", model, "--to", "torch", *out, "--no-check", "--fp16", status=2)
    call("export", tmp_path, "--to", "onnx", *out, "--no-check", status=2)
    assert not (tmp_path / "b").exists()


def test_a_folder_with_something_in_it_is_left_alone(place, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("dear")
    words = ("export", place / "model", "--to", "onnx", "--no-check", "--out")
    call(*words, tmp_path / "b", status=2)
    call(*words, place / "onnx", status=2)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["letter.txt"]


def test_without_a_check_the_bundle_says_so(place, tmp_path):
    _, err = call("export", place / "model", "--to", "onnx", "--no-check", "--out", tmp_path / "b")
    assert "warning" in err
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["gate"] is None
    assert "Nobody measured" in (tmp_path / "b" / "README.md").read_text()


def test_classes_that_the_model_does_not_know(place, tmp_path):
    shutil.copytree(place / "data", tmp_path / "data")
    (tmp_path / "data" / "elm").rename(tmp_path / "data" / "elk")
    words = ("--check", tmp_path / "data", "--out", tmp_path / "b")
    _, err = call("export", place / "model", "--to", "onnx", *words, status=2)
    assert "did you mean 'elm'" in err
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_kill_leaves_no_half_bundle(place, tmp_path):
    for delay in (4.0, 7.0):
        job = start(
            "export", place / "model", "--to", "onnx", "--no-check", "--out", tmp_path / "b"
        )
        try:
            job.wait(delay)
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait()
        assert not (tmp_path / "b").exists() or vitrail.Classifier(tmp_path / "b").labels


@pytest.mark.parametrize("to", RUNTIMES)
def test_a_bundle_can_be_read_by_whom_the_user_lets(place, tmp_path, to):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    modes = {path.stat().st_mode for path in (place / to).iterdir()}
    assert modes == {(tmp_path / "file").stat().st_mode}
    assert (place / to).stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_predict_takes_a_bundle(place):
    picture = next((place / "data").rglob("*.png"))
    out, _ = call("predict", place / "onnx", picture, "--format", "jsonl")
    expected, _ = call("predict", place / "model", picture, "--format", "jsonl")
    theirs, ours = (json.loads(text)["predictions"] for text in (out, expected))
    assert [p["label"] for p in theirs] == [p["label"] for p in ours]
    assert theirs[0]["probability"] == pytest.approx(ours[0]["probability"], abs=1e-5)


@pytest.mark.parametrize("to", RUNTIMES)
def test_a_bundle_with_attention_gives_the_tapes_and_the_same_logits(place, tmp_path, to):
    words = ("--to", to, "--check", place / "data", "--attention", "--out", tmp_path / "seeing")
    call("export", place / "model", *words)
    about = json.loads((tmp_path / "seeing" / "bundle.json").read_text())
    assert about["outputs"] == ["logits", "probabilities", "attention"]
    assert to == "torch" or about["gate"]["attention_gap"] < 1e-5
    seeing, blind = vitrail.Classifier(tmp_path / "seeing"), vitrail.Classifier(place / to)
    images = [Image.fromarray(image).resize((90, 61)) for image in pictures(7, seed=9)]
    model, tape = vitrail.load_model(place / "model"), vitrail.Tape()
    inputs = torch.stack([model.preprocessing(image) for image in images])
    with torch.no_grad():
        model(inputs, tape=tape)
    # two blocks, a class token, patches of 8 pixels in a picture of 32
    expected = tape["blocks.1.attention"][:, :, 0, 1:].mean(1).reshape(7, 4, 4).numpy()
    assert seeing.attends
    seeing.batch_size = 3
    maps = seeing.attention(images)
    assert np.abs(np.stack([one.values for one in maps]) - expected).max() < 1e-5
    assert expected.std() > 1e-3
    assert {one.region for one in maps} == {model.preprocessing.region(90, 61)}
    assert np.abs(seeing.logits(images) - blind.logits(images)).max() < 1e-5
    assert not blind.attends
    with pytest.raises(vitrail.Error, match="export the model again with --attention"):
        blind.attention(images)


def test_attention_of_a_network_of_convolutions_is_one_sentence(place, tmp_path):
    torch.manual_seed(0)
    vitrail.save_model(vitrail.create_model("resnet50", num_classes=4), tmp_path / "model")
    for to in RUNTIMES:
        words = ("--to", to, "--no-check", "--attention", "--out", tmp_path / "b")
        _, said = call("export", tmp_path / "model", *words, status=2)
        assert "ResNet has no attention" in said
        assert not (tmp_path / "b").exists()
    assert not vitrail.Classifier(tmp_path / "model").attends


def test_merged_tokens_have_no_map_of_attention(place, tmp_path):
    out = tmp_path / "b"
    for to in RUNTIMES:
        words = ("export", place / "model", "--to", to, "--no-check", "--merge-tokens", 2)
        _, said = call(*words, "--attention", "--out", out, status=2)
        assert "--attention and --merge-tokens exclude each other" in said
        assert not out.exists()
        call(*words, "--overwrite", "--out", tmp_path / to)
        classify = vitrail.Classifier(tmp_path / to, threads=1)
        assert not classify.attends
        with pytest.raises(vitrail.Error, match="with --attention and without --merge-tokens"):
            classify.attention(list(pictures(1)))
        pixels = np.stack([classify.prepare(image) for image in pictures(2)])
        with pytest.raises(vitrail.Error, match="with --attention"):
            classify._runtime.with_attention(pixels)
        assert classify.probabilities(pixels).sum(1) == pytest.approx(1, abs=1e-5)
    with pytest.raises(vitrail.Error, match="no map of attention"):
        make_bundle(sure_model(), out, Wanted(to="onnx", attention=True, merge_tokens=2), say=print)


def test_the_readme_of_a_bundle_with_attention_says_so_and_runs(place, tmp_path):
    words = ("--to", "onnx", "--no-check", "--attention", "--out", tmp_path / "b")
    call("export", place / "model", *words)
    text = (tmp_path / "b" / "README.md").read_text()
    assert "`attention` [b, rows, columns]" in text
    assert "`attention`" not in (place / "onnx" / "README.md").read_text()
    (tmp_path / "b" / "example.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    Image.fromarray(pictures(1, side=77)[0]).save(tmp_path / "p.png")
    run = [sys.executable, tmp_path / "b" / "example.py", tmp_path / "p.png"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 4


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_graph_is_used_without_torch_and_answers_the_same(place, tmp_path, to):
    """Its import takes more memory than most models do."""
    images = sorted((place / "data").rglob("*.png"))[:5]
    code = """
import json, sys
import vitrail
classify = vitrail.Classifier(sys.argv[1], threads=1)
answers = classify(sys.argv[2:], top_k=4)
assert [found.labels for found in classify.stream(sys.argv[2:], top_k=4, workers=2)] == answers
print(json.dumps([answers, classify.logits(sys.argv[2:]).tolist(), "torch" in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, place / to, *images], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answers, logits, has_torch = json.loads(done.stdout)
    assert not has_torch
    classify = vitrail.Classifier(place / to, threads=1)
    assert np.array_equal(np.float32(logits), classify.logits(images))
    rows = torch.from_numpy(np.float32(logits)) / classify.temperature
    expected = rows.softmax(dim=-1).sort(descending=True)
    assert [[label for label, _ in row] for row in answers] == [
        [classify.labels[place] for place in row] for row in expected.indices.tolist()
    ]
    assert [p for row in answers for _, p in row] == pytest.approx(
        expected.values.flatten().tolist(), abs=1e-6
    )


def test_signals_are_survived_after_several_bundles_are_let_go(place):
    """Each core of OpenVINO sets a stack for signals, and may give back one that is freed."""
    code = """
import gc, signal, sys
import vitrail
first, second = (vitrail.Classifier(sys.argv[1], threads=1) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
signal.raise_signal(signal.SIGUSR1)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, place / "openvino"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
