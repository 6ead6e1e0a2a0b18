"""A message that is ahead of the transcript while a catch-up is already on its way."""

import asyncio
from unittest.mock import patch

import pytest
from redis.asyncio import Redis

from common.job_store import JobStore
from common.keys import Keys
from gateway.transcript import Offer, Transcript
from tests.gateway.followers import Follower, check_is_log, log_of
from tests.gateway.player import Attempt
from tests.gateway.running import running_relay
from tests.support.jobs import TENANT, make_job, start, submit
from tests.support.waiting import eventually, within

pytestmark = pytest.mark.anyio


async def test_a_message_behind_a_catch_up_that_has_read_already_is_not_lost(
    redis_url: str, redis: Redis, keys: Keys, store: JobStore
) -> None:
    """An end whose message comes when the log was read, but not yet taken, is delivered at once."""
    job_id = (await submit(store, make_job())).id
    attempt = Attempt(store, job_id, await start(store, job_id), 2)
    num_read, num_ahead = 0, 0
    release = asyncio.Event()
    offer = Transcript.offer

    def counting(self: Transcript, incarnation: str, n: int, payload: bytes) -> Offer:
        nonlocal num_ahead
        answer = offer(self, incarnation, n, payload)
        num_ahead += answer is Offer.AHEAD
        return answer

    async def held(job_id: str, begin: int = 0) -> list[tuple[int, bytes]]:
        """Read the log, and let the answer take its time."""
        nonlocal num_read
        found = await store.log(job_id, begin)
        num_read += 1
        await release.wait()
        return found

    async def is_read(count: int) -> bool:
        return num_read >= count

    async def is_ahead(count: int) -> bool:
        return num_ahead >= count

    async with running_relay(redis_url, keys, resync_s=60) as relay:
        follower = Follower(relay, TENANT, job_id)
        with patch.object(relay._store, "log", held), patch.object(Transcript, "offer", counting):
            attaching = asyncio.create_task(follower.attach())
            await eventually(lambda: is_read(1))
            await attempt.say("a")  # ahead: a catch-up begins, and reads
            await eventually(lambda: is_read(2))
            await attempt.end()  # ahead too
            await eventually(lambda: is_ahead(2))
            release.set()
            await attaching
            async with within(2):
                await follower.read_to_end()
    check_is_log(follower.seen, await log_of(store, job_id))
