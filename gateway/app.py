"""The ASGI application: routes, problems, middleware."""

from importlib.metadata import version

import msgspec
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp

from common.settings import Settings
from gateway import sockets
from gateway.middleware import Measured, RequestId
from gateway.openapi import document
from gateway.origin import OriginGuard, is_loopback_name
from gateway.problems import HANDLERS
from gateway.routes import DOORS, Door, Endpoint
from gateway.services import Services, services_of


def create_app(services: Services) -> ASGIApp:
    """Return the app over these services; who made them runs the relay and the streams' clock."""
    api = msgspec.json.encode(document(version("headrace")))

    async def openapi(_request: Request) -> Response:
        return Response(api, media_type="application/json")

    routes = [*_routes(), Route("/openapi.json", openapi), WebSocketRoute("/v1/ws", sockets.serve)]
    app = Starlette(routes=routes, exception_handlers=HANDLERS)
    app.router.redirect_slashes = False  # a redirect is no answer of ours: no sentence, no ID
    app.state.services = services
    # Around Starlette, not in it: the answer to a fault of ours must have its ID and be counted.
    return RequestId(Measured(_guarded(app, services.settings), services.metrics))


def _guarded(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Let in the pages of this gateway and of the allowed origins, and let the latter read."""
    given = (origin.strip().rstrip("/") for origin in settings.allowed_origins.split(","))
    origins = frozenset(filter(None, given))
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=sorted(origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "Idempotency-Key",
                "If-None-Match",
                "Last-Event-ID",
                "X-Api-Key",
                "X-Request-Id",
            ],
            expose_headers=[
                "ETag",
                "Location",
                "Retry-After",
                "Stream-Closed",
                "Stream-Cursor",
                "Stream-Next-Offset",
                "Stream-Up-To-Date",
                "X-Job-Id",
                "X-Request-Id",
            ],
        )
    return OriginGuard(app, origins, loopback_only=is_loopback_name(settings.host))


def _routes() -> list[BaseRoute]:
    """Return one route per path, so that a 405 lists every method that the path takes."""
    paths: dict[str, dict[str, Door]] = {}
    for door in DOORS:
        paths.setdefault(door.path, {})[door.method] = door
    return [Route(path, _by_method(doors), methods=list(doors)) for path, doors in paths.items()]


def _by_method(doors: dict[str, Door]) -> Endpoint:
    async def answer(request: Request) -> Response:
        door = doors["GET" if request.method == "HEAD" else request.method]
        await _admit(request, door)
        return await door.endpoint(request)

    return answer


async def _admit(request: Request, door: Door) -> None:
    """Find out who asks; raises ``Problem`` for who may not come in here."""
    if door.scope is None:
        return
    caller = await services_of(request).doorkeeper.identify(request)
    if door.takes_link:
        caller.require_job(request.path_params["job_id"])
    else:
        caller.require(door.scope)
    request.state.caller = caller
