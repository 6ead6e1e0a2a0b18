"""The gateway process: from settings to a drained exit."""

import asyncio
import gc
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import structlog
import uvicorn
import uvloop
from redis.asyncio import Redis

from common.api_keys import ApiKeyStore
from common.connections import UNAVAILABLE, command_client, pubsub_client
from common.errors import StartupFailed
from common.job_store import JobStore
from common.keys import Keys
from common.registry import Registry
from common.server import require_fit, wait_until_fit
from common.settings import Settings
from common.telemetry import configure_logging
from gateway.app import create_app
from gateway.caretaker import Caretaker
from gateway.doorbell import Doorbell
from gateway.http_limits import HttpLimits, LimitedConfig, cut_stalled_peers, raise_file_limit
from gateway.identity import Doorkeeper
from gateway.links import Links
from gateway.metrics import Metrics
from gateway.model_choice import ModelChoice
from gateway.origin import is_loopback_name
from gateway.protocol import CuttableProtocol, CuttableWebSocketProtocol
from gateway.relay import Relay
from gateway.secret import SharedSecret
from gateway.services import Services
from gateway.streams import Streams

_log = structlog.get_logger()

BACKLOG = 2048
KEEP_ALIVE_S = 5  # between two requests


def serve(settings: Settings) -> int:
    """Run a gateway until SIGTERM or SIGINT; returns the exit code.

    Raises ``StartupFailed`` where a restart would not help.
    """
    configure_logging(
        "gateway", level=settings.log_level, as_json=settings.log_json, stream=sys.stderr
    )
    listener = listen(settings.host, settings.port)
    spare_collector()
    return uvloop.run(_serve(settings, listener))


def spare_collector() -> None:
    """Make full garbage collections short and rare: each one holds up every stream.

    What is loaded by now stays. A thousand readers are 130,000 objects, a pass over them takes
    130 ms, and by default it comes whenever a quarter of the readers has changed.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 100)


async def refuse_open_door(settings: Settings, api_keys: ApiKeyStore) -> None:
    """Refuse an address that others can reach while there are no API keys.

    Where Redis does not answer, the gateway starts and lets nobody in before it does.
    """
    if is_open_door(settings):
        return
    try:
        is_unused = await api_keys.is_unused()
    except UNAVAILABLE as error:
        _log.warning("api_keys_unread", error=str(error))
        return
    if is_unused:
        raise StartupFailed(
            f"--host {settings.host} can be reached from outside and there are no API keys: make "
            "one with `headrace keys create`, bind to 127.0.0.1, or say --insecure if something "
            "else guards the door"
        )


def is_open_door(settings: Settings) -> bool:
    """Tell whether callers may come in without a key as long as there is none."""
    return settings.insecure or is_loopback_name(settings.host)


def listen(host: str, port: int) -> socket.socket:
    """Return the listening socket; raises ``StartupFailed`` when the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return _bound(socket.socket(family, socket.SOCK_STREAM), address)
    except OSError as error:
        reason = error.strerror or error
        raise StartupFailed(f"cannot listen on {host}:{port}: {reason}; try --port") from None


def _bound(listener: socket.socket, address: tuple[Any, ...]) -> socket.socket:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


async def _serve(settings: Settings, listener: socket.socket) -> int:
    redis = command_client(settings.redis)
    subscriber = pubsub_client(settings.redis)
    keys = Keys(settings.key_prefix)
    try:
        is_fit = await _is_fit(redis, keys)
        await refuse_open_door(settings, ApiKeyStore(redis, keys))
        return await Gateway(settings, redis, subscriber).run(listener, is_fit=is_fit)
    finally:
        await redis.aclose()
        await subscriber.aclose()


async def _is_fit(redis: Redis, keys: Keys) -> bool:
    """Tell that the server is fit, or away: then the gateway starts all the same."""
    try:
        await require_fit(redis, keys)
    except UNAVAILABLE as error:
        _log.warning("redis_unchecked", error=str(error))
        return False
    return True


class Gateway:
    """One gateway's background tasks beside its HTTP server."""

    def __init__(self, settings: Settings, redis: Redis, subscriber: Redis) -> None:
        self._settings = settings
        self._redis = redis
        self._keys = keys = Keys(settings.key_prefix)
        self._store = JobStore(redis, keys)
        self._registry = Registry(redis, keys)
        self._caretaker = Caretaker(redis, keys, settings.default_model)
        self._streams = Streams(settings.ping_s, settings.write_timeout_s, settings.max_streams)
        doorbell = Doorbell(subscriber, redis, keys.probe(secrets.token_hex(8)))
        self._relay = Relay(self._store, self._registry, doorbell, keys, settings.resync_s)

    async def run(self, listener: socket.socket, *, is_fit: bool) -> int:
        """Serve until a signal; a background task that dies takes the process with it, loudly.

        A Redis that was away so far (``is_fit`` is False) is looked at before it is used.
        """
        # The streams' own clock is faster, and says so.
        cut_stalled_peers(listener, 2 * self._settings.write_timeout_s)
        services = self._services()
        tasks = self._background(services, is_fit=is_fit)
        background = asyncio.gather(*tasks)
        server = Server(self._config(services), self._streams)
        background.add_done_callback(lambda _: server.stop())
        _log.info("listening", address="http://{}:{}".format(*listener.getsockname()[:2]))
        try:
            await server.serve(sockets=[listener])
            if background.done():
                background.result()
        finally:
            for task in tasks:  # one that has failed stops none of the others
                task.cancel()
            await asyncio.gather(background, *tasks, return_exceptions=True)
        return 0

    def _background(self, services: Services, *, is_fit: bool) -> list[asyncio.Task[None]]:
        async def look() -> None:
            if not is_fit:
                await wait_until_fit(self._redis, self._keys)

        async def once_fit(run: Callable[[], Awaitable[None]]) -> None:
            await asyncio.shield(looking)
            await run()

        looking = asyncio.create_task(look())
        users = (self._relay.run, self._caretaker.run, services.doorkeeper.look)
        streams = asyncio.create_task(self._streams.run())
        return [looking, streams, *(asyncio.create_task(once_fit(run)) for run in users)]

    def _services(self) -> Services:
        secret = SharedSecret(self._redis, self._keys)
        links = Links(secret)
        api_keys = ApiKeyStore(self._redis, self._keys)
        return Services(
            settings=self._settings,
            keys=self._keys,
            redis=self._redis,
            store=self._store,
            registry=self._registry,
            models=ModelChoice(self._registry, self._settings.default_model),
            relay=self._relay,
            streams=self._streams,
            metrics=Metrics(),
            secret=secret,
            links=links,
            doorkeeper=Doorkeeper(api_keys, links, is_open=is_open_door(self._settings)),
        )

    def _config(self, services: Services) -> uvicorn.Config:
        settings = self._settings
        return LimitedConfig(
            create_app(services),
            HttpLimits(raise_file_limit(settings.max_sockets), settings.request_timeout_s),
            http=CuttableProtocol,
            ws=CuttableWebSocketProtocol,
            ws_per_message_deflate=False,  # costs 300 KB a socket and CPU per token
            ws_max_size=settings.max_body_bytes,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=round(settings.gateway_drain_s) or 1,
        )


class Server(uvicorn.Server):
    """uvicorn's server, whose shutdown asks our streams to end before it waits for them."""

    def __init__(self, config: uvicorn.Config, streams: Streams) -> None:
        super().__init__(config)
        self._streams = streams

    def stop(self) -> None:
        """Begin the shutdown from inside the process."""
        self.should_exit = True

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """Begin the drain with the signal: ``/readyz`` says so at once. A second Ctrl-C hurries.

        uvicorn's own handler raises the signal again after the shutdown, so that a gateway which
        was stopped in order would end like one that was killed.
        """
        self._streams.draining = True
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, ask the streams to end, wait for them with a deadline."""
        self._streams.drain()
        await super().shutdown(sockets)
