"""The server's log: JSON for programs, words at a terminal, and nothing that steers a terminal."""

import io
import json
import re

from tests.terminal import terminal
from vitrail.serving.logs import Log, in_words

REQUEST = {
    "time": "2026-01-02T03:04:05.678Z",
    "level": "info",
    "event": "request",
    "request_id": "abc",
    "client": "127.0.0.1",
    "method": "POST",
    "path": "/v1/classify",
    "status": 200,
    "bytes": 1234,
    "ms": 72.4,
    "pictures": 1,
}


def said(**entry: object) -> str:
    return re.sub(r"^\d\d:\d\d:\d\d  ", "", in_words({"time": REQUEST["time"], **entry}))


def test_a_file_gets_json_whatever_is_said():
    file = io.StringIO()
    log = Log(file)
    log.say("request", status=200, path="/\x1b[2J", nothing=None)
    log.close()
    (line,) = file.getvalue().splitlines()
    entry = json.loads(line)
    assert entry.pop("time").endswith("Z")
    assert entry == {"level": "info", "event": "request", "status": 200, "path": "/\x1b[2J"}
    assert line.isascii()


def test_words_for_a_person():
    assert re.match(r"\d\d:\d\d:\d\d  200  POST /v1/", in_words(REQUEST))
    assert said(**REQUEST) == "200  POST /v1/classify  1 picture  72 ms  from 127.0.0.1"
    failed = {**REQUEST, "status": 500, "pictures": 2}
    assert said(**failed).endswith("500  POST /v1/classify  2 pictures  72 ms  from 127.0.0.1  abc")
    assert said(event="request", client="10.0.0.7", status=400) == "400  from 10.0.0.7"
    ready = {"event": "worker_ready", "level": "info", "worker": 0, "pid": 12, "seconds": 1.5}
    assert said(**ready) == "worker ready  worker 0, pid 12, seconds 1.5"
    fault = {"event": "fault", "level": "error", "request_id": "abc", "traceback": "one\n  two\n"}
    assert said(**fault) == "error: fault  request_id abc\n    one\n      two"
    assert in_words({"event": "log_dropped", "lines": 3}) == "log dropped  lines 3"


def test_what_a_client_sends_cannot_steer_the_terminal():
    text = said(**{**REQUEST, "path": "/\x1b[2J\r\n\x9b\u202efoo"})
    assert r"POST /\x1b[2J\r\n\x9b\u202efoo" in text
    assert text.isprintable()
    text = said(event="worker_said", level="warning", line="a\x1b]0;title\x07")
    assert text == r"warning: worker said  line a\x1b]0;title\x07"


def test_a_terminal_is_told_in_words():
    with terminal() as screen, open(screen.end, "w", closefd=False) as file:
        log = Log(file)
        log.say("request", status=200, method="GET", path="/", ms=1.0)
        log.close()
    assert re.fullmatch(r"\d\d:\d\d:\d\d  200  GET /  1 ms\n+", screen.text)
