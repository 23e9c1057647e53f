"""Processes that die: a worker is started again, and none outlives its server."""

import asyncio
import datetime
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import vitrail
from tests.data.pictures import encoded, smooth
from tests.export.small import sure_model
from tests.serving.running import Running, alive, command, seconds_until
from vitrail.serving.supervisor import Worker

PICTURE = encoded(smooth(40, 40))


def killed(server: Running, picture: bytes) -> tuple[float, float]:
    """Kill the worker; seconds until the server says that it is not ready, and until it serves."""
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    noticed = seconds_until(lambda: not server.ready(), 1, every=0.005)
    served = seconds_until(lambda: server.classify(picture).status_code == 200, 30)
    assert server.workers() != [worker]
    assert server.ready()
    return noticed, served


def test_a_killed_worker_is_started_again(serving):
    server = serving(start=0.3)
    assert server.ready()
    for deaths in (1, 2):
        killed(server, b"picture")
        assert server.metric("vitrail_worker_restarts") == deaths
    events = [entry["event"] for entry in server.log() if entry["event"].startswith("worker")]
    assert events == ["worker_ready", "worker_died"] * 2 + ["worker_ready"]


@pytest.mark.slow
def test_a_real_worker_is_started_again_five_times(model_folder, tmp_path, capsys):
    with command(tmp_path, model_folder, "--threads", 1) as server:
        figures = [killed(server, PICTURE) for _ in range(5)]
    with capsys.disabled():
        print(
            f"not ready after {max(noticed for noticed, _ in figures):.3f} s, "
            f"serving after {[round(served, 1) for _, served in figures]} s"
        )


def test_a_picture_that_kills_its_worker_kills_nobody_elses_request(serving):
    """What waits in the line is answered by the next worker; only what was in hand is lost."""
    server = serving(seconds=0.2, batch_size=1, workers=2)
    seconds_until(lambda: server.metric("vitrail_workers_ready") == 2, 20)
    assert server.classify(b"crash").status_code == 503
    assert server.ready()  # the other one
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(server.classify, [b"fine"] * 8))
    assert [answer.status_code for answer in answers] == [200] * 8
    seconds_until(lambda: server.metric("vitrail_workers_ready") == 2, 20)


def test_workers_that_die_quickly_are_started_again_ever_more_slowly(serving):
    server = serving()
    for deaths in range(1, 5):
        assert server.classify(b"crash").status_code == 503
        seconds_until(lambda n=deaths: server.metric("vitrail_worker_restarts") == n, 5)
        seconds_until(server.ready, 20)
    log = server.log()
    times = [
        (entry["event"], datetime.datetime.fromisoformat(entry["time"]), entry.get("seconds", 0))
        for entry in log
        if entry["event"] in ("worker_died", "worker_ready")
    ][1:]
    pauses = [
        (ready[1] - died[1]).total_seconds() - ready[2]
        for died, ready in zip(times[::2], times[1::2], strict=True)
    ]
    assert pauses[0] < 0.4
    for pause, least in zip(pauses, (0, 0.5, 1, 2), strict=True):
        assert pause >= least - 0.05


def test_a_worker_that_comes_back_as_another_model_is_refused(serving):
    """Somebody put another model at the same place: its labels would be given to the old ones."""
    server = serving()
    (worker,) = server.workers()
    (server.folder / "name").write_text("another")
    os.kill(worker, signal.SIGKILL)
    seconds_until(lambda: any(e["event"] == "worker_refused" for e in server.log()), 20)
    assert not server.ready()
    answer = server.classify()
    assert answer.status_code == 503
    (server.folder / "name").unlink()
    seconds_until(server.ready, 20)


def test_a_folder_that_was_trained_again_is_refused(tmp_path):
    """The same labels and sizes, other weights: a server restarted by half would answer both."""
    model, folder = sure_model(), tmp_path / "model"
    vitrail.save_model(model, folder)
    with command(tmp_path / "server", folder, "--threads", 1) as server:
        before = server.client.get("/v1/model").json()
        with torch.no_grad():
            model.head.bias.add_(1e-3)
        vitrail.save_model(model, tmp_path / "other")
        for path in (tmp_path / "other").iterdir():
            path.replace(folder / path.name)
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        seconds_until(lambda: any(e["event"] == "worker_refused" for e in server.log()), 60)
        assert not server.ready()
        assert server.classify(PICTURE).status_code == 503
        (entry,) = [entry for entry in server.log() if entry["event"] == "worker_refused"][:1]
        assert "restart" in entry["reason"]
    with command(tmp_path / "restarted", folder, "--threads", 1) as server:
        after = server.client.get("/v1/model").json()
    assert len(before["weights_sha256"]) == 64
    assert {name for name in before if before[name] != after[name]} == {"weights_sha256"}


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in the middle of a batch"])
def test_no_worker_outlives_a_killed_server(serving, busy):
    server = serving(workers=2, seconds=30 if busy else 0)
    seconds_until(lambda: server.metric("vitrail_workers_ready") == 2, 20)
    workers = server.workers()
    if busy:
        connection = server.open()
        head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        connection.sendall(head + b"Content-Length: 4\r\n\r\nbusy")
        seconds_until(lambda: (server.folder / "trace").exists(), 5)
        connection.close()
    server.process.kill()
    server.process.wait()
    seconds_until(lambda: not any(alive(pid) for pid in workers), 5)


def test_a_worker_that_hangs_while_it_opens_the_model_is_killed(serving):
    server = serving(stall_seconds=0.5)
    (worker,) = server.workers()
    (server.folder / "hang").touch()
    os.kill(worker, signal.SIGKILL)
    seconds_until(lambda: any(e["event"] == "worker_stalled" for e in server.log()), 90)
    assert server.classify().status_code == 503  # and it is there
    (server.folder / "hang").unlink()
    seconds_until(server.ready, 30)


def test_a_process_that_does_not_die_holds_up_nobody():
    """As one that waits for a disk: killed, and still there."""

    async def check() -> None:
        worker = Worker([sys.executable, "-c", "import time; time.sleep(60)"], 1)
        kill, worker.process.kill = worker.process.kill, lambda: None
        try:
            worker.end()
            ended = asyncio.create_task(worker.ended(1.0))
            began = time.monotonic()
            await asyncio.sleep(0.1)
            assert time.monotonic() - began < 0.9
            assert not ended.done()
            await ended
            assert worker.process.returncode is None
        finally:
            kill()
            await worker.ended(10)
        assert worker.process.returncode == -signal.SIGKILL

    asyncio.run(check())


def test_a_worker_that_hangs_is_killed(serving):
    """Not at the deadline, which is its pictures' own, but when that is long past."""
    server = serving(deadline=0.3, stall_seconds=0.5)
    (worker,) = server.workers()
    os.kill(worker, signal.SIGSTOP)
    assert server.classify().status_code == 504
    assert alive(worker)
    seconds_until(lambda: not alive(worker), 5)
    seconds_until(lambda: server.classify().status_code == 200, 10)
    assert "worker_stalled" in {entry["event"] for entry in server.log()}
