"""The server's routes, as a FastAPI application around a service.

`application` makes it; `routers` are further routes, such as the page. No route takes a URL to
fetch, a path or a name of anything on the server.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from vitrail import __version__
from vitrail.kit.errors import did_you_mean
from vitrail.serving.gate import Gate
from vitrail.serving.limits import Gone, Holding, Refused, read_pictures
from vitrail.serving.line import Answer
from vitrail.serving.metrics import CONTENT_TYPE
from vitrail.serving.service import Service


class Prediction(BaseModel):
    """A label and how likely it is."""

    label: str
    probability: float


class Attention(BaseModel):
    """Where the model looked, where that was asked for.

    Rows of places, from the top, and the part of the upright picture that they share evenly: left,
    top, right and bottom as shares of it.
    """

    values: list[list[float]]
    region: tuple[float, float, float, float]


class Result(BaseModel):
    """What is on one picture, likeliest first, or why nobody can tell."""

    predictions: list[Prediction] | None = None
    attention: Attention | None = None
    error: str | None = None


class Classified(BaseModel):
    """One result for each picture, in order."""

    model: str
    results: list[Result]


class Problem(BaseModel):
    """Why a request was not answered."""

    error: str
    request_id: str


class ModelCard(BaseModel, extra="allow"):
    """The model and the server's limits."""

    name: str
    labels: list[str]
    image_size: list[int]
    preprocessing: dict[str, Any]
    runtime: str
    gate: dict[str, Any] | None
    limits: dict[str, float]


class Status(BaseModel, extra="allow"):
    """How the server is."""

    status: str


PROBLEMS = {
    400: "No picture, or one that cannot be decoded",
    401: "No token, or another",
    408: "The body came too slowly",
    413: "Too many bytes, pixels or pictures",
    415: "A body of a type that is not read",
    422: "A parameter or a field that is not known or out of range",
    429: "The queue is full: try again after Retry-After seconds",
    500: "A fault of the server's",
    503: "No worker is ready: try again after Retry-After seconds; without it: the worker died",
    504: "No answer within the deadline",
}
PARAMETERS = ("top_k", "attention")  # of a classification
_FILE = {"type": "string", "format": "binary"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _FILE},
            "application/octet-stream": {"schema": _FILE},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": _FILE, "minItems": 1}},
                    "required": ["image"],
                    "additionalProperties": False,
                }
            },
        },
    }
}


def application(service: Service, routers: Sequence[APIRouter] = ()) -> Gate:
    """The server's ASGI application.

    Args:
        service: computes.
        routers: further routes; they are open to all where they lie at `/` or below `/page/`.
    """
    app = FastAPI(
        title="Vitrail",
        version=__version__,
        docs_url=None,  # they load from elsewhere
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(_open_routes(service))
    guard = [Depends(HTTPBearer(auto_error=False))] if service.settings.token else []
    app.include_router(_routes(service), dependencies=guard)
    for router in routers:
        app.include_router(router, include_in_schema=False)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(Gone, _gone)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    return Gate(app, service)


def _open_routes(service: Service) -> APIRouter:
    router = APIRouter()

    async def healthz() -> Response:
        """Whether the server runs at all."""
        return answer({"status": "ok"})

    async def readyz() -> Response:
        """Whether requests should be sent here: a worker is ready, and no signal said to end."""
        workers = service.supervisor.ready
        if service.ready:
            return answer({"status": "ready", "workers": workers})
        status = "draining" if service.draining else "no worker is ready"
        return answer({"status": status, "workers": workers}, 503)

    unready: dict[int | str, dict[str, Any]] = {503: {"model": Status, "description": "Not ready"}}
    router.add_api_route("/healthz", healthz, response_model=Status)
    router.add_api_route("/readyz", readyz, response_model=Status, responses=unready)
    for path, call in (("/healthz", healthz), ("/readyz", readyz)):
        router.add_api_route(path, call, methods=["HEAD"], include_in_schema=False)
    return router


def _routes(service: Service) -> APIRouter:
    router = APIRouter()
    private = (401,) if service.settings.token else ()

    @router.post(
        "/v1/classify",
        response_model=Classified,
        response_model_exclude_none=True,
        responses=problems(400, *private, 408, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=_BODY,
        dependencies=[Depends(_known)],
    )
    async def classify(
        request: Request,
        top_k: Annotated[int, Query(ge=1, le=100_000, description="Labels of each picture")] = 5,
        attention: Annotated[
            bool, Query(description="Also where it looked, if the model's extras have it")
        ] = False,
    ) -> Response:
        """Say what is on one picture, or on several."""
        service.check()
        extras = ["attention"] if attention else []
        if attention and "attention" not in service.model.get("extras", ()):
            raise Refused(422, "this model says nothing of its attention: export --attention does")
        with Holding(service.budget) as holding:
            pictures = await read_pictures(
                request.headers, request.receive, service.settings, holding
            )
            request.scope["log"] = {"pictures": len(pictures)}
            answers = await service.answers(pictures, top_k, extras, request.receive)
        results = [result(found, service.model["labels"]) for found in answers]
        return answer({"model": service.model["name"], "results": results})

    @router.get("/v1/model", response_model=ModelCard, responses=problems(*private))
    async def model() -> Response:
        """The model: its labels, its preprocessing, what its gate found; and the limits."""
        return answer({**service.model, "limits": service.settings.public()})

    @router.get("/metrics", response_class=Response, responses=problems(*private))
    async def metrics() -> Response:
        """Figures in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return router


async def _known(request: Request) -> None:
    """Refuse a parameter that would be passed over in silence: unknown, or one of two values."""
    for name in request.query_params:
        if name not in PARAMETERS:
            name = name[:60]
            near = did_you_mean(name, PARAMETERS) or f"; there are {' and '.join(PARAMETERS)}"
            raise Refused(422, f"there is no parameter {name!r}{near}")
        if len(request.query_params.getlist(name)) > 1:
            raise Refused(422, f"{name} is given more than once")


def result(found: Answer, labels: Sequence[str]) -> dict[str, Any]:
    """One picture's answer as it stands in the response."""
    if found.outcome != "ok":
        return {"error": found.reason}
    places, chances = found.arrays["places"], found.arrays["probabilities"]
    predictions = [
        {"label": labels[place], "probability": chance}
        for place, chance in zip(places.tolist(), chances.tolist(), strict=True)
    ]
    if "attention" not in found.arrays:
        return {"predictions": predictions}
    rows = found.arrays["attention"].tolist()
    values = [[float(f"{value:.6g}") for value in row] for row in rows]
    region = found.arrays["region"].tolist()
    return {"predictions": predictions, "attention": {"values": values, "region": region}}


def answer(
    value: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON response. ASCII: labels may hold what UTF-8 cannot."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Response(
        text, status, {"cache-control": "no-store", **(headers or {})}, "application/json"
    )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of refusals."""
    return {status: {"model": Problem, "description": PROBLEMS[status]} for status in statuses}


async def _refused(request: Request, refused: Any) -> Response:
    body = {"error": refused.reason, "request_id": request.scope["request_id"]}
    return answer(body, refused.status, refused.headers)


async def _gone(request: Request, gone: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _http(request: Request, error: Any) -> Response:
    reasons = {404: "there is nothing here", 405: "this method is not for this path"}
    reason = reasons.get(error.status_code, str(error.detail))
    body = {"error": reason, "request_id": request.scope["request_id"]}
    return answer(body, error.status_code, error.headers)


async def _invalid(request: Request, error: Any) -> Response:
    said = "; ".join(
        f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()
    )
    return answer({"error": said.lower(), "request_id": request.scope["request_id"]}, 422)
