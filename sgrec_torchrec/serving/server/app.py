"""The endpoints over one server's parts."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import HTMLResponse, Response
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from sgrec_torchrec.serving.server.batching import Batcher
from sgrec_torchrec.serving.server.checks import Asked, check_request
from sgrec_torchrec.serving.server.errors import RequestError, error_response
from sgrec_torchrec.serving.server.limits import Limits
from sgrec_torchrec.serving.server.metrics import Metrics
from sgrec_torchrec.serving.server.observe import Observe
from sgrec_torchrec.serving.server.paths import HeadAsGet, OnePath
from sgrec_torchrec.serving.server.served_model import ServedModel
from sgrec_torchrec.serving.server.settings import ServerSettings
from sgrec_torchrec.serving.server.swap import Swapper
from sgrec_torchrec.serving.server.why import answer
from sgrec_torchrec.serving.server.wire import (
    ErrorAnswer,
    ExamplesAnswer,
    ItemsAnswer,
    RecommendAnswer,
    RecommendRequest,
    ReloadAnswer,
    parse_request,
)

PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SMALL_BODY = 16_384
"""Bytes; 1,000 events or so, parsed and looked up in some .2 ms."""
MAX_QUERY = 100
MAX_FOUND = 50
SCHEMAS = "#/components/schemas/"
REFUSALS = {
    400: "The body is no JSON, or ended early.",
    401: "The token is missing or wrong.",
    404: "There is no such path, or it is off.",
    408: "The body came too slowly.",
    409: "The reload failed; the older model goes on serving.",
    413: "The body is too large.",
    415: "The body is not announced as JSON.",
    422: "A field is wrong; the message says what to change.",
    429: "Over capacity; Retry-After says when to come back.",
}


@dataclass(slots=True, kw_only=True)
class Server:
    """What the endpoints share."""

    settings: ServerSettings
    metrics: Metrics
    batcher: Batcher
    swapper: Swapper
    is_closing: bool = False

    @classmethod
    def over(cls, root: Path, model: ServedModel, settings: ServerSettings) -> "Server":
        """A server whose first model is loaded."""
        metrics = Metrics()
        batcher = Batcher(settings, metrics, model.seconds_a_user)
        swapper = Swapper(root, model, batcher, metrics)
        return cls(settings=settings, metrics=metrics, batcher=batcher, swapper=swapper)


def create_app(server: Server, on_start: Callable[[], None] = lambda: None) -> FastAPI:
    """The application; ``on_start`` is called in the event loop once it serves."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.batcher.start()
        on_start()
        yield
        await server.batcher.stop()

    app = FastAPI(
        title="sgrec",
        summary="Recommendations by a trained generator, without an LLM.",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_answers(app, server)
    _add_page(app, server)
    _add_state(app, server)
    _add_refusals(app)
    _describe_body(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(
        Limits, settings=server.settings, check_room=server.batcher.check_room
    )
    app.add_middleware(
        Observe, metrics=server.metrics, is_closing=lambda: server.is_closing
    )
    app.add_middleware(OnePath)
    if proxies := server.settings.proxy_networks():
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=proxies)
    return app


def _add_answers(app: FastAPI, server: Server) -> None:
    @app.post(
        "/recommend",
        response_model=RecommendAnswer,
        responses=_refusals(400, 401, 408, 413, 415, 422, 429),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"$ref": f"{SCHEMAS}{RecommendRequest.__name__}"}
                    }
                },
            }
        },
    )
    async def recommend(request: Request) -> Response:
        """The k best next items of one user."""
        kind = request.headers.get("content-type", "").partition(";")[0]
        if kind.strip().lower() != "application/json":
            raise RequestError(415, "send the header `Content-Type: application/json`")
        body = await request.body()
        # One model for the whole request, whatever is reloaded meanwhile.
        model = server.swapper.current
        fields, asked = await _checked(body, model, server.settings)
        server.metrics.unknown_events.inc(asked.history.num_unknown)
        found = await server.batcher.ask(asked)
        told = answer(asked, found, fields.explain)
        return Response(told.model_dump_json(), media_type="application/json")

    @app.post(
        "/admin/reload",
        response_model=ReloadAnswer,
        responses=_refusals(401, 404, 409),
    )
    async def reload_model() -> ReloadAnswer:
        """Load the server's own folder again, and switch to it.

        Only where an admin token is set, and with that token alone. The folder is that
        of the command line, or what `current` in it links to.
        """
        if server.settings.admin_bearer is None:
            raise RequestError(
                404, "/admin is off: start the server with an admin token"
            )
        model = await server.swapper.reload()
        return ReloadAnswer(model=model.name, generation=model.generation)


async def _checked(
    body: bytes, model: ServedModel, settings: ServerSettings
) -> tuple[RecommendRequest, Asked]:
    """In a thread where it could hold up others, at once where a thread costs more."""
    if len(body) > SMALL_BODY:
        fields = await run_in_threadpool(parse_request, body)
    else:
        fields = parse_request(body)
        # An unknown category is compared with all, for the names that are near.
        if fields.filters.category is None:
            return fields, check_request(fields, model, settings)
    return fields, await run_in_threadpool(check_request, fields, model, settings)


def _add_page(app: FastAPI, server: Server) -> None:
    page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def try_it() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/items", response_model=ItemsAnswer, responses=_refusals(401, 422))
    async def items(
        query: Annotated[
            str, Query(min_length=1, max_length=MAX_QUERY, examples=["tea"])
        ],
        limit: Annotated[int, Query(ge=1, le=MAX_FOUND)] = 10,
    ) -> ItemsAnswer:
        """Items whose title or id has a text."""
        titles = server.swapper.current.titles
        found = await run_in_threadpool(titles.search, query, limit)
        return ItemsAnswer(items=titles.known(found))

    @app.get("/examples", response_model=ExamplesAnswer)
    async def examples() -> ExamplesAnswer:
        """Histories to try the page with; none where a token is set."""
        model, settings = server.swapper.current, server.settings
        return ExamplesAnswer(
            examples=[] if settings.bearer else model.examples,
            model=model.name,
            max_k=min(settings.max_k, model.recommender.max_k),
            needs_token=settings.bearer is not None,
        )


def _add_state(app: FastAPI, server: Server) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        responses={503: {"model": ErrorAnswer, "description": "Send users elsewhere."}},
    )
    async def readyz() -> dict[str, str]:
        """Whether requests should come here."""
        if server.is_closing:
            raise RequestError(503, "the server is stopping: send requests elsewhere")
        if not server.batcher.is_alive:
            raise RequestError(503, "no passes are made: start the server again")
        return {"status": "ok", "model": server.swapper.current.name}

    @app.get("/metrics", responses=_refusals(401), response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(server.metrics.render(), headers={"Content-Type": kind})


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return error.response()

    @app.exception_handler(StarletteHTTPException)
    async def routed(_: Request, error: HTTPException) -> Response:
        told = {
            404: "there is no such path; GET /openapi.json lists them",
            405: "this path has another method; GET /openapi.json lists them",
        }
        message = told.get(error.status_code, str(error.detail))
        return error_response(error.status_code, message, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        told = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
            for one in error.errors()[:3]
        )
        return error_response(422, told)


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": ErrorAnswer, "description": REFUSALS[status]}
        for status in statuses
    }


def _describe_body(app: FastAPI) -> None:
    """The body is parsed under our own bounds, so its schema is added by hand."""
    made = app.openapi

    def described() -> dict[str, Any]:
        is_new = app.openapi_schema is None
        document = made()
        if is_new:
            schema = RecommendRequest.model_json_schema(
                ref_template=SCHEMAS + "{model}"
            )
            schemas = document["components"]["schemas"]
            schemas.update(schema.pop("$defs"))
            schemas[RecommendRequest.__name__] = schema
        return document

    app.openapi = described  # type: ignore[method-assign]
