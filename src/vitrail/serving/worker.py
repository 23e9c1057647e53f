"""A worker: the process that holds the model, decodes and computes, behind one socket.

Started by the server as `python -m vitrail.serving.worker '{...}' FD`. It ends when the other side
of its socket is gone, however that came about, and the kernel kills it where its parent dies; so
no worker outlives its server. Signals from a terminal or a service manager are the server's to
act on: a worker that obeyed them would lose requests that were taken.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from vitrail.kit.errors import Error
from vitrail.serving import wire
from vitrail.serving.batcher import Arrays, Batcher, Model, Picture

LARGE = 4_000_000  # pixels: files of more are decoded one at a time, see `batcher`
_PR_SET_PDEATHSIG = 1


class ClassifierModel:
    """A model folder or a bundle.

    Args:
        source: what `Classifier` opens.
        max_pixels: of a picture.
        threads, batch_size, device, which, name: as for `Classifier`.

    Raises:
        Error: what `Classifier` raises.
    """

    def __init__(
        self,
        source: str,
        max_pixels: int,
        threads: int,
        batch_size: int,
        device: str | None = None,
        which: str = "final",
        name: str | None = None,
    ):
        from vitrail.serving.classifier import Classifier

        self.source, self.max_pixels = source, max_pixels
        self.classify = Classifier(source, threads, batch_size, device, which, name, shared=True)
        for size in {1, batch_size}:  # the first call is slower, and nobody's
            self.outputs(
                np.zeros((size, *self.classify.preprocessing.size, 3), np.uint8), frozenset()
            )

    def describe(self) -> dict[str, Any]:
        """See `Model`."""
        from vitrail.serving.predict import identity

        classify = self.classify
        manifest = classify.manifest
        return {
            "name": os.path.basename(os.path.abspath(self.source)) or self.source,
            "labels": classify.labels,
            "several_labels": classify.several,
            "image_size": list(classify.preprocessing.size),
            "preprocessing": classify.preprocessing.to_json(),
            "temperature": classify.temperature,
            "runtime": classify.runtime,
            "device": classify.device,
            "precision": manifest.precision if manifest else "fp32",
            "gate": manifest.gate if manifest else None,
            "weights_sha256": identity(classify)["model"],
            "merge_tokens": manifest.merge_tokens if manifest else 0,
            "source_sha256": manifest.source_sha256 if manifest else None,
            "extras": ["attention"] if classify.attends else [],
        }

    def is_large(self, data: bytes) -> bool:
        """See `Model`."""
        from vitrail.data.decode import read_size

        width, height, _ = read_size(data, self.max_pixels)
        return width * height > LARGE

    def prepare(self, data: bytes) -> np.ndarray:
        """See `Model`."""
        from vitrail.data.views import evaluation_view

        return evaluation_view(data, self.classify.preprocessing, self.max_pixels)

    def notes(self, data: bytes, extras: frozenset[str]) -> Arrays:
        """See `Model`: with attention the ``region`` [4] of the picture that its map covers."""
        if "attention" not in extras:
            return {}
        from vitrail.data.decode import read_size

        width, height, _ = read_size(data)
        return {"region": np.array(self.classify.preprocessing.region(width, height))}

    def outputs(self, pixels: np.ndarray, extras: frozenset[str]) -> Arrays:
        """See `Model`."""
        if "attention" not in extras or not self.classify.attends:
            return {"probabilities": self.classify.probabilities(pixels)}
        probabilities, attention = self.classify.with_attention(pixels)
        return {"probabilities": probabilities, "attention": attention}


def work(
    open_model: Callable[[], Model], channel: socket.socket, size: int, wait: float, decoders: int
) -> None:
    """Open a model, say what it is, and answer until the other side is gone."""
    lock = threading.Lock()

    def say(head: dict[str, Any], body: bytes = b"") -> None:
        with contextlib.suppress(OSError), lock:  # the server is gone, and so shall we be
            wire.send(channel, head, body)

    def answer(number: int, outcome: str, reason: str | None, arrays: Arrays) -> None:
        entries, body = wire.arrays_to_bytes(arrays)
        head = {"kind": "answer", "number": number, "outcome": outcome, "reason": reason}
        say({**head, "arrays": entries}, body)

    def computed(size: int, seconds: float) -> None:
        say({"kind": "batch", "size": size, "seconds": seconds})

    def set_aside(number: int) -> None:
        say({"kind": "aside", "number": number})

    threading.Thread(target=_leave_with, args=(channel,), daemon=True).start()
    try:
        model = open_model()
    except Error as error:
        say({"kind": "refusal", "reason": " ".join(str(error).split())})
        return
    batcher = Batcher(model, answer, size, wait, decoders, computed, set_aside)
    threading.Thread(target=_listen, args=(channel, batcher), daemon=True).start()
    say({"kind": "ready", "model": model.describe()})
    batcher.run()


def bind_to_parent(parent: int) -> None:
    """Die with the parent, even when it is killed; ignore what a terminal sends to all."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel knew
        os._exit(0)


def _listen(channel: socket.socket, batcher: Batcher) -> None:
    try:
        while True:
            head, data = wire.receive(channel)
            if head["kind"] == "cancel":
                batcher.cancel(head["number"])
            else:
                extras = frozenset(head["extras"])
                batcher.add(Picture(head["number"], data, head["top_k"], extras, head["deadline"]))
    except (EOFError, OSError):
        os._exit(0)  # not sys.exit: the arithmetic may be in the middle of a long batch


def _leave_with(channel: socket.socket) -> None:
    """While the model is opened, nobody reads the socket: see when it closes."""
    import select

    poll = select.poll()
    poll.register(channel, select.POLLHUP | select.POLLERR)
    poll.poll()
    os._exit(0)


def main(argv: list[str]) -> None:
    """See the module's head."""
    wanted, descriptor = json.loads(argv[0]), int(argv[1])
    warnings.simplefilter("ignore")  # of what is odd in a picture; the log is JSON
    bind_to_parent(wanted["parent"])
    channel = socket.socket(fileno=descriptor)
    model, size = wanted["model"], wanted["model"]["batch_size"]
    decoders = max(1, min(4, model["threads"]))
    work(lambda: ClassifierModel(**model), channel, size, wanted["wait"], decoders)


if __name__ == "__main__":
    main(sys.argv[1:])
