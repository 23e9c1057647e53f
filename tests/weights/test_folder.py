"""Model folders: written whole or not at all, opened as they were, refused when damaged."""

import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import randomise
from tests.weights.publisher import Shape, arrays
from vitrail import Error, load_model, load_weights, save_model
from vitrail.kit.preprocess import Preprocessing
from vitrail.weights.folder import read_config, update_details
from vitrail.weights.read import labels_of

LABELS = ["ant", "bee", "cat", "dog", "elk"]


@pytest.fixture
def trained(tiny):
    model = tiny(dtype=torch.float32)
    randomise(model)
    model.preprocessing = Preprocessing(size=(12, 12), mean=(0.1,) * 3, crop=0.7, fit="letterbox")
    return model.set_labels(LABELS)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def equal(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image_size": (8, 32)},
        {"pool": "map", "pre_logits": True},
        {"position": "sincos2d_mae"},
        {"registers": 2, "layer_scale": 0.1, "norm_eps": 1e-5, "attention_scale": "width"},
        {"num_classes": 0},
        {"activation": "gelu_tanh", "drop_path": 0.1, "position_resize": "bilinear_corners"},
    ],
)
def test_saved_and_opened(tmp_path, tiny, fields):
    model = tiny(dtype=torch.float32, **fields)
    randomise(model)
    model.train()
    save_model(model, tmp_path / "a" / "folder")
    again = load_model(tmp_path / "a" / "folder")
    assert equal(again, model)
    assert again.config == model.config
    assert again.preprocessing == model.preprocessing
    assert again.labels is None
    assert not again.training
    assert model.training
    names = {p.name for p in (tmp_path / "a" / "folder").iterdir()}
    assert names == {"config.json", "model.safetensors"}


def test_equal_models_are_equal_files(tmp_path, trained):
    files = {
        (save_model(trained, tmp_path / str(i)) / "model.safetensors").read_bytes()
        for i in range(12)
    }
    assert len(files) == 1


def test_labels_and_preprocessing_travel(tmp_path, trained, tiny):
    save_model(trained, tmp_path)
    again = load_model(str(tmp_path))
    assert again.labels == LABELS == labels_of(tmp_path)
    assert again.preprocessing == trained.preprocessing
    by_file = load_model(tmp_path / "model.safetensors")  # a file says what it is, too
    assert equal(by_file, trained)
    assert by_file.labels == LABELS == labels_of(tmp_path / "model.safetensors")
    loaded = tiny()
    report = load_weights(loaded, tmp_path)
    assert report.family == "vitrail"
    assert loaded.labels == LABELS
    assert loaded.preprocessing == trained.preprocessing


def test_the_given_labels_win_and_are_counted(tmp_path, trained):
    save_model(trained, tmp_path, list("vwxyz"))
    assert load_model(tmp_path).labels == list("vwxyz")
    assert trained.labels == LABELS
    with pytest.raises(Error, match="2 labels for a model of 5 classes"):
        save_model(trained, tmp_path / "new", ["a", "b"])
    assert not (tmp_path / "new").exists()


def test_config_json_is_whole(tmp_path, trained):
    details = {"recipe": {"steps": 3}, "metrics": {"top1": 0.5, "loss": float("nan")}}
    save_model(trained, tmp_path, details=details)
    config = json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)
    section = config["vitrail"]
    assert section["recipe"] == {"steps": 3}
    assert section["metrics"] == {"top1": 0.5, "loss": None}
    assert section["sha256"] == sha256(tmp_path / "model.safetensors")
    assert section["family"] == "vit"
    assert section["config"]["width"] == trained.config.width
    assert section["labels"] == LABELS
    assert config["pretrained_cfg"]["label_names"] == LABELS
    assert config["num_features"] == 24
    assert config == read_config(tmp_path)


def test_details_are_added_and_cannot_say_what_the_model_is(tmp_path, trained):
    save_model(trained, tmp_path, details={"metrics": {"top1": 0.5}})
    update_details(tmp_path, temperature={"final": 1.5}, metrics={"top1": 0.6})
    section = read_config(tmp_path)["vitrail"]
    assert section["temperature"] == {"final": 1.5}
    assert section["metrics"] == {"top1": 0.6}
    assert equal(load_model(tmp_path), trained)
    with pytest.raises(Error, match="sha256"):
        update_details(tmp_path, sha256="0")
    with pytest.raises(Error, match="config"):
        save_model(trained, tmp_path, details={"config": {}})
    save_model(trained, tmp_path)  # other weights: what was measured on the old ones goes
    assert "temperature" not in read_config(tmp_path)["vitrail"]


def test_best(tmp_path, tiny, trained):
    final = tiny(dtype=torch.float32)
    save_model(final, tmp_path)
    assert equal(load_model(tmp_path, which="best"), final)  # there is none: the final ones
    update_details(tmp_path, ledger={"seconds": 1})
    save_model(trained, tmp_path, weights_file="best.safetensors")
    assert equal(load_model(tmp_path, which="best"), trained)
    assert equal(load_model(tmp_path), final)
    section = read_config(tmp_path)["vitrail"]
    assert section["best_sha256"] == sha256(tmp_path / "best.safetensors")
    assert section["ledger"] == {"seconds": 1}
    save_model(final, tmp_path)
    assert equal(load_model(tmp_path, which="best"), trained)
    flip(tmp_path / "best.safetensors")
    with pytest.raises(Error, match=r"best\.safetensors is damaged"):
        load_model(tmp_path, which="best")
    with pytest.raises(Error, match="'final' or 'best'"):
        load_model(tmp_path, which="last")


def test_best_written_by_somebody_else_is_recorded_with_the_final_ones(tmp_path, tiny, trained):
    save_file(dict(trained.state_dict()), tmp_path / "best.safetensors")
    save_model(tiny(), tmp_path)
    assert equal(load_model(tmp_path, which="best"), trained)
    assert read_config(tmp_path)["vitrail"]["best_sha256"] == sha256(tmp_path / "best.safetensors")


def test_best_before_the_end(tmp_path, trained):
    save_model(trained, tmp_path, weights_file="best.safetensors")
    assert equal(load_model(tmp_path, which="best"), trained)
    with pytest.raises(Error, match=r"no model\.safetensors; it has best\.safetensors"):
        load_model(tmp_path)


def flip(path, at=None):
    content = bytearray(path.read_bytes())
    content[at if at is not None else len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_anywhere_is_refused(tmp_path, trained, tiny):
    save_model(trained, tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(whole), 30):
        flip(path, at)
        with pytest.raises(Error, match=r"model\.safetensors is damaged"):
            load_model(tmp_path)
        path.write_bytes(whole)
    flip(path)
    with pytest.raises(Error, match="damaged"):
        load_weights(tiny(), tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.update(format=2), "update Vitrail"),
        (lambda s: s.update(format="x"), "damaged"),
        (lambda s: s.pop("config"), "damaged"),
        (lambda s: s.pop("preprocessing"), "damaged"),
        (lambda s: s.update(family="os"), "unknown model family 'os'"),
        (lambda s: s["config"].update(wdth=3), "did you mean 'width'"),
        (lambda s: s["config"].update(width=30), "does not fit"),
        (lambda s: s.update(labels=["a"]), "1 labels"),
    ],
)
def test_a_changed_config_is_refused_in_words(tmp_path, trained, change, match):
    save_model(trained, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config["vitrail"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(Error, match=match) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_folders_that_are_none(tmp_path, trained, tiny):
    with pytest.raises(Error, match="no file or folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(Error, match=r"no config\.json"):
        load_model(tmp_path)
    save_model(trained, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(Error, match=r"no model\.safetensors"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(Error, match="JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "convnext_tiny"}')
    with pytest.raises(Error, match=r"another library's.*convnext_tiny"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    with pytest.raises(Error, match="holds no weights"):
        load_model(tmp_path)
    with pytest.raises(Error, match="another library's model"):
        save_model(tiny(), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(Error, match="cannot be made"):
        save_model(tiny(), tmp_path / "file")


def test_checkpoints_with_a_name(tmp_path, images):
    shape = Shape(patch=4, width=32, heads=2, depth=1, mlp=128, pre_logits=True)
    np.savez(tmp_path / "x.npz", **arrays(shape))
    with pytest.raises(Error, match="give its name"):
        load_model(tmp_path / "x.npz")
    model = load_model(tmp_path / "x.npz", "vit_mu_patch4_12")
    assert model.num_classes == 5
    assert model.config.pre_logits
    assert model.config.activation == "gelu_tanh"
    assert not model.training
    torch.save(model.state_dict(), tmp_path / "x.pth")
    again = load_model(str(tmp_path / "x.pth"), name="vit_mu_patch4_12")
    assert equal(again, model)
    assert again.config.activation == "gelu"  # a timm file has timm's numerics


@pytest.mark.skipif(os.name != "posix", reason="no permissions")
def test_others_may_read_what_the_umask_lets_them(tmp_path, trained):
    old = os.umask(0o022)
    try:
        save_model(trained, tmp_path)
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o644}


def save_in_vain(model, folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(
        Error, match=r"cannot be written \(no space left for [\d,]{6} bytes"
    ) as caught:
        save_model(model, folder)
    assert str(folder) in str(caught.value)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="no limits")
@pytest.mark.parametrize("limit", [0, 100, 1_000, 20_000])
def test_a_full_disk_leaves_what_was_there(tmp_path, tiny, trained, limit):
    save_model(trained, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size > 20_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        save_in_vain(tiny(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert equal(load_model(tmp_path), trained)


CASES = [("replace", 1), ("replace", 2), ("replace", 3), ("fsync", 1), ("fsync", 3), ("fsync", 5)]
KILLED = """
import os, signal, sys
from vitrail import load_model, save_model

def killed_at(folder, call, at):
    model = load_model(folder)
    for parameter in model.parameters():
        parameter.data.add_(1)
    seen, real = 0, getattr(os, call)
    def counted(*arguments):
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    setattr(os, call, counted)
    save_model(model, folder)

for folder in sys.argv[1:]:
    if not os.fork():
        call, at = os.path.basename(folder).split("-")
        killed_at(folder, call, int(at))
        os._exit(0)
    assert os.WIFSIGNALED(os.wait()[1]), folder
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_at_any_step_the_folder_opens(tmp_path, trained):
    """A kill before each rename and around it: the old model or the new one, never neither."""
    folders = [tmp_path / f"{call}-{at}" for call, at in CASES]
    for folder in folders:
        save_model(trained, folder)
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", KILLED, *map(str, folders)], env=quiet, check=True)
    outcomes = []
    for folder in folders:
        found = load_model(folder)
        outcomes.append(not equal(found, trained))
        if outcomes[-1]:
            assert torch.equal(found.head.bias, trained.head.bias + 1)
        update_details(folder, note="still a folder")
        assert equal(load_model(folder), found)
        save_model(trained, folder)
        assert equal(load_model(folder), trained)
        assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert outcomes == [False, False, True, False, False, True]


def test_flushed_before_renamed_and_weights_before_config(tmp_path, tiny, monkeypatch):
    """The order that makes the promise: flush, rename, flush the folder; the config last."""
    steps = []
    real_replace, real_fsync = os.replace, os.fsync

    def replace(source, target):
        steps.append(Path(target).name)
        real_replace(source, target)

    def fsync(handle):
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "flush")
        real_fsync(handle)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "fsync", fsync)
    save_model(tiny(), tmp_path)
    assert steps == ["flush", "model.safetensors", "folder", "flush", "config.json", "folder"]
