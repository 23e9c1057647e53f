"""The server's life: bind, load, listen, and end without losing what was taken.

After SIGTERM or Ctrl-C the server first says that it is not ready, and still takes requests for a
moment, so that whoever sends them has time to see it; then it stops listening, answers what it
took, and ends: with 0 after SIGTERM, with 130 after Ctrl-C. A second signal ends it at once.
"""

import asyncio
import contextlib
import ipaddress
import resource
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

import uvicorn
from fastapi import APIRouter

from vitrail.kit.errors import Error
from vitrail.serving.app import application
from vitrail.serving.connections import protocol
from vitrail.serving.logs import Log
from vitrail.serving.service import Service
from vitrail.serving.settings import Settings

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
BACKLOG = 2048
KEEP_ALIVE = 30  # seconds without a request after which a connection is closed
GRACE = 1.0  # seconds for requests on their way when the server stopped listening


def serve(settings: Settings, command: Sequence[str], routers: Sequence[APIRouter] = ()) -> int:
    """Serve until a signal; the exit status.

    Args:
        settings: limits and address.
        command: starts a worker.
        routers: further routes, see `application`.

    Raises:
        Error: the address cannot be had, or the model cannot be opened.
    """
    listener = bound(settings.host, settings.port, settings.token)
    _many_files()
    log = Log()
    log.take_over()
    with listener:
        try:
            return asyncio.run(_serve(settings, command, routers, listener, log))
        finally:
            log.close()


def bound(host: str, port: int, token: str | None) -> socket.socket:
    """A socket with the address, not listening yet.

    Raises:
        Error: it is public and there is no token, it is unknown, or it is in use.
    """
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        raise Error(
            f"--host {host} is no address here: {getattr(error, 'strerror', error)}"
        ) from None
    if token is None and not all(ipaddress.ip_address(a[4][0]).is_loopback for a in found):
        raise Error(
            f"--host {host or '(all)'} can be reached from other machines: give --token, "
            "--token-file or VITRAIL_TOKEN, so that not everybody may use it"
        )
    family, kind, number, _, address = found[0]
    listener = socket.socket(family, kind, number)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise Error(_unavailable(host, port, error)) from None
    return listener


class _Server(uvicorn.Server):
    """uvicorn's, with our signals and a gentler end."""

    def __init__(self, config: uvicorn.Config, service: Service, listener: socket.socket):
        super().__init__(config)
        self._service, self._listener = service, listener

    @contextlib.contextmanager
    def capture_signals(self):
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.closing = True  # from here on, an answer is a connection's last
        self._accept_what_waits()
        for server in self.servers:
            server.close()
        end = time.monotonic() + GRACE
        while self.server_state.connections and time.monotonic() < end:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)
        if self.server_state.connections:  # whose requests were given up: time to say so
            await asyncio.sleep(0.1)

    def _accept_what_waits(self) -> None:
        """Take the connections that the system made: it resets them when we stop listening."""
        loop = asyncio.get_running_loop()
        kind: Any = self.config.http_protocol_class

        def made() -> asyncio.Protocol:
            return kind(
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
                _loop=loop,
            )

        self._last: list[asyncio.Task] = []
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                call = loop.connect_accepted_socket(made, connection)
                self._last.append(asyncio.create_task(call))


async def _serve(
    settings: Settings,
    command: Sequence[str],
    routers: Sequence[APIRouter],
    listener: socket.socket,
    log: Log,
) -> int:
    service = Service(settings, command, log)
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    stop = asyncio.create_task(signals.get())
    starting = asyncio.create_task(service.supervisor.start())
    await asyncio.wait({stop, starting}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
        return _status(stop.result())
    stop_or_error = starting.exception()
    if stop_or_error is not None:
        raise stop_or_error
    try:
        return await _until(service, routers, listener, signals, stop)
    finally:
        await service.supervisor.stop()


async def _until(
    service: Service,
    routers: Sequence[APIRouter],
    listener: socket.socket,
    signals: "asyncio.Queue[int]",
    stop: "asyncio.Task[int]",
) -> int:
    settings, log = service.settings, service.log
    server = _Server(
        uvicorn.Config(
            application(service, routers),
            http=protocol(settings.connections, service.answered_unasked),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        ),
        service,
        listener,
    )
    running = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.wait({running}, timeout=0.01)
        if running.done():  # somebody else took the port while the model was opened
            error = running.exception()
            raise Error(_unavailable(settings.host, settings.port, error)) from None
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"listening on {address}", flush=True)
    log.say("listening", address=address, model=service.model["name"])
    await asyncio.wait({running, stop}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
        raise RuntimeError("the server stopped by itself")
    number = stop.result()
    service.draining = True
    log.say("draining", signal=signal.Signals(number).name, pictures=service.line.held)
    again = asyncio.create_task(signals.get())
    await asyncio.wait({again}, timeout=settings.notice_seconds)
    server.should_exit = True
    await asyncio.wait({running, again}, return_when=asyncio.FIRST_COMPLETED)
    lost = not running.done()
    running.cancel()
    again.cancel()
    log.say("stopped", pictures=service.line.held, at_once=lost or None)
    return _status(number)


def _unavailable(host: str, port: int, error: BaseException | None) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"port {port} of {host} cannot be had: {reason.lower()}"


def _status(number: int) -> int:
    return 130 if number == signal.SIGINT else 0


def _many_files() -> None:
    """As many open files as the system lets us have: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
