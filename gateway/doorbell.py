"""The one pub/sub connection of a gateway: every job's doorbell, fanned out in the process.

Messages are hints (pub/sub forgets). What must be exact is the order "confirmed, then read the
log", and that silence is noticed: after a reconnect the owner is told to look at every log, and a
probe that does not come back means that the connection is deaf and must be rebuilt.

It reads with redis-py's ``Connection`` directly: ``PubSub`` costs 1.8 to 2.8 times as much per
message (bench/README.md), and it hides reconnects.
"""

import asyncio
import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Callable

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from common.connections import UNAVAILABLE

_log = structlog.get_logger()

RETRY_S = 0.25
MAX_RETRY_S = 2.0
CONFIRM_S = 5.0
PROBE_S = 2.0
DEAF_S = 6.0
BURST = 64

OnMessage = Callable[[str, bytes], None]


class Doorbell:
    """Subscribes, listens, reconnects. All methods are called on the loop."""

    def __init__(self, subscriber: Redis, publisher: Redis, probe_channel: str) -> None:
        self._pool = subscriber.connection_pool
        self._publisher = publisher
        self._probe = probe_channel
        self._channels: set[str] = {probe_channel}
        self._waiting: defaultdict[str, list[asyncio.Future[None]]] = defaultdict(list)
        self._connection: AbstractConnection | None = None  # set while connected
        self._heard_at = 0.0  # when anything last arrived on the connection

    @property
    def is_alive(self) -> bool:
        """Tell whether messages have arrived lately; the probe makes some when nobody else does."""
        return self._connection is not None and time.monotonic() - self._heard_at < DEAF_S

    async def subscribe(self, channel: str) -> None:
        """Return once Redis has confirmed the subscription; raises ``TimeoutError``."""
        self._channels.add(channel)
        confirmed = asyncio.get_running_loop().create_future()
        self._waiting[channel].append(confirmed)
        await self._send("SUBSCRIBE", channel)
        async with asyncio.timeout(CONFIRM_S):
            await confirmed

    async def unsubscribe(self, channel: str) -> None:
        """Forget a channel; late messages of it are the caller's to ignore."""
        self._channels.discard(channel)
        for future in self._waiting.pop(channel, []):
            future.cancel()
        await self._send("UNSUBSCRIBE", channel)

    async def run(self, on_message: OnMessage, on_reconnect: Callable[[], None]) -> None:
        """Listen for ever. ``on_reconnect`` is called when messages may have been missed."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(on_message, on_reconnect))
            group.create_task(self._keep_probing())

    async def _listen(self, on_message: OnMessage, on_reconnect: Callable[[], None]) -> None:
        retry_s = RETRY_S
        while True:
            try:
                unconfirmed = await self._connect()
                retry_s = RETRY_S
                await self._read(unconfirmed, on_message, on_reconnect)
            except UNAVAILABLE as error:
                _log.warning("doorbell_lost", error=str(error))
            finally:
                await self._disconnect()
            await asyncio.sleep(retry_s)
            retry_s = min(retry_s * 2, MAX_RETRY_S)

    async def _connect(self) -> set[str]:
        """Connect and ask for every channel; returns those that Redis must confirm."""
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()
        self._heard_at = time.monotonic()
        # Before the command is sent: a channel that comes while it is must send its own.
        self._connection = connection
        asked = set(self._channels)
        await connection.send_command("SUBSCRIBE", *asked, check_health=False)
        return asked

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*UNAVAILABLE):
                await connection.disconnect(nowait=True)

    async def _read(
        self, unconfirmed: set[str], on_message: OnMessage, on_reconnect: Callable[[], None]
    ) -> None:
        connection = self._connection
        assert connection is not None
        for count in itertools.count(1):
            kind, channel, data = await connection.read_response(disable_decoding=True)
            self._heard_at = time.monotonic()
            if count % BURST == 0:
                await asyncio.sleep(0)  # reading from a full buffer never yields by itself
            name = channel.decode()
            if kind == b"message":
                if name != self._probe:
                    on_message(name, data)
            elif kind == b"subscribe":
                self._confirm(name)
                if name in unconfirmed:
                    unconfirmed.remove(name)
                    if not unconfirmed:  # only now is a log that is read surely continued here
                        on_reconnect()

    def _confirm(self, channel: str) -> None:
        for future in self._waiting.pop(channel, []):
            if not future.done():
                future.set_result(None)

    async def _keep_probing(self) -> None:
        while True:
            await asyncio.sleep(PROBE_S)
            with contextlib.suppress(*UNAVAILABLE):
                await self._publisher.publish(self._probe, b"")
            if self._connection is not None and not self.is_alive:
                _log.warning("doorbell_deaf")  # connected, but its probes do not come back
                await self._disconnect()  # wakes the reader, which connects again

    async def _send(self, command: str, channel: str) -> None:
        """Send now, or leave it to the next connect, which subscribes to every channel.

        A connection that just broke would be reconnected by its ``send_command``, behind our back.
        """
        connection = self._connection
        if connection is None or not connection.is_connected:
            return
        with contextlib.suppress(*UNAVAILABLE):
            await connection.send_command(command, channel, check_health=False)
