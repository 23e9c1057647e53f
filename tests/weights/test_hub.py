"""Names on the hub, tested on a cache laid out as the hub's own, without a network."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tests.reference.torchvision_stub  # noqa: F401  (before timm)
from tests.commands import call
from tests.conftest import randomise
from tests.data.pictures import write_classes
from tests.weights.conftest import close
from vitrail import Error, create_model, load_model, load_weights, save_model
from vitrail.models.zoo import from_config
from vitrail.weights import hub
from vitrail.weights.read import description_of, labels_of

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZES = {"depth": 2, "width": 24, "heads": 3, "mlp_width": 48, "patch_size": 4}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no way to any hub."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("VITRAIL_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub._snapshot.cache_clear()
    yield folder
    hub._snapshot.cache_clear()


def published(
    cache: Path, repository: str, files: dict[str, bytes], revision: str = "main"
) -> Path:
    """Lay a repository out as the hub's cache has it: blobs, and links by commit."""
    root = cache / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True)
    (root / "refs" / revision).write_text(COMMIT)
    for number, (name, content) in enumerate(files.items()):
        (root / "blobs" / f"{number:040x}").write_bytes(content)
        (snapshot / name).symlink_to(Path("../../blobs") / f"{number:040x}")
    return snapshot


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def ours(tmp_path):
    model = from_config("vit", {**SIZES, "image_size": 12, "num_classes": 3})
    randomise(model)
    save_model(model, tmp_path / "ours", labels=["bird", "cat", "dog"])
    return model


def pictures(size=12):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_our_own_folder_on_the_hub(tmp_path, cache, ours):
    published(cache, "someone/pets", files_of(tmp_path / "ours"))
    model = load_model("hf-hub:someone/pets")
    assert torch.equal(model(pictures()), ours(pictures()))
    assert model.labels == labels_of("hf-hub:someone/pets") == ["bird", "cat", "dog"]
    other = from_config("vit", {**SIZES, "image_size": 12, "num_classes": 3})
    assert load_weights(other, "hf-hub:someone/pets").family == "vitrail"
    assert torch.equal(other(pictures()), ours(pictures()))


@torch.no_grad()
def test_a_revision(tmp_path, cache, ours):
    published(cache, "someone/pets", files_of(tmp_path / "ours"), revision="v2")
    assert torch.equal(load_model("hf-hub:someone/pets@v2")(pictures()), ours(pictures()))
    with pytest.raises(Error, match="not in the cache"):
        load_model("hf-hub:someone/pets")


@torch.no_grad()
def test_timms_repository_needs_no_name(cache):
    import timm

    theirs = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=4, img_size=32).eval()
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 4,
        "model_args": {"depth": 1, "img_size": 32},
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "crop_pct": 0.95},
    }
    path = cache / "x.safetensors"
    cache.mkdir()
    save_file({n: t.contiguous() for n, t in theirs.state_dict().items()}, path)
    files = {"model.safetensors": path.read_bytes(), "config.json": json.dumps(config).encode()}
    published(cache, "timm/vit_tiny_patch16_224.x", files)
    model = load_model("hf-hub:timm/vit_tiny_patch16_224.x")
    assert (model.num_classes, model.image_size, model.config.depth) == (4, 32, 1)
    assert model.preprocessing.mean == (0.1, 0.2, 0.3)
    assert close(model(pictures(32)), theirs(pictures(32)), 1e-5)
    about = description_of("hf-hub:timm/vit_tiny_patch16_224.x")
    assert about is not None
    assert (about["name"], about["config"]["depth"]) == ("vit_tiny_patch16_224", 1)


@torch.no_grad()
def test_transformers_repository_needs_no_name(tmp_path, cache):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=12,
        patch_size=4,
        num_labels=5,
    )
    theirs = transformers.ViTForImageClassification(config).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "hf")
    published(cache, "google/vit-tiny", files_of(tmp_path / "hf"))
    model = load_model("hf-hub:google/vit-tiny")
    assert (model.num_classes, model.image_size, model.config.norm_eps) == (5, 12, 1e-12)
    assert model.labels is None
    assert close(model(pictures()), theirs(pictures()).logits, 1e-5)


def test_the_verbs_take_a_name_on_the_hub(tmp_path, cache, ours):
    published(cache, "someone/pets", files_of(tmp_path / "ours"))
    data = tmp_path / "data"
    write_classes(data, {"bird": 4, "cat": 4, "dog": 4})
    out, _ = call("evaluate", "hf-hub:someone/pets", data, "--json")
    assert json.loads(out)["n"] == 12
    out, _ = call("predict", "hf-hub:someone/pets", data / "cat", "--format", "jsonl")
    assert len(out.splitlines()) == 4
    call("verify", "hf-hub:someone/pets")
    out, _ = call("convert", "hf-hub:someone/pets", tmp_path / "there", "--to", "timm")
    assert (tmp_path / "there" / "model.safetensors").exists()
    run = tmp_path / "run"
    words = (
        "--weights",
        "hf-hub:someone/pets",
        "--steps",
        1,
        "--batch-size",
        2,
        "--image-size",
        12,
    )
    call("train", data, "--out", run, *words)
    assert load_model(run).config.width == 24


def test_no_network_and_nothing_in_the_cache(cache):
    for source in ("hf-hub:someone/else", "hf-hub:someone/else@v3"):
        with pytest.raises(Error, match="not in the cache") as caught:
            load_model(source)
        assert "\n" not in str(caught.value)
        assert str(cache) in str(caught.value)
    _, err = call("predict", "hf-hub:someone/else", "x.jpg", status=2)
    assert "x.jpg" in err or "not in the cache" in err


@pytest.mark.parametrize(
    "name", ["hf-hub:", "hf-hub:one", "hf-hub:a/b/c", "hf-hub:../x", "hf-hub:a/b@"]
)
def test_what_is_no_name(cache, name):
    with pytest.raises(Error, match=r"not written as|no such repository|not in the cache"):
        load_model(name)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_from_the_hub_is_never_opened(tmp_path, cache, ours):
    """Even where it lies in the cache, beside the config: safetensors or nothing."""
    target = tmp_path / "made"
    files = {
        "config.json": (tmp_path / "ours" / "config.json").read_bytes(),
        "pytorch_model.bin": pickle.dumps({"model": Payload(target)}),
    }
    published(cache, "someone/old", files)
    with pytest.raises(Error, match="no safetensors"):
        load_model("hf-hub:someone/old")
    assert not target.exists()
    index = {"weight_map": {"pos_embed": "pytorch_model-00001-of-00001.bin"}}
    files["pytorch_model.bin.index.json"] = json.dumps(index).encode()
    files["other.safetensors"] = (tmp_path / "ours" / "model.safetensors").read_bytes()
    files["config.json"] = b'{"architecture": "vit_tiny_patch16_224"}'
    published(cache, "someone/mixed", files)
    model = load_model("hf-hub:someone/mixed")  # the other file, which is safe
    assert torch.equal(model.pos_embed, ours.pos_embed)
    assert not target.exists()


def test_only_safetensors_and_json_are_asked_for(cache, monkeypatch):
    asked = {}

    def snapshot_download(repository, **how):
        asked.update(how, repository=repository)
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(Error, match="cannot be reached"):
        load_model("hf-hub:a/b")
    assert asked["repository"] == "a/b"
    assert all(p.endswith((".safetensors", ".json")) for p in asked["allow_patterns"])
    assert Path(asked["cache_dir"]).is_relative_to(cache)


def test_without_the_extra(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Error, match=r"pip install 'vitrail\[hf\]'"):
        load_model("hf-hub:a/b")


def test_nothing_is_written_outside_of_the_cache(tmp_path):
    """In a process of its own, where no network answers: the home folder stays empty."""
    home = tmp_path / "home"
    home.mkdir()
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HOME": str(home),
        "VITRAIL_CACHE": str(tmp_path / "cache"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    words = [sys.executable, "-m", "vitrail", "verify", "hf-hub:someone/else"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot be reached" in done.stderr
    assert list(home.iterdir()) == []


def test_names_of_architectures_stay_names():
    assert create_model("google/vit-base-patch16-224", depth=1, width=24, heads=3).config.depth == 1
