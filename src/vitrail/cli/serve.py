"""`vitrail serve`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import os
from pathlib import Path
from typing import Annotated, Literal

from vitrail.cli.arguments import arg
from vitrail.kit.errors import Error


def serve(
    source: Annotated[str, arg("BUNDLE|MODEL")],
    /,
    *,
    model: Annotated[str | None, arg("NAME")] = None,
    which: Literal["final", "best"] = "final",
    device: Annotated[Literal["cpu", "cuda"] | None, arg("cpu|cuda")] = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: Annotated[str | None, arg("T")] = None,
    token_file: Annotated[Path | None, arg("FILE")] = None,
    max_bytes: int = 20_000_000,
    max_pixels: int = 50_000_000,
    max_images: int = 16,
    queue: int = 64,
    deadline: float = 10.0,
    workers: int = 1,
    threads: Annotated[int | None, arg("N")] = None,
    batch_size: int = 8,
    batch_wait: float = 5.0,
    body_seconds: float = 10.0,
    drain_seconds: float = 20.0,
    notice_seconds: float = 1.0,
) -> int:
    """Serve a bundle or a model over HTTP, with a page to try it.

    Example: vitrail serve bundle --port 8000

    Then: curl --data-binary @cat.jpg -H 'content-type: image/jpeg' localhost:8000/v1/classify
    It ends without losing a request on SIGTERM (status 0) and Ctrl-C (status 130).

    Args:
        source: A bundle of `vitrail export`, a model folder, or a checkpoint file.
        model: The name of the model, for a file that does not say it.
        which: The weights of the last step, or the best on validation, of a model folder.
        device: The best there is by default.
        host: Where to listen; an address that other machines reach needs a token.
        port: 0 takes any that is free; the first line on stdout says which.
        token: What requests must bear; VITRAIL_TOKEN or --token-file hide it from `ps`.
        token_file: A file with the token.
        max_bytes: Of a request's body.
        max_pixels: Width times height of a picture; told from its header, before it is decoded.
        max_images: Pictures in one request.
        queue: Pictures taken and not yet answered; beyond, 429.
        deadline: Seconds until the answer; beyond, 504.
        workers: Processes that compute, each with a copy of the model.
        threads: Of each worker; by default the cores, shared by the workers.
        batch_size: Pictures computed at once, at most.
        batch_wait: Milliseconds that a batch waits for pictures that are being decoded.
        body_seconds: In which a body must come, and a second more for every 16 KiB; beyond, 408.
        drain_seconds: After a signal, for the requests that were taken.
        notice_seconds: After a signal, /readyz says 503 this long before nothing is taken any more.
    """
    from vitrail.kit.extras import needed

    needed("serve", "fastapi", "uvicorn", "python_multipart", "prometheus_client")
    from vitrail.serving import page
    from vitrail.serving.server import serve
    from vitrail.serving.settings import Settings
    from vitrail.serving.supervisor import worker_command

    settings = Settings(
        host=host,
        port=port,
        token=_token(token, token_file),
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        max_images=max_images,
        queue=queue,
        deadline=deadline,
        workers=workers,
        threads=threads,
        batch_size=batch_size,
        batch_wait=batch_wait,
        body_seconds=body_seconds,
        drain_seconds=drain_seconds,
        notice_seconds=notice_seconds,
    )
    opened = {
        "source": source,
        "max_pixels": max_pixels,
        "threads": settings.worker_threads,
        "batch_size": batch_size,
        "device": device,
        "which": which,
        "name": model,
    }
    return serve(settings, worker_command(opened, batch_wait / 1000), [page.router()])


def _token(given: str | None, file: Path | None) -> str | None:
    """The token, from wherever it is given; an empty VITRAIL_TOKEN is none."""
    if given is not None and file is not None:
        raise Error("--token and --token-file are two ways to say the same: give one")
    if file is None:
        return given if given is not None else os.environ.get("VITRAIL_TOKEN") or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"--token-file {file} cannot be read: {error}") from None
