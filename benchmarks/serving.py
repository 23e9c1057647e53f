"""What the server adds and what its batches give, beside a plain FastAPI route on the same model.

    python benchmarks/serving.py [--quick] [--threads 2] [--rounds N]

For each of two models, exported to ONNX: three servers on one machine, `vitrail serve`, the same
with `--batch-size 1`, and the way of FastAPI's own tutorial (an `UploadFile`, a route that is no
coroutine, so it runs in a pool of threads, and one call of the classifier a request). Each is
asked by 16 clients in turn, interleaved over rounds; the clients are one process on the same cores.
Then one client alone, beside calls of the classifier in this process: what the way over HTTP adds.
Pictures are JPEG files of 500x375 pixels for the larger model, of 64x48 for the small one.
Figures are medians over rounds; ratios above 1 are in our favour.
The last line of stdout is one JSON object; everything else is for people.
"""

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for the clients of the tests

CLIENTS = 16
MOST_ADDED = 5.0  # milliseconds, promised
MODELS = {  # name: (settings, picture's width and height)
    "vit_tiny_patch16_224": ({}, (500, 375)),
    "vit_mu_patch8_32": ({}, (64, 48)),
}


def export(name: str, folder: Path) -> Path:
    """A bundle of the model with random weights: nothing here depends on them."""
    import torch

    import vitrail
    from vitrail.cli import main

    torch.manual_seed(0)
    settings, _ = MODELS[name]
    model = vitrail.create_model(name, num_classes=100, **settings)
    torch.nn.init.normal_(model.head.weight, std=0.02)
    vitrail.save_model(model, folder / "model", labels=[f"class {k}" for k in range(100)])
    out = str(folder / "bundle")
    status = main(["export", str(folder / "model"), "--to", "onnx", "--no-check", "--out", out])
    assert status == 0
    return folder / "bundle"


def picture(width: int, height: int) -> bytes:
    """A JPEG file with structure."""
    import io

    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def plain(bundle: str, threads: int) -> None:
    """The tutorial's server, in this process."""
    import socket

    import uvicorn
    from fastapi import FastAPI, Request, UploadFile

    import vitrail

    classify = vitrail.Classifier(bundle, threads=threads)
    app = FastAPI()

    @app.post("/v1/classify")
    def answer(image: UploadFile, request: Request):
        (found,) = classify([image.file.read()])
        return [{"label": label, "probability": chance} for label, chance in found]

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_level="error", ws="none", http="h11")
    uvicorn.Server(config).run([listener])


@contextmanager
def server(*words: object) -> Iterator[int]:
    """A server's process; its port."""
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r":(\d+)$", process.stdout.readline().strip())
        assert found, "a server did not start"
        yield int(found[1])
    finally:
        process.kill()
        process.wait()


def form_of(data: bytes) -> tuple[bytes, str]:
    """A form with the picture, and its type: what the tutorial's server takes; ours too."""
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
    body = head + b"Content-Type: image/jpeg\r\n\r\n" + data + b"\r\n--b--\r\n"
    return body, "multipart/form-data; boundary=b"


def throughput(port: int, data: bytes, seconds: float) -> float:
    """Pictures a second from 16 clients."""
    from tests.serving.load import load

    body, kind = form_of(data)
    began = time.monotonic()
    replies = load(port, CLIENTS, seconds=seconds, body=body, kind=kind)
    took = time.monotonic() - began
    assert all(reply.status == 200 for reply in replies), {reply.status for reply in replies}
    return len(replies) / took


def added(port: int, classify: Callable, data: bytes, calls: int) -> tuple[float, float]:
    """(through the server, by a call) in milliseconds, medians of interleaved blocks."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    over, direct = [], []
    for _ in range(calls // 10):
        for _ in range(10):
            began = time.perf_counter()
            connection.request("POST", "/v1/classify", data, {"content-type": "image/jpeg"})
            answer = connection.getresponse().read()
            over.append(1000 * (time.perf_counter() - began))
            assert b"probability" in answer
        time.sleep(0.1)
        for _ in range(10):
            began = time.perf_counter()
            classify([data])
            direct.append(1000 * (time.perf_counter() - began))
        time.sleep(0.1)  # ONNX Runtime's threads spin for a while after each call
    connection.close()
    return statistics.median(over), statistics.median(direct)


def measured(
    name: str, folder: Path, threads: int, rounds: int, seconds: float
) -> dict[str, float]:
    """All figures of one model, printed; its ratios."""
    import vitrail

    bundle, data = export(name, folder), picture(*MODELS[name][1])
    serve = ("-m", "vitrail", "serve", bundle, "--port", 0, "--threads", threads)
    ways = {
        "ours": serve,
        "ours, batches of 1": (*serve, "--batch-size", 1),
        "plain FastAPI": (__file__, "--plain", bundle, "--threads", threads),
    }
    with ExitStack() as stack:
        ports = {way: stack.enter_context(server(*words)) for way, words in ways.items()}
        found: dict[str, list[float]] = {way: [] for way in ways}
        for port in ports.values():
            throughput(port, data, 0.5)
        for _ in range(rounds):
            for way, port in ports.items():
                found[way].append(throughput(port, data, seconds))
        rates = {way: statistics.median(values) for way, values in found.items()}
        classify = vitrail.Classifier(bundle, threads=threads)
        classify([data] * 2)
        over, direct = added(ports["ours"], classify, data, 60 * rounds)
    print(f"{name}, {threads} threads, {rounds} rounds of {seconds:g} s:")
    for way, rate in rates.items():
        print(f"  {way:<20} {rate:8.1f} pictures/s from {CLIENTS} clients")
    print(f"  one client alone     {over:8.2f} ms; the classifier in process {direct:.2f} ms")
    return {
        f"{name}: batches over batches of 1": rates["ours"] / rates["ours, batches of 1"],
        f"{name}: over plain FastAPI": rates["ours"] / rates["plain FastAPI"],
        f"{name}: {MOST_ADDED:g} ms over what HTTP adds": MOST_ADDED / max(over - direct, 0.01),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The server beside a plain one.")
    parser.add_argument("--quick", action="store_true", help="under two minutes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.plain:
        plain(chosen.plain, chosen.threads)
        return
    rounds, seconds = (chosen.rounds or 3, 2.0) if chosen.quick else (chosen.rounds or 7, 4.0)
    ratios: dict[str, float] = {}
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            ratios |= measured(name, Path(folder), chosen.threads, rounds, seconds)
    print(
        json.dumps({"benchmark": "serving", "ratios": {k: round(v, 3) for k, v in ratios.items()}})
    )


if __name__ == "__main__":
    main()
