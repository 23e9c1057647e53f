"""`vitrail serve` at its start: what is wrong is one sentence, status 2, and nothing listens."""

import contextlib
import importlib.util
import json
import re
import shlex
import shutil
import socket
from pathlib import Path

import pytest

from tests.commands import call
from tests.data.pictures import encoded, smooth
from tests.export.small import CLASSES
from tests.serving.running import ROOT, command
from vitrail.kit.errors import Error
from vitrail.serving.server import bound
from vitrail.serving.settings import Settings


def refused(*words: object) -> str:
    out, err = call("serve", *words, status=2)
    assert out == ""
    return err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.7"])
def test_a_public_address_without_a_token(host, model_folder, monkeypatch):
    monkeypatch.setenv("VITRAIL_TOKEN", "")
    err = refused(model_folder, "--host", host, "--port", 0)
    assert "VITRAIL_TOKEN" in err
    assert "--token" in err


def test_a_public_address_with_a_token_and_private_ones_without():
    for host, token in (("0.0.0.0", "t"), ("127.0.0.1", None), ("localhost", None)):
        bound(host, 0, token).close()
    with contextlib.suppress(Error):  # where the machine has no IPv6
        bound("::1", 0, None).close()


def test_an_address_that_is_none(model_folder):
    assert "no address" in refused(model_folder, "--host", "no.such.host.invalid")


def test_a_port_in_use(model_folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        err = refused(model_folder, "--port", port)
        assert str(port) in err
        assert "in use" in err


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "python_multipart", "prometheus_client"])
def test_a_missing_extra(package, model_folder, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else found(name, *a)
    )
    err = refused(model_folder)
    assert package in err
    assert "pip install 'vitrail[serve]'" in err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--port", 70000], "--port"),
        (["--queue", 0], "--queue"),
        (["--deadline", 0], "--deadline"),
        (["--deadline", "nan"], "--deadline"),
        (["--workers", 0], "--workers"),
        (["--threads", 0], "--threads"),
        (["--max-bytes", -1], "--max-bytes"),
        (["--max-pixels", 0], "--max-pixels"),
        (["--batch-size", 0], "--batch-size"),
        (["--token", ""], "token"),
        (["--token", "two words"], "token"),
        (["--token", "line\nbreak"], "token"),
        (["--token", "t", "--token-file", "f"], "--token-file"),
        (["--token-file", "/no/such/file"], "/no/such/file"),
        (["--que", 1], "--queue"),
    ],
)
def test_flags_that_cannot_be(words, part, model_folder):
    assert part in refused(model_folder, *words)


def test_a_token_from_a_file(tmp_path, monkeypatch):
    import vitrail.serving.server as server

    seen: list[Settings] = []
    monkeypatch.setattr(server, "serve", lambda settings, *rest: seen.append(settings) or 0)
    (tmp_path / "token").write_text("from-a-file\n")
    call("serve", "m", "--token-file", tmp_path / "token")
    monkeypatch.setenv("VITRAIL_TOKEN", "from-outside")
    call("serve", "m")
    call("serve", "m", "--token", "given")
    assert [settings.token for settings in seen] == ["from-a-file", "from-outside", "given"]


@pytest.mark.slow
def test_no_model_there(tmp_path):
    assert str(tmp_path / "nothing") in refused(tmp_path / "nothing", "--port", 0)


@pytest.fixture(scope="module")
def bundle(model_folder, tmp_path_factory) -> Path:
    """A bundle of the model."""
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    call("export", model_folder, "--to", "torch", "--no-check", "--out", folder)
    return folder


def test_a_bundle_of_which_one_bit_is_another(bundle, tmp_path):
    broken = shutil.copytree(bundle, tmp_path / "broken")
    graph = broken / "model.safetensors"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    assert "model.safetensors" in refused(broken, "--port", 0)


def test_a_bundle_of_a_newer_format(bundle, tmp_path):
    newer = shutil.copytree(bundle, tmp_path / "newer")
    fields = json.loads((newer / "bundle.json").read_text())
    (newer / "bundle.json").write_text(json.dumps({**fields, "format": 2}))
    err = refused(newer, "--port", 0)
    assert "format 2" in err
    assert "update Vitrail" in err


def check_served(bundle: Path, folder: Path, runtime: str) -> None:
    """The real command on a bundle, with a token: its answers are the classifier's."""
    import vitrail

    pictures = [encoded(smooth(50, 30 + k, seed=k)) for k in range(3)]
    expected = vitrail.Classifier(bundle, threads=1)(pictures)
    with command(folder, bundle, "--threads", 1, VITRAIL_TOKEN="t0ken") as server:
        assert server.classify(pictures[0]).status_code == 401
        server.client.headers["authorization"] = "Bearer t0ken"
        said = server.client.get("/v1/model").json()
        assert (said["runtime"], said["gate"], said["labels"]) == (runtime, None, list(CLASSES))
        results = server.form(*pictures).json()["results"]
        for answer, one in zip(results, expected, strict=True):
            got = [(entry["label"], entry["probability"]) for entry in answer["predictions"]]
            assert [label for label, _ in got] == [label for label, _ in one]
            assert [p for _, p in got] == pytest.approx([p for _, p in one], abs=1e-5)
        assert server.end() == 0


def test_a_bundle_is_served_and_answers_as_the_classifier_does(bundle, tmp_path):
    check_served(bundle, tmp_path, "torch")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_graphs_are_served(runtime, model_folder, tmp_path):
    pytest.importorskip("onnxscript" if runtime == "onnx" else runtime)
    call("export", model_folder, "--to", runtime, "--no-check", "--out", tmp_path / "bundle")
    check_served(tmp_path / "bundle", tmp_path / "server", runtime)


def test_the_examples_are_commands_that_there_are():
    from vitrail.cli import VERBS
    from vitrail.cli.parse import parsed

    folder = ROOT / "examples" / "serving"
    unit = (folder / "vitrail.service").read_text()
    (start,) = re.findall(r"^ExecStart=\S+/vitrail serve (.*)$", unit, re.M)
    (entry,) = re.findall(
        r"^ENTRYPOINT (\[.*?\])$",
        (folder / "Dockerfile").read_text().replace("\\\n", ""),
        re.M | re.S,
    )
    _, verb, *words = json.loads(entry)
    assert verb == "serve"
    for given in (shlex.split(start), words):
        call = parsed(VERBS["serve"], "serve", given)
        assert call.keywords["token_file"].name == "token"
    stop = int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)[0])
    assert stop > Settings().drain_seconds + Settings().notice_seconds + 2
