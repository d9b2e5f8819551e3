"""The table of routes: which path is answered by whom. Every error is one line of JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from server.classify import Pictures
from server.errors import TEXTS, Refused, error_response, refusal
from server.metrics import CONTENT_TYPE
from server.middleware import Middleware
from server.open_inference import OpenInference
from server.service import Service
from server.tensors import HEADER_LENGTH

PAGE = Path(__file__).resolve().parent / 'page'
PAGE_FILES = {  # the only files that are served, read when the server starts
    '/': ('index.html', 'text/html'),
    '/page.css': ('page.css', 'text/css'),
    '/page.js': ('page.js', 'text/javascript'),
}


def make_app(service: Service, origins: Sequence[str] = ()) -> ASGIApp:
    """For an ASGI server.

    origins: of web pages elsewhere that may send requests; '*': any
    """
    routes: Any = Starlette(routes=_table(service), exception_handlers=_handlers(service))
    routes.router.redirect_slashes = False
    if origins:
        routes = CORSMiddleware(
            routes,
            allow_origins=origins,
            allow_methods=('GET', 'POST'),
            allow_headers=('*',),
            expose_headers=(HEADER_LENGTH, 'Retry-After'),
        )
    return Middleware(routes, service.limits, service.metrics)


def _table(service: Service) -> list[Route]:
    pictures, protocol = Pictures(service), OpenInference(service)

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), headers={'Content-Type': CONTENT_TYPE})

    routes = [
        *(Route(path, _page(*file)) for path, file in PAGE_FILES.items()),
        Route('/classify', pictures.classify, methods=['POST']),
        Route('/about', pictures.about),
        Route('/metrics', metrics),
        Route('/v2', protocol.server_metadata),
        Route('/v2/health/live', protocol.live),
        Route('/v2/health/ready', protocol.ready),
        Route('/v2/models/stats', protocol.model_statistics),
        Route('/v2/repository/index', protocol.repository_index, methods=['POST']),
    ]
    for model in ('/v2/models/{model}', '/v2/models/{model}/versions/{version}'):
        routes += [
            Route(model, protocol.model_metadata),
            Route(f'{model}/ready', protocol.model_ready),
            Route(f'{model}/config', protocol.model_configuration),
            Route(f'{model}/stats', protocol.model_statistics),
            Route(f'{model}/infer', protocol.infer, methods=['POST']),
        ]
    return [*routes, Route('/v2/{rest:path}', protocol.not_offered, methods=['GET', 'POST'])]


def _page(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (PAGE / name).read_bytes()

    async def page(request: Request) -> Response:
        return Response(content, media_type=kind)

    return page


def _handlers(service: Service) -> dict[Any, Any]:
    """An answer for each kind of error."""

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        refused = refusal(error, service.limits)
        service.metrics.count_refusal(refused.reason)
        return error_response(refused.status, str(refused), refused.headers)

    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, error.detail.lower(), error.headers)

    async def internal(request: Request, error: Exception) -> JSONResponse:
        return error_response(500, 'internal error; see the log of the server', None)

    known = dict.fromkeys((Refused, *TEXTS), refuse)
    return {**known, HTTPException: http, Exception: internal}
