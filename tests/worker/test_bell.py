"""The bell wakes the worker and carries cancels; it survives its connection."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from common.connections import pubsub_client
from common.keys import Keys
from common.prompts import forget_message
from tests.support.jobs import MODEL
from tests.support.subscriptions import kill_subscriptions, num_subscribers
from tests.support.waiting import eventually, within
from worker.bell import Bell

pytestmark = pytest.mark.anyio


class Ears:
    """What the bell has said."""

    def __init__(self) -> None:
        self.work: asyncio.Queue[None] = asyncio.Queue()
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()

    def on_work(self) -> None:
        """Hear that there is work."""
        self.work.put_nowait(None)

    async def hear_work(self) -> None:
        """Wait for the next ring."""
        async with within():
            await self.work.get()

    async def hear_cancel(self) -> str:
        """Wait for the next cancel."""
        async with within():
            return await self.cancelled.get()


@pytest.fixture
def ears() -> Ears:
    """The listener's callbacks."""
    return Ears()


@pytest.fixture
async def bell(redis_url: str, keys: Keys, ears: Ears) -> AsyncIterator[Bell]:
    """A bell that listens for worker ``w1``."""
    client = pubsub_client(redis_url)
    bell = Bell(client, keys, MODEL)
    await bell.rename("w1")
    task = asyncio.create_task(bell.listen(ears.on_work, ears.cancelled.put_nowait))
    await ears.hear_work()  # every subscription says so once
    yield bell
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await client.aclose()


async def test_it_hears_what_to_forget(bell: Bell, redis: Redis, keys: Keys, ears: Ears) -> None:
    """A sequence is not taken for a job; without a listener it is passed over."""
    forgotten: asyncio.Queue[tuple[str, tuple[int, ...]]] = asyncio.Queue()
    await redis.publish(keys.worker_ctl("w1"), forget_message("a:b/c", (7, 65_536)))
    await redis.publish(keys.worker_ctl("w1"), "job_1")
    assert await ears.hear_cancel() == "job_1"
    bell.on_forget = lambda tenant, ids: forgotten.put_nowait((tenant, ids))
    await redis.publish(keys.worker_ctl("w1"), forget_message("a:b/c", (7, 65_536)))
    async with within():
        assert await forgotten.get() == ("a:b/c", (7, 65_536))
    assert ears.cancelled.empty()


@pytest.mark.usefixtures("bell")
async def test_it_rings_for_work(redis: Redis, keys: Keys, ears: Ears) -> None:
    """Each message on the model's bell is one call."""
    for _ in range(2):
        await redis.publish(keys.model(MODEL).bell, "")
        await ears.hear_work()
    assert ears.work.empty()
    assert ears.cancelled.empty()


@pytest.mark.usefixtures("bell")
async def test_it_carries_cancels(redis: Redis, keys: Keys, ears: Ears) -> None:
    """The job's ID comes from this worker's own channel, not from another's."""
    await redis.publish(keys.worker_ctl("w2"), "job_2")
    await redis.publish(keys.worker_ctl("w1"), "job_1")
    assert await ears.hear_cancel() == "job_1"
    assert ears.work.empty()


async def test_a_renamed_worker_is_reached_under_its_new_id(
    bell: Bell, redis: Redis, keys: Keys, ears: Ears
) -> None:
    """The change takes effect on the open connection."""
    await bell.rename("w2")
    await redis.publish(keys.worker_ctl("w2"), "job_2")
    assert await ears.hear_cancel() == "job_2"


@pytest.mark.fault(12)
@pytest.mark.usefixtures("bell")
async def test_a_killed_connection_is_replaced(redis: Redis, keys: Keys, ears: Ears) -> None:
    """It may have rung meanwhile, so the new subscription says that there may be work."""
    assert await kill_subscriptions(redis)
    await ears.hear_work()
    await redis.publish(keys.worker_ctl("w1"), "job_1")
    assert await ears.hear_cancel() == "job_1"


async def test_a_rename_on_a_dead_connection_takes_effect_with_the_next(
    bell: Bell, redis: Redis, keys: Keys, ears: Ears
) -> None:
    """The worker outlives the moment between the loss and its notice."""
    killed = await kill_subscriptions(redis)
    await bell.rename("w2")
    assert killed
    await ears.hear_work()

    async def is_heard() -> bool:
        return await num_subscribers(redis, keys.worker_ctl("w2")) == 1

    await eventually(is_heard)
    await redis.publish(keys.worker_ctl("w2"), "job_2")
    assert await ears.hear_cancel() == "job_2"


async def test_without_a_server_it_keeps_trying(keys: Keys, ears: Ears) -> None:
    """An outage ends neither the task nor, by surprise, the worker."""
    client = pubsub_client("redis://127.0.0.1:1")
    bell = Bell(client, keys, MODEL)
    await bell.rename("w1")
    with pytest.raises(TimeoutError):
        async with within(0.1):
            await bell.listen(ears.on_work, ears.cancelled.put_nowait)
    assert ears.work.empty()
    await client.aclose()
