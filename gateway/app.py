"""The ASGI application: routes, problems, middleware."""

from importlib.metadata import version

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from gateway import sockets
from gateway.middleware import Measured, RequestId
from gateway.openapi import document
from gateway.problems import HANDLERS
from gateway.routes import DOORS
from gateway.services import Services


def create_app(services: Services) -> Starlette:
    """Return the app over these services; who made them runs the relay and the streams' clock."""
    api = msgspec.json.encode(document(version("headrace")))

    async def openapi(_request: Request) -> Response:
        return Response(api, media_type="application/json")

    routes: list[BaseRoute] = [
        Route(door.path, door.endpoint, methods=[door.method]) for door in DOORS
    ]
    routes += [Route("/openapi.json", openapi), WebSocketRoute("/v1/ws", sockets.serve)]
    app = Starlette(
        routes=routes,
        exception_handlers=HANDLERS,
        middleware=[
            Middleware(RequestId),
            Middleware(Measured, metrics=services.metrics),
        ],
    )
    app.state.services = services
    return app
