"""Each status that the contract names, triggered once, and what stands in its answer."""

import dataclasses
import json
import os
import shutil
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.data.pictures import encoded, smooth
from tests.data.test_decode import png
from tests.serving.load import load
from tests.serving.running import ANY, PNG, answer_on, command, seconds_until
from vitrail.export.bundle import read_manifest
from vitrail.serving.app import PARAMETERS

PICTURE = encoded(smooth(40, 40))
TOKEN = "s3cret-token"
BEARER = {"authorization": f"Bearer {TOKEN}"}


def problem(answer: httpx.Response, status: int) -> str:
    """Check a refusal; its sentence."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error", "request_id"}
    assert body["request_id"] == answer.headers["x-request-id"]
    assert "\n" not in body["error"]
    return body["error"]


def test_one_picture_and_several(real):
    one = real.client.post("/v1/classify", content=PICTURE, headers=PNG).json()
    assert one["model"] == "trees"
    (result,) = one["results"]
    labels = [entry["label"] for entry in result["predictions"]]
    chances = [entry["probability"] for entry in result["predictions"]]
    assert sorted(labels) == ["ash", "birch", "cedar", "elm"]
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(1, abs=1e-6)
    several = real.form(PICTURE, b"no picture", PICTURE, top_k=1)
    assert several.status_code == 200
    first, bad, last = several.json()["results"]
    assert first == last
    assert [entry["label"] for entry in first["predictions"]] == labels[:1]
    assert set(bad) == {"error"}
    assert "not a picture" in bad["error"]


def test_answers_are_those_of_the_classifier(real, model_folder):
    import vitrail

    pictures = [
        encoded(smooth(30 + 7 * k, 50, seed=k), "JPEG" if k % 2 else "PNG") for k in range(7)
    ]
    expected = vitrail.Classifier(model_folder, threads=1)(pictures, top_k=4)
    for answer, one in zip(real.form(*pictures).json()["results"], expected, strict=True):
        assert [entry["label"] for entry in answer["predictions"]] == [label for label, _ in one]
        got = [entry["probability"] for entry in answer["predictions"]]
        assert got == pytest.approx([chance for _, chance in one], abs=1e-5)


def test_400_what_is_no_picture(real):
    assert "known format" in problem(real.classify(b"a text file called .jpg"), 400)
    assert "empty" in problem(real.classify(b""), 400)
    assert "cut short" in problem(real.classify(PICTURE[:-20]), 400)
    assert "known format" in problem(real.form(b"<svg/>"), 400)
    broken = {"content-type": "multipart/form-data; boundary=x"}
    for body in (
        b"nothing of the kind",
        b"--x\r\nContent-Disposition: form-data; name=image\r\n\r\nab",
    ):
        answer = real.client.post("/v1/classify", content=body, headers=broken)
        assert "form" in problem(answer, 400)
    nothing = {"content-type": "multipart/form-data"}
    assert "form" in problem(real.client.post("/v1/classify", content=b"x", headers=nothing), 400)


def test_400_what_is_no_http(real):
    before = real.metric("vitrail_requests_total", status="400")
    for sent in (
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    ):
        with real.open() as connection:
            connection.sendall(sent + b"\r\n\r\n")
            status, _, body = answer_on(connection)
            assert status == 400
            assert json.loads(body)["error"]
    assert real.metric("vitrail_requests_total", status="400") == before + 3


def test_404_and_405(real):
    for path in ("/nothing", "/v1/classify/", "/v1/models", "/docs", "/etc/passwd", "/%2e%2e/x"):
        problem(real.client.get(path), 404)
    problem(real.client.get("/v1/classify"), 405)
    problem(real.client.delete("/v1/model"), 405)


def test_413_too_many_bytes_pixels_and_pictures(real):
    assert "20,000,000 bytes" in problem(real.classify(bytes(20_000_001)), 413)
    large = png(20_000, 20_000, 8, 2, b"")
    assert "limit" in problem(real.classify(large), 413)
    assert "16 pictures" in problem(real.form(*[PICTURE] * 17), 413)
    one, other = real.form(large, PICTURE).json()["results"]
    assert "limit" in one["error"]
    assert other["predictions"]


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/json"},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "nonsense"},
        {"content-type": "multipart/mixed; boundary=x"},
        {"content-type": "image/png", "content-encoding": "gzip"},
    ],
)
def test_415_other_types(real, headers):
    problem(real.client.post("/v1/classify", content=PICTURE, headers=headers), 415)


@pytest.mark.parametrize("top_k", ["0", "-1", "many", "1.5", "", "1000000000000000000000"])
def test_422_parameters(real, top_k):
    assert problem(real.classify(PICTURE, top_k=top_k), 422).startswith("top_k: ")


def test_422_parameters_that_there_are_not(real):
    said = problem(real.classify(PICTURE, topk=3), 422)
    assert said == "there is no parameter 'topk'; did you mean 'top_k'?"
    assert "did you mean 'attention'" in problem(real.form(PICTURE, top_k=1, atention="true"), 422)
    assert "there are top_k and attention" in problem(real.classify(PICTURE, url="http://x"), 422)
    assert len(problem(real.classify(PICTURE, **{"x" * 5000: 1}), 422)) < 200
    said = problem(real.classify(PICTURE, top_k=[1, 3]), 422)
    assert said == "top_k is given more than once"
    (operation,) = real.client.get("/openapi.json").json()["paths"]["/v1/classify"].values()
    assert {one["name"] for one in operation["parameters"]} == set(PARAMETERS)


def test_422_fields(real):
    assert "'file'" in problem(real.form(PICTURE, field="file"), 422)
    empty = {"content-type": "multipart/form-data; boundary=x"}
    answer = real.client.post("/v1/classify", content=b"--x--\r\n", headers=empty)
    assert "no field 'image'" in problem(answer, 422)


def test_401_without_the_token(serving):
    server = serving(token=TOKEN)
    wrong = [
        "",
        "Bearer",
        "Bearer wrong",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        "Bearer \xff",
    ]
    for given in wrong:
        for method, path in (("POST", "/v1/classify"), ("GET", "/v1/model"), ("GET", "/nothing")):
            headers = {"authorization": given.encode("latin-1"), **ANY}
            answer = server.client.request(method, path, content=b"x", headers=headers)
            problem(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
    problem(server.client.get("/metrics"), 401)
    problem(server.client.get("/openapi.json"), 401)
    for path in ("/healthz", "/readyz"):
        assert server.client.get(path).status_code == 200
        assert server.client.head(path).status_code == 200
    for scheme in ("Bearer", "bearer"):
        headers = {"authorization": f"{scheme} {TOKEN}", **ANY}
        assert server.client.post("/v1/classify", content=b"x", headers=headers).status_code == 200
    assert TOKEN not in server.log_file.read_text()
    assert all(TOKEN.encode() not in environment(pid) for pid in server.workers())


def environment(pid: int) -> bytes:
    with open(f"/proc/{pid}/environ", "rb") as file, open(f"/proc/{pid}/cmdline", "rb") as words:
        return file.read() + words.read()


def test_408_429_503_504_and_500(serving):
    server = serving(seconds=0.6, queue=2, deadline=0.4, body_seconds=0.3, batch_size=1)
    with server.open() as connection:
        head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        connection.sendall(head + b"Content-Length: 100\r\n\r\nabc")
        began = time.monotonic()
        status, headers, body = answer_on(connection)
        assert status == 408
        assert headers["connection"] == "close"
        assert "slowly" in json.loads(body)["error"]
        assert 0.25 <= time.monotonic() - began <= 1
    with ThreadPoolExecutor(6) as pool:
        statuses = Counter(a.status_code for a in pool.map(server.classify, [b"x"] * 6))
    assert statuses == {504: 2, 429: 4}
    seconds_until(lambda: server.metric("vitrail_queue") == 0, 5)
    (server.folder / "refuse").touch()  # the next worker will not start
    lost = server.classify(b"crash")
    assert "died" in problem(lost, 503)
    assert "retry-after" not in lost.headers  # who repeats it by itself kills the next one
    unready = server.classify(b"x")
    assert "ready" in problem(unready, 503)
    assert unready.headers["retry-after"] == "1"
    (server.folder / "refuse").unlink()


def test_500_only_where_the_model_fails(serving):
    server = serving()
    for picture in (b"fail", b"nan"):
        error = problem(server.classify(picture), 500)
        assert "Traceback" not in error
    assert "the arithmetic failed" in server.log_file.read_text()
    assert problem(server.classify(b"bad"), 400) == "not a picture"
    assert problem(server.classify(b"huge"), 413) == "too many pixels"
    assert server.classify(b"x").status_code == 200


def test_request_ids_come_back_unless_they_would_do_harm(real):
    for given in ("abc-123", "0af7651916cd43dd8448eb211c80319c", "a" * 128):
        answer = real.client.get("/v1/model", headers={"x-request-id": given})
        assert answer.headers["x-request-id"] == given
    made = set()
    for given in ("", "a b", '"><script>', "x" * 129, "\xe9"):
        answer = real.client.get("/v1/model", headers={"x-request-id": given.encode("latin-1")})
        made.add(answer.headers["x-request-id"])
    assert len(made) == 5
    assert all(len(one) == 32 and one.isalnum() for one in made)
    assert "abc-123" in {entry.get("request_id") for entry in real.log()}


def test_the_model_says_what_it_is(real):
    said = real.client.get("/v1/model").json()
    assert said["name"] == "trees"
    assert said["labels"] == ["ash", "birch", "cedar", "elm"]
    assert said["image_size"] == [32, 32]
    assert said["preprocessing"]["interpolation"] == "bicubic"
    assert said["runtime"] == "torch"
    assert said["gate"] is None
    assert said["limits"]["max_bytes"] == 20_000_000
    assert said["limits"]["max_pixels"] == 50_000_000


def test_names_that_utf_8_cannot_hold(bundle, tmp_path, monkeypatch):
    """A folder's name from an old system, a label with half of a pair of surrogates."""
    folder = tmp_path / os.fsdecode(b"b\xfcndel")
    shutil.copytree(bundle, folder)
    manifest = read_manifest(folder)
    labels = ["half \ud83d", *manifest.labels[1:]]
    manifest = dataclasses.replace(manifest, labels=labels)
    (folder / "bundle.json").write_text(json.dumps(manifest.to_json()))
    monkeypatch.chdir(folder)  # the runtimes themselves take no such path
    with command(tmp_path / "server", Path("."), "--threads", 1) as server:
        said = server.client.get("/v1/model").json()
        answer = server.classify(PICTURE, top_k=9)
    assert said["name"] == folder.name
    assert said["labels"] == labels
    assert answer.status_code == 200
    assert "half \ud83d" in {one["label"] for one in answer.json()["results"][0]["predictions"]}


def test_no_url_is_ever_fetched(serving, model_folder):
    """Whatever is sent, neither the server nor its worker connects anywhere or looks a name up."""
    server = serving(model=str(model_folder))
    with socket.create_server(("127.0.0.1", 0)) as trap:
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        for body in (
            json.dumps({"url": url}).encode(),
            url.encode(),
            f"file:///etc/passwd {url}".encode(),
        ):
            for kind in ("application/json", "image/png", "text/uri-list"):
                headers = {"content-type": kind}
                answer = server.client.post("/v1/classify", content=body, headers=headers)
                assert answer.status_code in (400, 415)
            assert server.form(body).status_code == 400
            assert server.form(body, field="url").status_code == 422
        query = {"url": url, "image_url": url}
        assert server.classify(PICTURE, **query).status_code == 422
        svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>'.encode()
        assert server.classify(svg).status_code == 400
        trap.settimeout(0.2)
        with pytest.raises(TimeoutError):
            trap.accept()
    seen = (server.folder / "connections").read_text().splitlines()
    assert [line for line in seen if line.startswith("socket.connect")] == []
    assert len(seen) <= 1  # the server's own address, before it listens


def test_an_answer_is_counted_and_logged_once_and_only_if_it_was_given(serving):
    server = serving(connections=3)
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\n"
    chunked = b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    seen = Counter()
    # refused by a route, and damaged while the rest of the body is thrown away
    with server.open() as connection:
        connection.sendall(head % b"a/b" + chunked)
        time.sleep(0.5)
        connection.sendall(b"no length at all\r\n")
        seen[answer_on(connection)[0]] += 1
    # damaged before anybody answered; and no HTTP at all
    for text in (head % b"image/png" + chunked + b"no length at all\r\n", b"hello\r\n\r\n"):
        with server.open() as connection:
            connection.sendall(text)
            seen[answer_on(connection)[0]] += 1
    held = [server.open() for _ in range(3)]
    try:
        time.sleep(0.2)
        with server.open() as connection:
            seen[answer_on(connection)[0]] += 1
    finally:
        for connection in held:
            connection.close()
    seconds_until(server.ready, 5)
    assert seen == {415: 1, 400: 2, 503: 1}
    for status, count in seen.items():
        assert server.metric("vitrail_requests_total", status=str(status)) == count
    logged = Counter(e["status"] for e in server.log() if e["event"] == "request")
    assert logged == seen


def test_what_a_worker_writes_is_in_the_log_as_json(serving):
    server = serving()
    (worker,) = server.workers()
    assert server.classify(b"loud").status_code == 200
    said = lambda: [e for e in server.log() if e["event"] == "worker_said"]  # noqa: E731
    seconds_until(lambda: len(said()) == 5, 5)
    assert {entry["pid"] for entry in said()} == {worker}
    lines = [entry["line"] for entry in said()]
    assert lines == ["a library warns:", "\\xff", "long" * 1024, "long" * 976, "and prints"]


def test_metrics_are_what_clients_counted(serving):
    server = serving(queue=1000)
    bodies = [b"fine", b"fine", b"bad", b"huge", b"fine"]
    replies = load(server.port, clients=8, count=960, body=lambda number: bodies[number % 5])
    counted = Counter(str(reply.status) for reply in replies)
    for path, count in (("/nothing", 17), ("/v1/model", 13)):
        for _ in range(count):
            counted[str(server.client.get(path).status_code)] += 1
    for _ in range(7):
        counted[str(server.classify(b"x", top_k=0).status_code)] += 1
    for _ in range(3):
        counted[str(server.client.post("/v1/classify", json={}).status_code)] += 1
    assert sum(counted.values()) == 1000
    assert set(counted) == {"200", "400", "404", "413", "415", "422"}
    text = server.client.get("/metrics").text
    shown = {
        line.split('"')[1]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("vitrail_requests_total{")
    }
    assert shown == counted
    assert server.metric("vitrail_pictures_total", outcome="ok") == counted["200"] - 13
    logged = Counter(str(e["status"]) for e in server.log() if e["event"] == "request")
    assert logged == counted
