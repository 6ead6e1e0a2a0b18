"""Redis Sentinel: the primary dies, hangs or was not replicated; everything goes on."""

import asyncio

import pytest

from common.connections import UNAVAILABLE, command_client, pubsub_client
from common.keys import Keys
from common.topology import roaming
from tests.support.fleet import NUM_TOKENS
from tests.support.topologies import SentinelSet, ask, is_synced, until
from tests.support.waiting import within
from tests.topologies.conftest import FleetOn
from tests.topologies.lives import (
    LIFE_S,
    PROMPTS,
    expected_texts,
    outlive,
    outlive_a_worker,
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
            sentinels.primary.kill()
            sentinels.wait_failover()

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
        lost: list[int] = []

        def strike(job_id: str) -> None:
            primary, replica = sentinels.primary, sentinels.replica
            log = keys.job(job_id).log
            ask(primary, "ACL", "SETUSER", "default", "-psync", "-sync")
            ask(primary, "CLIENT", "KILL", "TYPE", "replica")
            had = ask(replica, "XLEN", log)
            until(lambda: ask(primary, "XLEN", log) > had + 20, "the primary is ahead")
            had = ask(replica, "XLEN", log)
            lost.append(ask(primary, "XLEN", log) - had)
            primary.kill()
            sentinels.wait_failover()

        await outlive(fleet, texts, strike)
        assert lost[0] > 10, "the fault has not bitten"
        await fleet.check_at_rest()


@pytest.mark.faults
async def test_a_primary_that_hangs_is_left(sentinels: SentinelSet, fleet_on: FleetOn) -> None:
    """Connections stay open and nothing answers; when it wakes up, nobody is there any more."""
    async with fleet_on(sentinels.url) as fleet:
        await fleet.start()
        texts = await expected_texts(fleet)

        def strike(_job_id: str) -> None:
            sentinels.primary.freeze()
            sentinels.wait_failover()

        await outlive(fleet, texts, strike)
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
