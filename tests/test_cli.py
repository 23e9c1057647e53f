"""The command line as a user meets it: help, verbs, formats, one clear sentence for a mistake."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import call, records, start

QUICK = ["--model", "vit_mu_patch8_32", "--steps", 3, "--batch-size", 8]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes of twelve pictures each: reddish and bluish noise, 40x32."""
    root = tmp_path_factory.mktemp("photos")
    numbers = np.random.default_rng(0)
    for label, channel in (("red", 0), ("blue", 2)):
        (root / label).mkdir()
        for i in range(12):
            pixels = numbers.integers(0, 90, (32, 40, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(root / label / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def model(photos, tmp_path_factory) -> Path:
    """A model folder that the command made."""
    out = tmp_path_factory.mktemp("runs") / "model"
    call("train", photos, "--out", out, *QUICK)
    return out


def test_help_comes_without_torch_and_names_every_verb():
    script = (
        "import sys; from vitrail.cli import main; main(['--help']); print('torch' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert out.rstrip().endswith("False")
    for verb in ("train", "evaluate", "predict", "models", "demo"):
        assert f"\n  {verb} " in out


def test_help_is_quick():
    # A ratio to the bare interpreter, because machines differ: half a second is about 15 of these.
    def best(*words: str) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], capture_output=True, check=True)
            times.append(time.perf_counter() - began)
        return min(times)

    assert best("-m", "vitrail", "--help") < 10 * best("-c", "pass")


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict", "models", "demo"])
def test_every_verb_has_help_with_an_example(verb):
    out, _ = call(verb, "--help")
    assert f"Example: vitrail {verb}" in out


def test_version_and_wrong_verbs():
    out, _ = call("--version")
    assert out.startswith("vitrail ")
    _, err = call("trian", status=2)
    assert "did you mean 'train'" in err


def test_training_says_what_it_found_and_leaves_a_whole_folder(photos, tmp_path):
    out = tmp_path / "run"
    before = sorted(photos.rglob("*"))
    text, err = call("train", photos, "--out", out, *QUICK)
    assert "22 images in 2 classes, 11 each" in err  # one of each class was held out
    assert "size 40x32" in err
    assert "vit_mu_patch8_32 at 32x32" in err
    assert "3 steps of 8 images" in err
    assert f"report {out / 'report.html'}" in text
    assert sorted(path.name for path in out.iterdir() if path.name != "best.safetensors") == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "report.html",
    ]
    assert sorted(photos.rglob("*")) == before  # nothing was written into the data
    config = json.loads((out / "config.json").read_text())
    assert config["vitrail"]["labels"] == ["blue", "red"]
    assert config["vitrail"]["recipe"]["batch_size"] == 8
    step = records(out, "step")[0]
    assert {"step", "epoch", "loss", "lr", "images_per_second", "grad_norm"} <= step.keys()
    done = records(out, "done")[-1]
    assert {"steps_this_run", "steps", "top1", "seconds"} <= done.keys()
    assert (done["steps"], done["steps_this_run"]) == (3, 3)


def test_a_dry_run_writes_nothing(photos, tmp_path):
    _, err = call("train", photos, "--out", tmp_path / "run", *QUICK, "--dry-run")
    assert "3 steps" in err
    assert not (tmp_path / "run").exists()


def test_record_keys_are_the_order(photos, tmp_path):
    from vitrail.data.loader import order
    from vitrail.data.sources import open_splits

    call("train", photos, "--out", tmp_path / "run", *QUICK, "--record-keys", "--seed", 5)
    lines = (tmp_path / "run" / "keys.jsonl").read_text().splitlines()
    keys = [key for line in lines for key in json.loads(line)["keys"]]
    source = open_splits(photos, val_fraction=0.1, seed=5)["train"]
    n = len(source)
    both = [source.keys[i] for epoch in (0, 1) for i in order(5, epoch, n)]
    assert keys == both[:24]


def test_json_is_one_value_and_nothing_else(model, photos):
    out, _ = call("evaluate", model, photos, "--json")
    result = json.loads(out)
    assert {"top1", "top5", "n", "classes", "per_class", "confusion"} <= result.keys()
    assert result["n"] == 24
    assert result["classes"] == ["blue", "red"]
    assert np.sum(result["confusion"]) == 24
    assert 0 <= result["top1"] <= 1
    assert {"label", "n", "precision", "recall", "f1"} <= result["per_class"][0].keys()


def test_evaluate_finds_the_share_that_training_held_out(model, photos):
    out, _ = call("evaluate", model, photos, "--split", "val", "--json")
    result = json.loads(out)
    assert result["n"] == 2
    assert result["top1"] == records(model, "eval")[-1]["top1"]


def test_evaluate_writes_its_page(model, photos, tmp_path):
    text, _ = call("evaluate", model, photos, "--out", tmp_path / "page")
    assert "top-1" in text
    assert "precision" in text
    assert (tmp_path / "page" / "report.html").stat().st_size > 1000
    assert json.loads((tmp_path / "page" / "evaluation.json").read_text())["n"] == 24


def test_predict_in_three_forms(model, photos, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    images = [photos / "red", tmp_path / "broken.jpg", f"{photos}/blue/0*.png"]
    out, err = call("predict", model, *images, "--format", "jsonl", "--top", 2)
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 12 + 1 + 10
    assert [row["error"] is None for row in rows].count(False) == 1
    assert rows[0].keys() == {"path", "predictions", "error"}
    chances = [p["probability"] for p in rows[0]["predictions"]]
    assert sum(chances) == pytest.approx(1)
    assert chances == sorted(chances, reverse=True)
    assert {p["label"] for p in rows[0]["predictions"]} == {"red", "blue"}
    assert "1 of 23 pictures could not be read" in err

    call("predict", model, *images, "--format", "csv", "--out", tmp_path / "a.csv")
    table = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert len(table) == 22 * 2 + 1
    out, _ = call("predict", model, photos / "red" / "00.png")
    assert "%" in out
    process = start("predict", model, tmp_path / "broken.jpg", "--format", "jsonl")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2  # every file failed
    assert json.loads(out)["predictions"] == []


def test_predict_equals_the_classifier_and_the_model(model, photos):
    from vitrail import Classifier, load_model

    paths = sorted((photos / "red").iterdir())
    classify = Classifier(model, batch_size=5)
    loaded = load_model(model)
    assert loaded.labels == classify.labels == ["blue", "red"]
    with torch.no_grad():
        one_by_one = torch.cat(
            [loaded(loaded.preprocessing(Image.open(path))[None]) for path in paths]
        )
    assert np.allclose(classify.logits(paths), one_by_one.numpy(), atol=1e-5)
    out, _ = call("predict", model, paths[0], "--format", "jsonl")
    said = json.loads(out)["predictions"]
    assert [(p["label"], pytest.approx(p["probability"], abs=1e-5)) for p in said] == classify(
        paths[0]
    )[0]


def test_starting_from_a_model_folder_at_another_size_and_classes(model, photos, tmp_path):
    import shutil

    data = tmp_path / "three"
    shutil.copytree(photos, data)
    shutil.copytree(photos / "red", data / "green")
    words = ["--weights", model, "--steps", 2, "--image-size", 48, "--batch-size", 8]
    _, err = call("train", data, "--out", tmp_path / "run", *words)
    assert "recipe finetune" in err
    assert "at 48x48" in err
    assert "a fresh zero head for 3 classes, because its classes are others" in err
    _, err = call("train", photos, "--weights", model, "--out", tmp_path / "b", "--steps", 1)
    assert "fresh zero head" not in err


def test_models_lists_and_shows_layers():
    out, _ = call("models", "vit_base*")
    assert "vit_base_patch16_224" in out
    assert "86,567,656" in out
    out, _ = call("models", "vit_base_patch16_224", "--json")
    (row,) = json.loads(out)
    assert row["parameters"] == 86_567_656
    assert row["gmacs"] == pytest.approx(17.56, abs=0.01)
    assert {"name", "family", "parameters", "gmacs", "image_size", "weights"} <= row.keys()
    out, _ = call("models", "B/16", "--layers", "--json")
    shapes = [tuple(layer["shape"]) for layer in json.loads(out)]
    anatomy = [(224, 224, 3), (14, 14, 768), (196, 768), (197, 768), (197, 3072), (768,), (1000,)]
    positions = [shapes.index(shape) for shape in anatomy]
    assert positions == sorted(positions)


def test_demo_as_folder_is_the_same_data(tmp_path):
    call("demo", "--as-folder", tmp_path / "clothes")
    folder = tmp_path / "clothes"
    assert len(list((folder / "train").iterdir())) == 10
    assert sum(1 for _ in (folder / "test").rglob("*.png")) == 2000
    _, err = call("demo", "--as-folder", folder, status=2)
    assert "not an empty folder" in err


def test_output_that_nobody_reads_is_no_bug():
    process = start("models")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert "Traceback" not in err


def test_debug_shows_the_traceback():
    process = start("models", "vit_bas", "--debug")
    _, err = process.communicate(timeout=60)
    assert "Traceback" in err
    assert process.returncode == 1


# -- bad input: one clear sentence, exit status 2, nothing lost ----------------------------------


def make(root: Path, **classes: int) -> Path:
    """A class folder with so many pictures a class."""
    root.mkdir(parents=True, exist_ok=True)
    for label, count in classes.items():
        (root / label).mkdir()
        for i in range(count):
            Image.new("RGB", (32, 32), (20 * i % 255, 90, 9)).save(root / label / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("missing", "no such folder or file"),
        ("empty", "empty"),
        ("one class", "one class only"),
        ("one image", "only one image in class b"),
        ("flat", "folder"),
        ("no images", "empty|no image"),
        ("text file", "unknown kind"),
        ("no column", "label"),
    ],
)
def test_data_that_cannot_be_trained_on(tmp_path, case, sentence):
    data = tmp_path / "data"
    if case == "empty":
        data.mkdir()
    elif case == "one class":
        make(data, a=4)
    elif case == "one image":
        make(data, a=4, b=1)
    elif case == "flat":
        data.mkdir()
        for i in range(3):
            Image.new("RGB", (9, 9)).save(data / f"{i}.png")
    elif case == "no images":
        for label in "ab":
            (data / label).mkdir(parents=True)
            (data / label / "notes.txt").write_text("hello")
    elif case == "text file":
        data = tmp_path / "data.txt"
        data.write_text("hello")
    elif case == "no column":
        data = tmp_path / "data.csv"
        data.write_text("path,klass\na.png,1\n")
    _, err = call("train", data, "--out", tmp_path / "out", *QUICK, status=2)
    assert re.search(sentence, err), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "vit_tiny_patch16_24x"], "did you mean"),
        (["--model", "vit_tiny_patch16_224", "--image-size", 225], "use 224 or 240"),
        (["--model", "vit_mu_patch8_32", "--set", "model.dept=2"], "did you mean 'depth'"),
        (["--model", "vit_mu_patch8_32", "--set", "optim.lr"], "KEY=VALUE"),
        (["--model", "vit_mu_patch8_32", "--recipe", "finetun"], "did you mean 'finetune'"),
        (["--model", "vit_mu_patch8_32", "--steps", 0], "at least one"),
        (["--model", "vit_mu_patch8_32", "--batch-size", 0], "at least 1"),
        (["--model", "vit_mu_patch8_32", "--val-fraction", 1.5], "between 0 and 1"),
    ],
)
def test_settings_that_cannot_be(photos, tmp_path, words, sentence):
    _, err = call("train", photos, "--out", tmp_path / "out", *words, status=2)
    assert sentence in err
    assert not (tmp_path / "out").exists()


def test_an_output_folder_in_use(photos, model, tmp_path):
    other = make(tmp_path / "mine", x=1)
    _, err = call("train", photos, "--out", other, *QUICK, status=2)
    assert "holds other files" in err
    (tmp_path / "file").write_text("")
    _, err = call("train", photos, "--out", tmp_path / "file", *QUICK, status=2)
    assert "is a file" in err
    before = (model / "model.safetensors").read_bytes()
    _, err = call("train", photos, "--out", model, *QUICK, "--seed", 9, status=2)
    assert "seed was 0 and is 9" in err
    assert (model / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("missing", "no"),
        ("text", "not"),
        ("truncated", "."),
        ("other family", "."),
        ("half", "blocks.0.mlp.fc1.weight"),
        ("other shape", "."),
    ],
)
def test_weights_that_do_not_fit(photos, tmp_path, case, sentence):
    from safetensors.torch import save_file

    from vitrail import create_model

    path = tmp_path / "weights.safetensors"
    good = create_model("vit_mu_patch8_32", num_classes=7).state_dict()
    if case == "text":
        path.write_text("these are not weights")
    elif case == "truncated":
        save_file(good, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif case == "other family":
        save_file({"layer1.0.conv1.weight": torch.zeros(3)}, path)
    elif case == "half":
        save_file({k: v for k, v in good.items() if "fc1" not in k}, path)
    elif case == "other shape":
        save_file({k: v[..., :16].contiguous() for k, v in good.items()}, path)
    words = ["--weights", path, "--model", "vit_mu_patch8_32", "--steps", 1]
    _, err = call("train", photos, "--out", tmp_path / "out", *words, status=2)
    assert str(path) in err or "weights.safetensors" in err
    assert sentence in err
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_odd_pictures_are_read_and_broken_ones_named(tmp_path):
    data = make(tmp_path / "data", a=6, b=6)
    Image.new("CMYK", (30, 20), (9, 99, 9, 0)).save(data / "a" / "cmyk.jpg")
    Image.new("P", (30, 20)).save(data / "a" / "palette.png")
    Image.fromarray(np.full((20, 30), 40000, np.uint16)).save(data / "a" / "deep.png")
    frames = [Image.new("RGB", (20, 20), (i, i, i)) for i in (0, 200)]
    frames[0].save(data / "b" / "moving.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(data / "b" / "turned.jpg", exif=exif)
    (data / "a" / "zero.jpg").write_bytes(b"")
    (data / "a" / "text.jpg").write_text("hello")
    whole = (data / "b" / "turned.jpg").read_bytes()
    (data / "b" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    _, err = call("train", data, "--out", out, *QUICK, "--val-fraction", 0, "--max-corrupt", 0.2)
    assert "3 files cannot be read and will be left out" in err
    for name in ("zero.jpg", "text.jpg", "cut.jpg"):
        assert name in err
    section = json.loads((out / "config.json").read_text())["vitrail"]
    assert section["data"]["splits"] == {"train": 6 + 6 + 3 + 2}
    assert "zero.jpg" in (out / "report.html").read_text()


def test_a_full_disk_keeps_the_checkpoint(photos, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        words = ["--model", "vit_mu_patch8_32", "--batch-size", 8, "--save-every", 1]
        words += ["--set", "model.width=64", "model.depth=2", "model.mlp_width=256"]
        process = start("train", photos, "--out", disk / "run", *words, "--steps", 10)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "no space left" in err
        kept = list((disk / "run" / "checkpoints").glob("step-*.json"))
        assert kept
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# -- what a review found ---------------------------------------------------------------------------


def test_settings_decide_what_they_name(photos, tmp_path):
    words = ["--set", "precision=fp64", "seed=3", "batch_size=4", "duration=2"]
    out = tmp_path / "run"
    call("train", photos, "--out", out, "--model", "vit_mu_patch8_32", *words)
    recipe = json.loads((out / "config.json").read_text())["vitrail"]["recipe"]
    assert (recipe["seed"], recipe["batch_size"], recipe["precision"]) == (3, 4, "fp64")
    assert recipe["optim"]["lr"] == pytest.approx(1e-3 * (4 / 64) ** 0.5)
    from safetensors.torch import load_file

    newest = max((out / "checkpoints").glob("*.safetensors"))
    assert load_file(newest)["model.head.weight"].dtype == torch.float64


@pytest.mark.parametrize(
    "setting",
    [
        "optim.betas=[0.9]",
        "optim.betas=[2,3]",
        "optim.momentum=-1",
        "optim.weight_decay=-5",
        "optim.layer_decay=-1",
        "optim.clip_norm=0",
        "target.label_smoothing=2",
        "target.mixup=-1",
        "schedule.warmup=200%",
        "augment.area=[0.5]",
        "model.num_classes=5",
        "patience=0",
        "seed=99999999999999999999999",
        "weights=zzz",
        "batch_size=999999999",
        "duration=inf",
    ],
)
def test_senseless_settings_are_refused_before_anything_is_made(photos, tmp_path, setting):
    words = [*QUICK[:2], "--set", setting]
    call("train", photos, "--out", tmp_path / "out", *words, status=2)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_into_the_data(photos, model):
    _, err = call("train", photos, "--out", photos / "run", *QUICK, status=2)
    assert "inside the data" in err
    _, err = call("evaluate", model, photos, "--out", photos / "page", status=2)
    assert "inside the data" in err
    _, err = call("evaluate", model, photos, "--out", model, status=2)
    assert "report of its own" in err


def test_a_checkpoint_file_is_a_model_too(model, photos, tmp_path):
    from safetensors.torch import load_file, save_file

    whole, _ = call("evaluate", model, photos, "--json")
    said, _ = call("evaluate", model / "model.safetensors", photos, "--json")
    assert said == whole
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(model / "model.safetensors"), bare)
    _, err = call("evaluate", bare, photos, status=2)
    assert "does not say which model it is" in err
    call("predict", bare, photos / "red" / "00.png", "--model", "vit_mu_patch8_32")


def test_overwriting_an_interrupted_run_of_ones_own_goes_on(photos, tmp_path):
    out = tmp_path / "run"
    call("train", photos, "--out", out, *QUICK)
    words = [*QUICK[:2], "--steps", 100_000, "--batch-size", 8, "--overwrite"]
    for _ in range(2):
        process = start("train", photos, "--out", out, *words)
        before = len(records(out, "step")) if (out / "metrics.jsonl").exists() else 0
        while process.poll() is None:
            lines = (out / "metrics.jsonl").read_text() if (out / "metrics.jsonl").exists() else ""
            if '"steps": 100000' in lines and len(records(out, "step")) > before + 3:
                break
            time.sleep(0.01)
        process.send_signal(2)
        process.communicate(timeout=60)
    assert records(out, "start")[0]["step"] == 0
    assert records(out, "start")[-1]["step"] > 0


def test_a_named_pipe_is_no_picture(model, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    process = start("predict", model, tmp_path / "pipe.jpg", "--format", "jsonl")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert json.loads(out)["error"] == "not a file"
    assert err.startswith("error: none of the 1 pictures")


def test_pictures_found_bad_while_training_are_named(photos, tmp_path):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(photos, data)
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    path = data / "red" / "damaged.jpg"
    Image.fromarray(noise).save(path, quality=95)
    damaged = bytearray(path.read_bytes())
    damaged[20_000:20_002] = b"\xff\xd9"  # an end in the middle: only decoding tells
    path.write_bytes(damaged)
    out, words = tmp_path / "run", [*QUICK[:2], "--epochs", 2, "--val-fraction", 0]
    _, err = call("train", data, "--out", out, *words)
    assert "1 picture could not be read in training" in err
    assert "damaged.jpg" in err
    section = json.loads((out / "config.json").read_text())["vitrail"]
    assert list(section["skipped"]) == ["red/damaged.jpg"]
    assert "damaged.jpg" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train"], "missing: DATA, --out"),
        (["train", "x", "--out", "o", "--setps", 3], "no option --setps; did you mean --steps?"),
        (["train", "x", "--out", "o", "--steps", "three"], "--steps cannot be 'three': it takes a"),
        (["train", "x", "--out", "o", "--device", "tpu"], "'tpu': it is one of cpu, cuda"),
        (["train", "x", "--out"], "--out needs a value"),
        (["verify", "a", "b"], "no place for the word b"),
        (["evaluate", "a", "b", "--sizes", "big"], "--sizes cannot be 'big'"),
        (["models", "--layers"], "--layers shows one model"),
        (["predict", "a"], "name the pictures"),
    ],
)
def test_words_that_a_verb_does_not_take_are_one_sentence(words, sentence):
    _, err = call(*words, status=2)
    assert sentence in err


def test_predict_never_writes_over_a_picture(model, photos, tmp_path):
    picture = tmp_path / "a.png"
    shutil.copy(next(photos.rglob("*.png")), picture)
    before = picture.read_bytes()
    _, err = call("predict", model, tmp_path, "--out", picture, status=2)
    assert "is one of the pictures" in err
    assert picture.read_bytes() == before
    _, err = call("predict", model, picture, "--out", tmp_path / "new" / "a.csv", "--format", "csv")
    assert "a.csv says what is on 1 picture" in err
    assert (tmp_path / "new" / "a.csv").read_text().startswith("path,rank,label")


@pytest.mark.parametrize("verb", ["evaluate", "doctor", "probe", "compare", "predict"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(verb, model, photos, tmp_path):
    (tmp_path / "file").write_text("mine")
    inputs = {
        "evaluate": [model, photos],
        "doctor": [photos],
        "probe": [photos, "--models", model],
        "compare": [model, shutil.copytree(model, tmp_path / "other")],
        "predict": [model, photos],
    }[verb]
    _, err = call(verb, *inputs, "--out", tmp_path / "file" / "page", status=2)
    assert "cannot be used as --out" in err
    if verb != "predict":
        _, err = call(verb, *inputs, "--out", tmp_path / "file", status=2)
        assert "is a file; --out needs a folder" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_looking_whether_a_place_can_be_written_makes_nothing(tmp_path, monkeypatch):
    """Another process may be about to fill the folder: removing it would take it away."""
    from vitrail.cli.output import check_out, check_out_file

    monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: pytest.fail("a folder was made"))
    check_out(tmp_path / "some" / "page")
    check_out_file(tmp_path / "some" / "rows.csv", [])
    assert not list(tmp_path.iterdir())


def test_pictures_with_several_labels_from_training_to_evaluation(photos, tmp_path):
    pictures = sorted(photos.rglob("*.png"))
    rows = ["path,labels"]
    rows += [f"{p},{p.parent.name}|{'odd' if k % 2 else 'even'}" for k, p in enumerate(pictures)]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    run = tmp_path / "run"
    words = ["--model", "vit_mu_patch8_32", "--steps", 3, "--batch-size", 8, "--val-fraction", 0.3]
    out, err = call("train", tmp_path / "list.csv", "--out", run, *words)
    assert "mean average precision" in out
    assert "validation mean average precision" in err
    (seen,) = records(run, "eval")[-1:]
    assert 0 <= seen["mean_average_precision"] <= 1
    (done,) = records(run, "done")
    assert done["top1"] is None
    assert done["metrics"]["val"]["n"] > 0
    assert "mean average precision" in (run / "report.html").read_text()
    again, err = call("train", tmp_path / "list.csv", "--out", run, *words)
    assert "finished" in err
    assert again.splitlines()[0] == out.splitlines()[0]
    found = json.loads(call("evaluate", run, tmp_path / "list.csv", "--json")[0])
    assert found["n"] == len(pictures)
