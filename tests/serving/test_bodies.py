"""Bodies that are too large, too slow, in crumbs, or no form at all: what they cost the server."""

import contextlib
import os
import socket
import time

import pytest
from hypothesis import given, settings, strategies

from tests.serving.running import Running, answer_on, seconds_until
from vitrail.serving.limits import Form, Refused

HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
MEGABYTE = b"100000\r\n" + bytes(2**20) + b"\r\n"


def pour(server: Running, megabytes: int) -> tuple[int, int]:
    """Send a body in pieces as long as it is taken; (status, megabytes that were)."""
    with server.open() as connection:
        connection.sendall(CHUNKED)
        sent = 0
        with contextlib.suppress(OSError):
            for _ in range(megabytes):
                connection.sendall(MEGABYTE)
                sent += 1
            connection.sendall(b"0\r\n\r\n")
        return answer_on(connection)[0], sent


def check_pouring(server: Running, megabytes: int) -> dict[str, float]:
    server.classify()
    before, most = server.memory(), 0
    began = time.monotonic()
    status, sent = pour(server, megabytes)
    seconds = time.monotonic() - began
    most = peak(server)
    assert status == 413
    assert sent < 100  # the limit, as much again thrown away, and what the system buffers
    assert server.classify().status_code == 200
    grown = (most - before) / 2**20
    assert grown <= 32
    return {"sent_mb": sent, "grown_mb": grown, "seconds": seconds}


def peak(server: Running) -> int:
    """Bytes that the server's process ever held."""
    with open(f"/proc/{server.process.pid}/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def test_an_upload_of_a_gigabyte_is_cut_off(serving, capsys):
    figures = check_pouring(serving(), 1024)
    with capsys.disabled():
        print(figures)


def test_what_says_that_it_is_too_large_is_not_read_at_all(serving):
    server = serving()
    for more in (b"", b"Expect: 100-continue\r\n"):
        with server.open() as connection:
            connection.sendall(HEAD + more + b"Content-Length: 1000000000000\r\n\r\n")
            status, headers, _ = answer_on(connection)
            assert status == 413
            assert headers["connection"] == "close"
    with server.open() as connection:  # who waits to be asked is asked
        connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"fine")
        assert answer_on(connection)[0] == 200


def test_a_body_in_crumbs_is_refused(serving):
    """Two bytes a piece: to take them apart would cost the server a hundred times what they do."""
    server = serving()
    with server.open() as connection:
        connection.sendall(CHUNKED)
        with contextlib.suppress(OSError):
            for _ in range(200):
                connection.sendall(b"2\r\nab\r\n" * 1000)
        connection.settimeout(5)
        with contextlib.suppress(OSError):
            assert answer_on(connection)[0] == 400
    began = time.monotonic()
    assert server.classify().status_code == 200
    assert time.monotonic() - began < 1
    with server.open() as connection:  # a few small ones do no harm
        connection.sendall(CHUNKED + b"2\r\nab\r\n" * 500 + b"0\r\n\r\n")
        assert answer_on(connection)[0] == 200


def slow_connections(server: Running, count: int) -> list[socket.socket]:
    """Half of them in the middle of a head, half in the middle of a body."""
    found = []
    for number in range(count):
        connection = server.open()
        head = HEAD + b"Content-Length: 1000\r\n\r\nab" if number % 2 else HEAD
        connection.sendall(head)
        found.append(connection)
    return found


def check_slow(server: Running, count: int) -> float:
    """The longest that another waits for its answer while so many drip."""
    connections = slow_connections(server, count)
    longest = 0.0
    try:
        for _ in range(20):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.sendall(b"x")
            began = time.monotonic()
            assert server.classify().status_code == 200
            longest = max(longest, time.monotonic() - began)
    finally:
        for connection in connections:
            connection.close()
    return longest


def test_slow_senders_hold_up_nobody(serving):
    assert check_slow(serving(), 100) < 1


def test_slow_senders_are_cut_off(serving):
    """A head that drips for ten seconds, a body that does for longer than it may."""
    server = serving(body_seconds=0.5)
    with server.open() as head, server.open() as body:
        head.sendall(b"POST /v1/classify HTTP/1.1\r\n")
        body.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 2:
                body.sendall(b"x")
                head.sendall(b"x: y\r\n")
                time.sleep(0.1)
        assert answer_on(body)[0] == 408
        assert time.monotonic() - began < 2
        head.settimeout(12)
        with contextlib.suppress(ConnectionResetError):
            assert head.recv(100) == b""
        assert 8 < time.monotonic() - began < 12


ASKED = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"


def never_read(server: Running) -> socket.socket:
    """A connection whose answers wait at the server, because nobody reads them."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(0.5)
    connection.connect(("127.0.0.1", server.port))
    with contextlib.suppress(TimeoutError):
        while True:
            connection.sendall(ASKED * 100)
    return connection


def descriptors(server: Running) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def test_who_never_reads_is_cut_off(serving):
    server = serving(write_seconds=2.0)
    server.classify()
    before = descriptors(server)
    with never_read(server) as connection:
        assert descriptors(server) == before + 1
        seconds_until(lambda: descriptors(server) == before, 10)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(b"x")


def test_who_reads_slowly_is_not_cut_off(serving):
    server = serving(write_seconds=1.5)
    with never_read(server) as connection:
        answers, began = 0, time.monotonic()
        while time.monotonic() - began < 4:
            answers += len(connection.recv(4096))
            time.sleep(0.02)
        assert answers > 200_000


def test_connections_are_bounded(serving):
    server = serving(connections=20)
    server.classify()
    connections = [server.open() for _ in range(40)]
    try:
        refused = 0
        for connection in connections:
            connection.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                refused += answer_on(connection)[0] == 503
        assert 20 <= refused <= 22
        assert server.metric("vitrail_requests_total", status="503") == refused
        assert server.classify().status_code == 200
    finally:
        for connection in connections:
            connection.close()
    seconds_until(lambda: server.ready(), 5)


def test_form_bombs(serving):
    server = serving(max_bytes=4_000_000)
    kind = {"content-type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
    bombs = {
        "fields without end": part * 60_000,
        "a header without end": b"--x\r\n" + b"a" * 3_900_000,
        "headers without end": b"--x\r\n" + b"a: b\r\n" * 600_000,
        "line ends only": b"\r\n" * 1_900_000,
        "dashes only": part + b"\r\n--" * 900_000,
        "almost the boundary": part + b"\r\n--y" * 700_000,
        "a field that is a form": part + part * 60_000,
    }
    for name, body in bombs.items():
        began = time.monotonic()
        answer = server.client.post("/v1/classify", content=body, headers=kind)
        assert answer.status_code in (400, 413, 422), name
        assert time.monotonic() - began < 3, name
    long = {"content-type": "multipart/form-data; boundary=" + "x" * 5000}
    assert server.client.post("/v1/classify", content=b"", headers=long).status_code == 400
    assert server.form(b"fine").status_code == 200


PICTURES = strategies.lists(strategies.binary(max_size=60), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(PICTURES, strategies.lists(strategies.integers(1, 40), min_size=1, max_size=8))
def test_a_form_is_the_same_however_it_comes(pictures, steps):
    boundary = b"b0undary"
    body = b"".join(
        b"--" + boundary + b'\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n'
        b"Content-Type: image/png\r\n\r\n" + picture + b"\r\n"
        for picture in pictures
    )
    body += b"--" + boundary + b"--\r\n"
    form, at, turn = Form(boundary, 4), 0, 0
    while at < len(body):
        step = steps[turn % len(steps)]
        form.write(body[at : at + step])
        at, turn = at + step, turn + 1
    expected = [p for p in pictures if b"\r\n--" + boundary not in p]
    assert [bytes(found) for found in form.pictures()] == expected


@pytest.mark.parametrize("end", range(0, 90, 7))
def test_a_form_that_is_cut_short_is_refused(end):
    body = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\npicture\r\n--x--\r\n'
    form = Form(b"x", 4)
    if end >= len(body) - 2:
        form.write(body)
        assert form.pictures() == [b"picture"]
        return
    form.write(body[:end])
    with pytest.raises(Refused):
        form.pictures()
