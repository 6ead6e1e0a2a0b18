"""Redis Sentinel: the primary dies, hangs or was not replicated; everything goes on."""

import asyncio

import pytest

from common.connections import UNAVAILABLE, command_client, pubsub_client
from common.keys import Keys
from common.topology import roaming
from tests.faults.checks import check_never_ends
from tests.support.fleet import LEASE_S, NUM_TOKENS
from tests.support.servers import Server
from tests.support.topologies import SentinelSet, ask, is_synced, until
from tests.support.waiting import within
from tests.topologies.conftest import FleetOn
from tests.topologies.lives import (
    LIFE_S,
    PROMPTS,
    expected_texts,
    outlive,
    outlive_a_worker,
    until_answered,
)

pytestmark = pytest.mark.anyio


@pytest.mark.fault(20)
async def test_a_fleet_outlives_workers_and_the_primary(
    sentinels: SentinelSet, fleet_on: FleetOn
) -> None:
    """After the failover everything goes on; what the replica had is there."""
    async with fleet_on(sentinels.url) as fleet:
        await fleet.start()
        texts = await expected_texts(fleet)
        await outlive_a_worker(fleet, texts)
        await fleet.start(gateways=0, workers=1)

        def strike(_job_id: str) -> None:
            assert ask(sentinels.primary, "WAIT", 1, 1000) == 1
            sentinels.lose_primary()

        await outlive(fleet, texts, strike)
        await fleet.check_at_rest()


@pytest.mark.fault(20)
@pytest.mark.faults
async def test_a_tail_that_was_not_replicated_is_sent_again(
    sentinels: SentinelSet, fleet_on: FleetOn, keys: Keys
) -> None:
    """Replication is asynchronous: what the new primary lacks, the worker writes once more."""
    async with fleet_on(sentinels.url) as fleet:
        await fleet.start()
        texts = await expected_texts(fleet)
        await outlive(fleet, texts, lambda job_id: lose_tail(sentinels, keys.job(job_id).log))
        await fleet.check_at_rest()


@pytest.mark.control(20)
@pytest.mark.faults
async def test_without_sending_it_again_the_job_never_ends(
    sentinels: SentinelSet, fleet_on: FleetOn, keys: Keys
) -> None:
    """A worker that takes its word for Redis's goes on behind a gap, where nothing is accepted."""
    async with fleet_on(sentinels.url) as fleet:
        await fleet.start(changes="no_second_sending")
        job_id = await fleet.submit(PROMPTS[0], max_tokens=NUM_TOKENS)
        await fleet.logged(job_id, 15)
        await asyncio.to_thread(lose_tail, sentinels, keys.job(job_id).log)
        await until_answered(fleet, [job_id])
        await check_never_ends(fleet, job_id, 3 * LEASE_S)


def lose_tail(sentinels: SentinelSet, log: str) -> None:
    """Kill the primary when it is ahead of its replica; returns after the failover."""
    primary, replica = sentinels.primary, sentinels.replica
    ask(primary, "ACL", "SETUSER", "default", "-psync", "-sync")
    ask(primary, "CLIENT", "KILL", "TYPE", "replica")
    had = ask(replica, "XLEN", log)
    until(lambda: ask(primary, "XLEN", log) > had + 20, "the primary is ahead")
    lost = ask(primary, "XLEN", log) - ask(replica, "XLEN", log)
    sentinels.lose_primary()
    assert lost > 10, "the fault has not bitten"


@pytest.mark.faults
async def test_a_primary_that_hangs_is_left(sentinels: SentinelSet, fleet_on: FleetOn) -> None:
    """Connections stay open and nothing answers; when it wakes up, nobody is there any more."""
    async with fleet_on(sentinels.url) as fleet:
        await fleet.start()
        texts = await expected_texts(fleet)
        await outlive(fleet, texts, lambda _job: sentinels.lose_primary(end=Server.freeze))
        await fleet.check_at_rest()
        await asyncio.to_thread(sentinels.primary.thaw)
        await asyncio.to_thread(until, lambda: is_synced(sentinels.primary), "it follows")
        again = await fleet.submit(PROMPTS[0], max_tokens=NUM_TOKENS)
        async with within(LIFE_S):
            await fleet.follow(again)
        assert (await fleet.story(again)).text == texts[0]
        await fleet.check_at_rest()


@pytest.mark.faults
async def test_without_a_primary_the_reason_is_told(sentinels: SentinelSet) -> None:
    """An unknown service, and sentinels that are away, are unavailable with a reason."""
    unknown = sentinels.url.replace("/mill", "/pond")
    async with within(), command_client(unknown) as client:
        with pytest.raises(UNAVAILABLE, match=r"living primary of 'pond' .*No such master"):
            await client.ping()
    async with within(), command_client("redis+sentinel://127.0.0.1:1/mill") as client:
        with pytest.raises(UNAVAILABLE, match=r"no sentinel of 127\.0\.0\.1:1 knows"):
            await client.ping()


@pytest.mark.faults
async def test_a_cancel_while_the_sentinels_are_asked_is_heard(sentinels: SentinelSet) -> None:
    """Whatever it waits for; redis-py's own connections swallow some."""
    for num_turns in range(1, 10):
        async with command_client(sentinels.url) as client:
            asking = asyncio.ensure_future(client.ping())
            for _ in range(num_turns):
                await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking


@pytest.mark.faults
async def test_a_subscription_that_hears_nothing_asks_where_it_should_be(
    sentinels: SentinelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A primary that hangs ends no connection; the control is that it stays while all is well."""
    monkeypatch.setattr(roaming, "SILENCE_S", 0.2)
    silent = pubsub_client(sentinels.url)
    async with within(30), silent, silent.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("news")
        await pubsub.get_message(timeout=None)  # that the subscription is confirmed
        heard = asyncio.ensure_future(pubsub.get_message(timeout=None))
        done, _ = await asyncio.wait([heard], timeout=1.0)
        assert not done
        await asyncio.to_thread(sentinels.primary.freeze)
        with pytest.raises(UNAVAILABLE, match="out of service"):
            await heard
