"""Files that are made to break a reader, through the real server; and requests that are noise."""

import contextlib
import json
import random
import time

import pytest

from tests.data.hostile import bombs, oddities
from tests.data.pictures import encoded, smooth
from tests.data.test_hostile import GOOD
from tests.serving.running import Running, answer_on, command, memory, seconds_until
from tests.serving.test_bodies import peak

PICTURE = encoded(smooth(40, 40))


def worker_peak(server: Running) -> int:
    with open(f"/proc/{server.workers()[0]}/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def test_hostile_files_are_answered_and_nothing_dies(real):
    """Over a hundred: each is refused or, where it is a legal picture, gets its labels."""
    (worker,) = real.workers()
    legal = [encoded(smooth(300, 300), kind) for kind in ("JPEG", "PNG", "WebP", "TIFF")]
    for data in legal:
        assert real.classify(data).status_code == 200
    before, front = worker_peak(real), peak(real)
    corpus = {**bombs(), **oddities()}
    assert len(corpus) >= 100
    slowest, statuses = (0.0, ""), {}
    for name, data in corpus.items():
        began = time.monotonic()
        answer = real.classify(data)
        slowest = max(slowest, (time.monotonic() - began, name))
        statuses[name] = answer.status_code
        if answer.status_code == 200:
            assert len(answer.json()["results"][0]["predictions"]) == 4
        elif answer.status_code == 413:
            assert "limit" in answer.json()["error"] or len(data) > 20_000_000, name
        else:
            assert answer.status_code == 400, (name, answer.text)
            assert "Traceback" not in answer.text
    assert all(statuses[name] == 200 for name in corpus if name.startswith(GOOD))
    assert sum(status != 200 for status in statuses.values()) >= 60
    assert real.workers() == [worker]
    assert (worker_peak(real) - before) / 2**20 <= 200
    assert (peak(real) - front) / 2**20 <= 100
    assert slowest[0] <= 5, slowest
    assert real.classify(PICTURE).status_code == 200


def test_hostile_files_harm_no_neighbour(real):
    """In one form with good pictures, each has its own answer."""
    picked = list(oddities().items())[:24:2]
    for start in range(0, len(picked), 4):
        part = [data for _, data in picked[start : start + 4] if len(data) < 1_000_000]
        found = real.form(PICTURE, *part, PICTURE)
        assert found.status_code == 200
        results = found.json()["results"]
        for mine, other in zip(*(results[i]["predictions"] for i in (0, -1)), strict=True):
            assert mine["label"] == other["label"]
            assert mine["probability"] == pytest.approx(other["probability"], abs=1e-5)
        assert len(results) == len(part) + 2


def noise(random: random.Random) -> bytes:
    """A request, damaged in one of many ways."""
    targets = ["/v1/classify", "/v1/model", "/healthz", "/metrics", "/", "/v1/classify?top_k=2"]
    kinds = ["image/png", "application/octet-stream", "multipart/form-data; boundary=b", "", "a/b"]
    body = random.choice([b"", PICTURE, random.randbytes(random.randrange(400)), b"--b--\r\n"])
    if random.random() < 0.3:
        form = (
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + body + b"\r\n--b--\r\n"
        )
        body = form[: random.randrange(len(form) + 1)]
    length = random.choice([len(body), len(body), len(body), 0, -1, 10**12, "x", len(body) + 5])
    lines = [
        f"{random.choice(['GET', 'POST', 'PUT', 'HEAD', 'BREW', ''])} {random.choice(targets)} "
        f"HTTP/{random.choice(['1.1', '1.1', '1.1', '1.0', '2', '9.9'])}",
        "Host: localhost",
        "Connection: close",
        f"Content-Type: {random.choice(kinds)}",
    ]
    if random.random() < 0.8:
        lines.append(f"Content-Length: {length}")
    if random.random() < 0.1:
        lines.append("Transfer-Encoding: chunked")
    if random.random() < 0.1:
        lines.append("Authorization: Bearer \xff\xfe" + "x" * random.randrange(30000))
    if random.random() < 0.1:
        lines.append("X-Request-Id: " + "".join(map(chr, random.choices(range(33, 255), k=20))))
    data = bytearray("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    for _ in range(random.choice([0, 0, 0, 1, 3, 20])):
        data[random.randrange(len(data))] = random.randrange(256)
    return bytes(data)


def check_noise(server: Running, count: int, seed: int) -> dict[int, int]:
    """Send so many requests that are noise; how often each status came (0: none)."""
    chance, statuses = random.Random(seed), dict[int, int]()
    (worker,) = server.workers()
    for number in range(count):
        data = noise(chance)
        with server.open() as connection:
            connection.settimeout(20)
            status = 0
            try:
                connection.sendall(data)
                connection.shutdown(1)  # nothing more will come
                answer = connection.recv(4096)
                if answer:
                    status = int(answer.split(b" ")[1])
            except OSError:
                pass
        statuses[status] = statuses.get(status, 0) + 1
        assert status < 500, (number, data, server.log()[-1])
        assert status != 500
    assert server.classify(PICTURE).status_code == 200
    assert server.workers() == [worker]
    assert not [entry for entry in server.log() if entry["event"] in ("fault", "library")]
    return statuses


def test_noise_is_refused(real):
    statuses = check_noise(real, 300, seed=1)
    assert statuses.get(400, 0) > 50
    assert statuses.get(200, 0) > 10


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        (b"1.1", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        (b"1.1", b"transfer-encoding: chunked\r\ncontent-length: 42\r\n"),
        (b"1.0", b"Transfer-Encoding: chunked\r\n"),
    ],
)
def test_two_lengths_are_refused_and_the_connection_is_closed(real, version, fields):
    """Where a proxy goes by the other one, the rest of the body would be a request of its own."""
    smuggled = b"GET /v1/model HTTP/1.1\r\nHost: x\r\n\r\n"
    with real.open() as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/%b\r\nHost: x\r\nContent-Type: image/png\r\n%b\r\n"
            b"0\r\n\r\n%b" % (version, fields, smuggled)
        )
        status, headers, body = answer_on(connection)
        assert status == 400
        assert headers["connection"] == "close"
        assert "error" in json.loads(body)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1000) == b""


@pytest.mark.slow
def test_much_noise_is_refused(real, capsys):
    statuses = check_noise(real, 10_000, seed=2)
    with capsys.disabled():
        print(json.dumps(statuses))


@pytest.mark.slow
def test_memory_is_flat_over_ten_minutes(model_folder, tmp_path, capsys):
    """Good and bad requests, clients that leave in the middle: under 1 MB a minute."""
    import numpy as np

    from tests.serving.load import load

    with command(tmp_path, model_folder, "--threads", 1) as server:
        (worker,) = server.workers()
        bodies = [encoded(smooth(60 + 20 * k, 90, seed=k), "JPEG") for k in range(8)]
        bodies += [b"bad", bodies[0][:-30], encoded(smooth(900, 700)), bytes(200_000)]
        points, began = [], time.monotonic()
        while time.monotonic() - began < 600:
            next_body = lambda n: bodies[n % len(bodies)]  # noqa: E731
            load(server.port, 4, seconds=5, pause=0.02, body=next_body, patience=500)
            for _ in range(20):
                with server.open() as connection:
                    connection.sendall(
                        b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
                        b"Content-Length: 100000\r\n\r\n" + bytes(50_000)
                    )
            points.append(
                ((time.monotonic() - began) / 60, server.memory() / 2**20, memory(worker) / 2**20)
            )
        settled = np.array([point for point in points if point[0] > 2])
        slopes = [np.polyfit(settled[:, 0], settled[:, k], 1)[0] for k in (1, 2)]
        answered = server.metric("vitrail_requests_total", status="200")
        with capsys.disabled():
            print(f"{answered:.0f} answered; MB a minute: {slopes}; first {settled[0]}", points[-1])
        assert max(slopes) < 1
        assert server.workers() == [worker]
        seconds_until(lambda: server.metric("vitrail_body_bytes") == 0, 60)
        assert server.metric("vitrail_queue") == 0
