"""The doors that describe the fleet: models, workers, health, readiness, metrics."""

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from common.connections import UNAVAILABLE
from common.lanes import Lanes
from common.registry import LiveWorker, WorkerState
from gateway.replies import json_response
from gateway.schemas import (
    Health,
    ModelList,
    ModelView,
    Readiness,
    WorkerList,
)
from gateway.services import Services, services_of
from gateway.views import worker_view


async def models(request: Request) -> Response:
    """``GET /v1/models``: those that had a worker in the last day."""
    services = services_of(request)
    live = [worker.info.model for worker in await services.registry.workers()]
    names = sorted(await services.registry.models())
    return json_response(
        ModelList("list", [ModelView(name, "model", live.count(name)) for name in names])
    )


async def workers(request: Request) -> Response:
    """``GET /v1/workers``: the live ones."""
    services = services_of(request)
    found = await services.registry.workers()
    return json_response(
        WorkerList([worker_view(worker, services.settings.lease_s) for worker in found])
    )


async def healthz(_request: Request) -> Response:
    """``GET /healthz``: the process answers."""
    return json_response(Health("ok"))


async def readyz(request: Request) -> Response:
    """``GET /readyz``: 200 when a job sent here would run and could be followed."""
    services = services_of(request)
    found = await _find_workers(services)
    checks = {
        "redis": found is not None,
        "relay": services.relay.is_alive,
        "worker": any(worker.info.state is not WorkerState.LOADING for worker in found or ()),
    }
    if services.streams.draining:
        return json_response(Readiness("draining", checks), 503)
    if not all(checks.values()):
        return json_response(Readiness("not_ready", checks), 503)
    return json_response(Readiness("ready", checks))


async def metrics(request: Request) -> Response:
    """``GET /metrics``: Prometheus."""
    services = services_of(request)
    own = services.metrics
    own.subscribers.set(services.relay.num_cursors)
    own.watched.set(services.relay.num_watches)
    own.slow_closed.set(services.streams.num_stalled)
    try:
        names = sorted(await services.registry.models())
        lanes = [Lanes(services.redis, services.keys, name) for name in names]
        await own.collect_fleet(lanes, services.registry, services.settings.lease_s)
    except UNAVAILABLE:
        own.lose_fleet()
    return Response(own.render(), media_type=CONTENT_TYPE_LATEST)


async def _find_workers(services: Services) -> list[LiveWorker] | None:
    """Return the live workers, None when Redis does not answer."""
    try:
        return await services.registry.workers()
    except UNAVAILABLE:
        return None
