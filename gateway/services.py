"""What every door of a gateway shares."""

from dataclasses import dataclass

from redis.asyncio import Redis
from starlette.requests import HTTPConnection

from common.job_store import JobStore
from common.keys import Keys
from common.registry import Registry
from common.settings import Settings
from gateway.metrics import Metrics
from gateway.relay import Relay
from gateway.secret import SharedSecret
from gateway.streams import Streams

TENANT = "default"
"""Every request's tenant until API keys exist; everything below the doors takes it as given."""


@dataclass(frozen=True, slots=True)
class Services:
    """One gateway's parts."""

    settings: Settings
    keys: Keys
    redis: Redis
    store: JobStore
    registry: Registry
    relay: Relay
    streams: Streams
    metrics: Metrics
    secret: SharedSecret


def services_of(connection: HTTPConnection) -> Services:
    """Return the services of the app that serves this request."""
    found = connection.app.state.services
    assert isinstance(found, Services)
    return found


def tenant_of(_connection: HTTPConnection) -> str:
    """Return who asks."""
    return TENANT
