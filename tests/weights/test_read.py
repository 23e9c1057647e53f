"""Files that are not what they seem: one sentence each, nothing run, nothing half loaded."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import randomise
from tests.weights.publisher import Shape, arrays
from vitrail import Error, WeightsError, load_model, load_weights


class Payload:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trained(tiny):
    model = tiny()
    randomise(model)
    return model


def refused(model, source, match, kind=Error):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(kind, match=match) as caught:
        load_weights(model, source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items())
    return str(caught.value)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def raw_npz(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(shape, dtype="<f4", content=b""):
    header = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue() + content


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.pth"])
@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"hello, this is text\n", b"\x00" * 300, b"PK\3\4"]
)
def test_not_a_checkpoint(tmp_path, tiny, name, content):
    (tmp_path / name).write_bytes(content)
    told = refused(tiny(), tmp_path / name, name)
    if content.startswith(b"hello"):
        assert "hello, this is text" in told


def test_text_says_what_it_is(tmp_path, tiny):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 346\n"
    (tmp_path / "x.safetensors").write_text(pointer)
    refused(tiny(), tmp_path / "x.safetensors", "text that begins 'version https://git-lfs")


@pytest.mark.parametrize("kind", ["safetensors", "npz", "pth", "old.pth"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_cut_short(tmp_path, tiny, trained, kind, share):
    path = tmp_path / f"x.{kind}"
    state = dict(trained.state_dict())
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "npz":
        npz(path, **arrays(Shape()))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pth")
    whole = path.read_bytes()
    load_weights(tiny(), path)
    path.write_bytes(whole[: int(share * len(whole))])
    refused(tiny(), path, "cut short")


def test_mutated_files_never_crash(tmp_path, tiny, trained):
    """A flipped byte anywhere: loaded or refused in words, never another exception."""
    rng = np.random.default_rng(0)
    small = dict(list(trained.state_dict().items())[:4])
    save_file(small, tmp_path / "a.safetensors")
    npz(tmp_path / "a.npz", **{n.replace(".", "/"): t.numpy() for n, t in small.items()})
    torch.save(small, tmp_path / "a.pth")
    for path in [tmp_path / f"a.{kind}" for kind in ("safetensors", "npz", "pth")]:
        whole = path.read_bytes()
        for at in rng.integers(0, len(whole), 60):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
            with pytest.raises(Error):
                load_weights(tiny(), path)


@pytest.mark.parametrize("kind", ["pth", "old.pth", "pickle", "npz", "npz member"])
def test_code_in_a_file_is_not_run(tmp_path, tiny, trained, kind):
    path, target = tmp_path / "x.pth", tmp_path / "made"
    content = {**trained.state_dict(), "extra": Payload(target)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    elif kind == "npz":
        np.savez(
            path.open("wb"), **arrays(Shape()), extra=np.array([Payload(target)], dtype=object)
        )
    elif kind == "npz member":
        pickled = pickle.dumps(np.array([Payload(target)], dtype=object))
        raw_npz(path, {"embedding/kernel": npy((1,), "|O", pickled)})
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "pth")
    refused(tiny(), path, "could run code")
    assert not target.exists()


def test_what_was_pickled_is_named(tmp_path, tiny):
    torch.save({"w": torch.ones(1), "x": Payload(tmp_path / "made")}, tmp_path / "x.pth")
    told = refused(tiny(), tmp_path / "x.pth", "could run code")
    assert f"{os.mkdir.__module__}.mkdir" in told


def test_torchscript_is_refused(tmp_path, tiny):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"x/{name}", b"\x80\x02}.")
    refused(tiny(), tmp_path / "x.pt", r"x\.pt")


@pytest.mark.parametrize("kind", ["npz", "pth"])
def test_bombs_are_not_opened(tmp_path, tiny, kind):
    """40 MB of zeros in 40 kB: no weights compress like that."""
    path = tmp_path / f"x.{kind}"
    zeros = bytes(40_000_000)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if kind == "npz":
            archive.writestr("embedding/kernel.npy", npy((10_000_000,)) + zeros)
        else:
            archive.writestr("x/data.pkl", b"\x80\x02}.")
            archive.writestr("x/data/0", zeros)
    del zeros
    refused(tiny(), path, "would unpack")


@pytest.mark.parametrize(
    "member",
    [
        npy((10**12,), content=bytes(8)),
        npy((-1,), content=bytes(8)),
        npy((2, 3), content=bytes(20)),
        npy((2, 3), content=bytes(28)),
        npy((2,), "<U4", bytes(32)),
        npy((2,), "<c8", bytes(16)),
        b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 100,
        b"nothing",
        b"",
    ],
)
def test_arrays_that_lie_about_themselves(tmp_path, tiny, member):
    path = raw_npz(tmp_path / "x.npz", {"embedding/kernel": member})
    refused(tiny(), path, "embedding/kernel")


def test_arrays_in_fortran_order_and_other_byte_orders(tmp_path, tiny):
    file = arrays(Shape())
    plain, turned = tiny(), tiny()
    load_weights(plain, npz(tmp_path / "a.npz", **file))
    odd = {name: np.asfortranarray(array).astype(">f4") for name, array in file.items()}
    load_weights(turned, npz(tmp_path / "b.npz", **odd))
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in turned.state_dict().items())


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {}, {"a": 1}, {"model": {}}])
def test_no_state_dict(tmp_path, tiny, content):
    torch.save(content, tmp_path / "x.pth")
    refused(tiny(), tmp_path / "x.pth", r"x\.pth holds")


def shards(folder, state, split=8):
    names = list(state)
    files = {"model-1.safetensors": names[:split], "model-2.safetensors": names[split:]}
    for file, held in files.items():
        save_file({name: state[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_sharded_folders(tmp_path, tiny, trained):
    index = shards(tmp_path, dict(trained.state_dict()))
    model = tiny()
    assert len(load_weights(model, tmp_path).matched) == len(model.state_dict())
    assert all(torch.equal(t, trained.state_dict()[n]) for n, t in model.state_dict().items())
    index["weight_map"]["lost"] = "model-2.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tiny(), tmp_path, "lacks lost", WeightsError)
    index["weight_map"]["lost"] = "../outside.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tiny(), tmp_path, "not in its own folder")
    (tmp_path / "model-2.safetensors").unlink()
    index["weight_map"].pop("lost")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tiny(), tmp_path, "model-2.safetensors, which is not there")


def test_folders_with_one_file_and_with_several(tmp_path, tiny, trained):
    refused(tiny(), tmp_path, "holds no weights")
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    load_weights(tiny(), tmp_path)
    torch.save(trained.state_dict(), tmp_path / "b.pth")
    refused(tiny(), tmp_path, r"several files of weights \(a\.pth, b\.pth\)")


def test_no_such_file(tmp_path, tiny):
    (tmp_path / "weights.npz").touch()
    told = refused(tiny(), tmp_path / "weight.npz", "no file or folder")
    assert "did you mean 'weights.npz'" in told
    refused(tiny(), "https://example.com/x.npz", "addresses are not opened")
    with pytest.raises(Error, match="write hf-hub:google/vit-base-patch16-224"):
        load_model("google/vit-base-patch16-224")


def sparse(tensor):
    return tensor.to_sparse()


def endless(tensor):
    return torch.zeros(1).expand(1, 10**9, 24)


@pytest.mark.parametrize("kind", [sparse, endless])
def test_tensors_of_another_build_are_refused(tmp_path, tiny, trained, kind):
    content = {**trained.state_dict(), "pos_embed": kind(trained.pos_embed.detach())}
    torch.save(content, tmp_path / "x.pth")
    refused(tiny(), tmp_path / "x.pth", "pos_embed is not an ordinary tensor", WeightsError)
