"""The page at `/`: plain HTML, CSS and JavaScript from this folder, and the headers that bind it.

The policy lets the page load its own files, speak to its own server and show pictures that it made
itself, and nothing else: no inline script or style, no other host, no frame around it. Text from
the server and names of files are never markup (`require-trusted-types-for` holds the script to it).
The files are read once, and are open to all: they hold nothing of the model, whose card and answers
need the token.
"""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Request, Response

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def router() -> APIRouter:
    """The page's routes: `/`, and its files below `/page/`."""
    made = APIRouter()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in KINDS:
            place = "/" if path.name == "index.html" else f"/page/{path.name}"
            made.add_api_route(place, _served(path), methods=["GET", "HEAD"])
    return made


def _served(path: Path) -> Callable[[Request], Awaitable[Response]]:
    content = path.read_bytes()
    mark = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": mark}

    async def serve(request: Request) -> Response:
        if request.headers.get("if-none-match") == mark:
            return Response(status_code=304, headers=headers)
        body = b"" if request.method == "HEAD" else content
        length = {"Content-Length": str(len(content))}
        return Response(body, headers={**headers, **length}, media_type=KINDS[path.suffix])

    return serve
