"""The user's functions as ASGI apps, one builder per kind (design §3)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from modalnomad_sdk.declarations import EndpointDeclaration

from .lifespan import App


class CannotServe(Exception):
    """The user's function gave something that cannot be served; the message says what and where."""


def build_app(endpoint: EndpointDeclaration, function: Callable[..., Any], made: Any, max_inputs: int) -> App:
    """The ASGI app of a managed endpoint. `made` is what an app-building function returned."""
    if endpoint.kind == "fastapi_endpoint":
        return _fastapi(endpoint, function)
    if not callable(made):
        shown = "None" if made is None else f"a {type(made).__name__}"
        raise CannotServe(
            f"`{endpoint.name}` ({endpoint.where}) is a {endpoint.kind}, so it must return "
            f"{'an ASGI' if endpoint.kind == 'asgi_app' else 'a WSGI'} application; it returned {shown}"
        )
    if endpoint.kind == "wsgi_app":
        from .wsgi import WsgiBridge

        return WsgiBridge(made, threads=max_inputs)
    app: App = made
    return app


def _fastapi(endpoint: EndpointDeclaration, function: Callable[..., Any]) -> App:
    try:
        from fastapi import FastAPI
        from fastapi.middleware.cors import CORSMiddleware
    except ModuleNotFoundError as error:
        raise CannotServe(
            f"`{endpoint.name}` ({endpoint.where}) is a fastapi_endpoint, and this image has no module {error.name}: "
            'add .uv_pip_install("fastapi[standard]") to the image'
        ) from error
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise CannotServe(
            f"`{endpoint.name}` ({endpoint.where}) yields: a fastapi_endpoint returns; to stream, return a "
            "fastapi.responses.StreamingResponse"
        )
    app = FastAPI(openapi_url="/openapi.json" if endpoint.docs else None)
    app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
    )
    app.add_api_route("/", function, methods=[endpoint.method])
    served: App = app
    return served
