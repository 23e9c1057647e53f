"""The end of a server: first not ready, then what was taken is answered, then the right status."""

import signal
import threading
import time
from collections import Counter

import httpx
import pytest

from tests.data.pictures import encoded, smooth
from tests.serving.load import Reply, load
from tests.serving.running import (
    Running,
    alive,
    answer_on,
    children,
    command,
    launched,
    seconds_until,
    standin_words,
)


def test_ready_says_503_before_anything_is_refused(serving):
    server = serving(notice_seconds=0.7)
    server.process.send_signal(signal.SIGTERM)
    seconds_until(lambda: server.client.get("/readyz").status_code == 503, 0.5)
    assert server.client.get("/readyz").json()["status"] == "draining"
    assert server.client.get("/healthz").status_code == 200
    assert server.classify().status_code == 200
    assert server.process.wait(10) == 0
    with pytest.raises(httpx.ConnectError):
        server.client.get("/healthz")
    assert server.log()[-1]["event"] == "stopped"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_what_was_taken_is_answered(serving, number, status):
    server = serving(seconds=0.5, batch_size=2, notice_seconds=0.1)
    workers = server.workers()
    replies: list[Reply] = []
    thread = threading.Thread(target=lambda: replies.extend(load(server.port, clients=6, count=6)))
    thread.start()
    seconds_until(lambda: server.metric("vitrail_queue") == 6, 5)
    assert server.end(number) == status
    thread.join()
    assert [reply.status for reply in replies] == [200] * 6
    assert not any(alive(pid) for pid in workers)


def test_what_takes_too_long_is_given_up(serving):
    server = serving(seconds=60, deadline=60, drain_seconds=1, notice_seconds=0)
    with server.open() as connection:
        head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        connection.sendall(head + b"Content-Length: 4\r\n\r\nlong")
        seconds_until(lambda: server.metric("vitrail_queue") == 1, 5)
        began = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - began < 5
        status, headers, _ = answer_on(connection)
        assert (status, headers["retry-after"]) == (503, "1")


def test_a_second_signal_ends_it_at_once(serving):
    server = serving(seconds=60, deadline=60, notice_seconds=30)
    server.process.send_signal(signal.SIGINT)
    seconds_until(lambda: not server.ready(), 2)
    began = time.monotonic()
    assert server.end(signal.SIGINT) == 130
    assert time.monotonic() - began < 3


def test_a_signal_while_the_model_is_opened(tmp_path):
    """Nothing to drain: it ends, and its worker with it."""
    process = launched(standin_words(tmp_path, start=30.0), tmp_path)
    try:
        seconds_until(lambda: bool(children(process.pid)), 20)
        (worker,) = children(process.pid)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=10)[0] == ""
        assert process.returncode == 0
        seconds_until(lambda: not alive(worker), 5)
    finally:
        process.kill()


def check_rolling(server: Running, count: int, clients: int, body: bytes) -> int:
    """SIGTERM in the middle of a load; whoever was not refused a connection was answered.

    Returns:
        How many were.
    """
    replies: list[Reply] = []

    def ask() -> None:
        replies.extend(load(server.port, clients, body=body, until=lambda r: r.status == 0))

    thread = threading.Thread(target=ask)
    thread.start()
    enough = count - clients
    seconds_until(lambda: server.metric("vitrail_requests_total", status="200") >= enough, 60)
    server.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert server.process.wait(30) == 0
    assert time.monotonic() - began < 30
    thread.join()
    counts = Counter(reply.status for reply in replies)
    assert set(counts) == {200, 0}, counts
    assert counts[200] >= count
    return counts[200]


def test_a_signal_under_load_loses_nothing(serving):
    check_rolling(serving(seconds=0.02, notice_seconds=0.3), 150, 12, b"picture")


@pytest.mark.slow
def test_a_signal_under_load_loses_nothing_ten_times(model_folder, tmp_path, capsys):
    body, found = encoded(smooth(100, 100), "JPEG"), []
    for turn in range(10):
        with command(tmp_path / str(turn), model_folder, "--threads", 1) as server:
            found.append(check_rolling(server, 500, 32, body))
    with capsys.disabled():
        print(f"answered {found}, lost none")


def test_connections_that_say_nothing_do_not_hold_it_up(serving):
    server = serving(notice_seconds=0)
    silent = [server.open() for _ in range(20)]
    half = server.open()
    half.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\n")
    try:
        began = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - began < 3
    finally:
        for connection in [*silent, half]:
            connection.close()


def test_nothing_is_left_undone(serving):
    """No task is destroyed, no exception lost: the log would say so."""
    server = serving(seconds=0.1)
    server.classify()
    server.classify(b"bad")
    assert server.end() == 0
    assert [entry for entry in server.log() if entry["event"] in ("library", "fault")] == []
