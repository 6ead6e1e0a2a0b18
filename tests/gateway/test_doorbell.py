"""The pub/sub connection: confirmed before it returns, and never deaf for long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
from redis.asyncio import Redis

from common.connections import command_client, pubsub_client
from common.keys import Keys
from gateway import doorbell
from gateway.doorbell import Doorbell
from tests.support.servers import Server
from tests.support.subscriptions import kill_subscriptions, num_subscribers
from tests.support.waiting import eventually, within

JOB = "job_00000000000000000000000000000001"
DEAF_S = 0.1
NOTICE_S = 10 * DEAF_S


class Listener:
    """A doorbell that listens, and what it heard."""

    def __init__(self, bell: Doorbell) -> None:
        self.bell = bell
        self.heard: list[tuple[str, bytes]] = []
        self.num_connects = 0
        self.task = asyncio.create_task(bell.run(self._on_message, self._on_reconnect))

    def _on_message(self, channel: str, data: bytes) -> None:
        self.heard.append((channel, data))

    def _on_reconnect(self) -> None:
        self.num_connects += 1

    async def connects(self, times: int, seconds: float = 15.0) -> None:
        """Return when the doorbell has connected that often."""

        async def has_connected() -> bool:
            return self.num_connects >= times

        await eventually(has_connected, seconds)

    async def hears(self, channel: str, data: bytes) -> None:
        """Return when this message has come."""

        async def has_heard() -> bool:
            return (channel, data) in self.heard

        await eventually(has_heard)


@asynccontextmanager
async def listening(url: str, keys: Keys) -> AsyncIterator[Listener]:
    """Run a doorbell that is connected."""
    async with (
        aclosing(command_client(url)) as redis,
        aclosing(pubsub_client(url)) as subscriber,
    ):
        listener = Listener(Doorbell(subscriber, redis, keys.probe("test")))
        try:
            await listener.connects(1)
            yield listener
        finally:
            listener.task.cancel()
            async with within():
                await asyncio.gather(listener.task, return_exceptions=True)


@pytest.fixture
async def listener(redis_url: str, keys: Keys, haste: None) -> AsyncIterator[Listener]:
    """A doorbell that probes often and waits little."""
    async with listening(redis_url, keys) as running:
        yield running


@pytest.fixture
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every waiting time of the doorbell short."""
    monkeypatch.setattr(doorbell, "PROBE_S", DEAF_S / 5)
    monkeypatch.setattr(doorbell, "DEAF_S", DEAF_S)
    monkeypatch.setattr(doorbell, "RETRY_S", 0.01)


@pytest.fixture
def channel(keys: Keys) -> str:
    """The live channel of some job."""
    return keys.job(JOB).live


async def test_a_subscription_is_confirmed_before_it_returns(
    listener: Listener, redis: Redis, channel: str
) -> None:
    """What is published after it is heard, always."""
    for round_ in range(50):
        name, data = f"{channel}{round_}", str(round_).encode()
        async with within():
            await listener.bell.subscribe(name)
        await redis.publish(name, data)
        await listener.hears(name, data)


async def test_without_a_confirmation_it_raises(
    redis: Redis, keys: Keys, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription that Redis did not confirm is never taken for one."""
    monkeypatch.setattr(doorbell, "CONFIRM_S", 0.01)
    unconnected = Doorbell(redis, redis, keys.probe("test"))
    with pytest.raises(TimeoutError):
        await unconnected.subscribe(channel)


@pytest.mark.fault(12)
async def test_a_subscription_during_an_outage_is_confirmed_after_it(
    listener: Listener, redis: Redis, channel: str
) -> None:
    """The next connection asks for every channel."""
    await kill_subscriptions(redis)
    async with within():
        await listener.bell.subscribe(channel)
    assert await num_subscribers(redis, channel) == 1


async def test_a_channel_can_be_left(listener: Listener, redis: Redis, channel: str) -> None:
    """Redis forgets it, and the next connection does not ask for it."""
    await listener.bell.subscribe(channel)
    await listener.bell.unsubscribe(channel)

    async def is_left() -> bool:
        return await num_subscribers(redis, channel) == 0

    await eventually(is_left)
    await kill_subscriptions(redis)
    await listener.connects(2)
    assert await num_subscribers(redis, channel) == 0


@pytest.mark.fault(12)
async def test_a_broken_connection_is_rebuilt_and_reported(
    listener: Listener, redis: Redis, channel: str
) -> None:
    """The owner is told once every channel is confirmed again, so that it reads the logs."""
    await listener.bell.subscribe(channel)
    await kill_subscriptions(redis)
    await listener.connects(2)
    await redis.publish(channel, b"after")
    await listener.hears(channel, b"after")


async def test_a_send_on_a_connection_that_just_broke_is_left_to_the_next(
    listener: Listener, redis: Redis, channel: str
) -> None:
    """Neither does it fail, nor does redis-py reconnect behind the reader's back."""
    await listener.bell.subscribe(channel)
    connection = listener.bell._connection
    assert connection is not None
    await connection.disconnect(nowait=True)
    await listener.bell.unsubscribe(channel)
    assert not connection.is_connected
    async with within():
        await listener.bell.subscribe(f"{channel}-2")
    assert await num_subscribers(redis, f"{channel}-2") == 1


async def make_deaf(listener: Listener) -> None:
    """Let Redis forget the subscriptions of a connection that stays open and healthy."""
    connection = listener.bell._connection
    assert connection is not None
    await connection.send_command("UNSUBSCRIBE", check_health=False)


@pytest.mark.fault(16)
async def test_the_probe_notices_a_deaf_connection(
    listener: Listener, redis: Redis, channel: str
) -> None:
    """A connection that is open but brings nothing is rebuilt, and messages come again."""
    await listener.bell.subscribe(channel)
    await make_deaf(listener)
    await listener.connects(2, NOTICE_S)
    await redis.publish(channel, b"after")
    await listener.hears(channel, b"after")


@pytest.mark.control(16)
async def test_without_the_probe_a_deaf_connection_stays_deaf(
    redis_url: str, redis: Redis, keys: Keys, haste: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault bites: nothing else notices it in the same time."""

    async def probe_nothing(_self: Doorbell) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Doorbell, "_keep_probing", probe_nothing)
    async with listening(redis_url, keys) as listener:
        await make_deaf(listener)
        with pytest.raises(AssertionError, match="not within"):
            await listener.connects(2, NOTICE_S)
        assert not listener.bell.is_alive


async def test_silence_is_not_deafness(listener: Listener) -> None:
    """Where nothing is published the probes keep the connection as it is."""
    with pytest.raises(AssertionError, match="not within"):
        await listener.connects(2, NOTICE_S)
    assert listener.bell.is_alive


async def test_it_is_not_alive_while_the_server_is_away(
    own_server: Server, keys: Keys, haste: None
) -> None:
    """Readiness can tell; when the server is back, so is the doorbell."""
    async with listening(own_server.url, keys) as listener:
        await asyncio.to_thread(own_server.kill)

        async def is_down() -> bool:
            return not listener.bell.is_alive

        await eventually(is_down)
        await asyncio.to_thread(own_server.start)
        await listener.connects(2)
        assert listener.bell.is_alive


@pytest.mark.fault(13)
async def test_a_cancel_that_meets_a_broken_connection_is_heeded(
    redis_url: str, redis: Redis, keys: Keys, haste: None
) -> None:
    """Whenever it comes while the connection breaks, the doorbell ends."""
    for num_turns in range(20):
        async with listening(redis_url, keys) as listener:
            connection = listener.bell._connection
            assert connection is not None
            await connection.disconnect(nowait=True)
            for _ in range(num_turns):
                await asyncio.sleep(0)
    assert listener.task.cancelled()
