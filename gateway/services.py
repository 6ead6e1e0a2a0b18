"""What every door of a gateway shares."""

from dataclasses import dataclass

from redis.asyncio import Redis
from starlette.requests import HTTPConnection

from common.job_store import JobStore
from common.keys import Keys
from common.registry import Registry
from common.settings import Settings
from gateway.identity import Caller, Doorkeeper
from gateway.links import Links
from gateway.metrics import Metrics
from gateway.model_choice import ModelChoice
from gateway.relay import Relay
from gateway.secret import SharedSecret
from gateway.streams import Streams


@dataclass(frozen=True, slots=True)
class Services:
    """One gateway's parts."""

    settings: Settings
    keys: Keys
    redis: Redis
    store: JobStore
    registry: Registry
    models: ModelChoice
    relay: Relay
    streams: Streams
    metrics: Metrics
    secret: SharedSecret
    links: Links
    doorkeeper: Doorkeeper


def services_of(connection: HTTPConnection) -> Services:
    """Return the services of the app that serves this request."""
    found = connection.app.state.services
    assert isinstance(found, Services)
    return found


def caller_of(connection: HTTPConnection) -> Caller:
    """Return who asks, once the doorkeeper has said so."""
    found = connection.state.caller
    assert isinstance(found, Caller)
    return found


def tenant_of(connection: HTTPConnection) -> str:
    """Return for which tenant somebody asks; everything below the doors takes it as given."""
    return caller_of(connection).tenant
