"""The client of a cluster: routing, redirections, dead nodes, and no write sent twice."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from common import connections
from common.connections import (
    UNAVAILABLE,
    command_client,
    every_server,
    lease_client,
    pubsub_client,
)
from common.job_store import Append, JobStore, Outcome
from common.keys import Keys
from headrace import checks
from headrace.checks import Level
from tests.support.jobs import make_payloads, start, submit
from tests.support.servers import STARTABLE, Backend, Server
from tests.support.topologies import Cluster, ask, running
from tests.support.waiting import eventually, within

pytestmark = pytest.mark.anyio

TIMEOUT_S = 0.4
NAMES = [f"key-{number}" for number in range(30)]


@pytest.fixture(scope="module", params=STARTABLE, ids=str)
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A cluster that no test breaks."""
    backend: Backend = request.param
    assert backend.binary
    cluster = Cluster(backend.binary, tmp_path_factory.mktemp("cluster"))
    with running(cluster):
        yield cluster


async def test_every_command_goes_where_its_key_is(shared: Cluster) -> None:
    """Alone, in a pipeline over all shards, and in a transaction of one slot."""
    async with within(), command_client(shared.url) as client:
        assert [await client.set(name, name) for name in NAMES] == [True] * len(NAMES)
        async with client.pipeline(transaction=False) as pipeline:
            for name in NAMES:
                pipeline.get(name)
            pipeline.time()
            *values, time = await pipeline.execute()
        assert values == [name.encode() for name in NAMES]
        assert len(time) == 2
        async with client.pipeline(transaction=True) as pipeline:
            pipeline.hset("{a}:1", "field", "1")
            pipeline.hgetall("{a}:1")
            pipeline.delete("{a}:1")
            assert await pipeline.execute() == [1, {b"field": b"1"}, 1]
        assert len(await every_server(client)) == 3


async def test_errors_keep_their_place(shared: Cluster) -> None:
    """Raised, or among the replies, whichever the caller wants; other replies are not lost."""
    async with within(), command_client(shared.url) as client:
        for wanted in (True, False):
            async with client.pipeline(transaction=wanted) as pipeline:
                pipeline.set("{a}:text", "x", ex=60)
                pipeline.hget("{a}:text", "field")
                pipeline.get("{a}:text")
                replies = await pipeline.execute(raise_on_error=False)
            assert (replies[0], replies[2]) == (True, b"x")
            assert isinstance(replies[1], ResponseError)
            async with client.pipeline(transaction=wanted) as pipeline:
                pipeline.hget("{a}:text", "field")
                with pytest.raises(ResponseError, match="WRONGTYPE"):
                    await pipeline.execute()


async def test_a_node_that_lost_the_scripts_gets_them_again(shared: Cluster, keys: Keys) -> None:
    """In a pipeline over all shards, of which one has forgotten everything."""
    async with within(), command_client(shared.url) as client:
        store = JobStore(client, keys)
        jobs = [await submit(store) for _ in range(12)]
        epochs = [await start(store, job.id) for job in jobs]
        ask(shared.owner(keys.job(jobs[0].id).record), "SCRIPT", "FLUSH")
        appends = [
            Append(job.id, epoch, 2, make_payloads("a", "b"))
            for job, epoch in zip(jobs, epochs, strict=True)
        ]
        assert await store.append(appends) == [(Outcome.OK, 4)] * len(jobs)
        snapshot = await store.snapshot(jobs[0].id)
        assert snapshot
        assert len(snapshot.events) == 4
        assert snapshot.read_ms >= snapshot.record.created_ms


async def test_the_doctor_looks_at_every_primary(shared: Cluster, keys: Keys) -> None:
    """One of them that evicts keys is found."""
    async with within(), command_client(shared.url) as client:
        found = {check.name: check.level for check in await checks.run_all(client, keys)}
        assert found["eviction"] is Level.OK
        ask(shared.servers[1], "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        found = {check.name: check.level for check in await checks.run_all(client, keys)}
        ask(shared.servers[1], "CONFIG", "SET", "maxmemory-policy", "noeviction")
        assert found["eviction"] is Level.FAIL


class Move:
    """The move of one slot to another primary, step by step."""

    def __init__(self, cluster: Cluster, key: str) -> None:
        self._slot = key_slot(key.encode())
        self.old = cluster.owner(key)
        self.new = next(server for server in cluster.servers[:3] if server is not self.old)
        self._everybody = cluster.servers[:3]
        self._ids = [ask(server, "CLUSTER", "MYID").decode() for server in (self.old, self.new)]

    def begin(self) -> None:
        """From now on keys that are not there are asked for at the new one."""
        ask(self.new, "CLUSTER", "SETSLOT", self._slot, "IMPORTING", self._ids[0])
        ask(self.old, "CLUSTER", "SETSLOT", self._slot, "MIGRATING", self._ids[1])

    def carry(self, *names: str) -> None:
        """Move these keys."""
        place = ("127.0.0.1", self.new.port)
        ask(self.old, "MIGRATE", *place, "", 0, 2000, "KEYS", *names)

    def end(self) -> None:
        """The slot belongs to the new one."""
        for server in (self.new, *self._everybody):
            ask(server, "CLUSTER", "SETSLOT", self._slot, "NODE", self._ids[1])


async def _use(client: Redis, blocking: SyncRedis, name: str) -> list[Any]:
    """Count the key up in every way there is."""
    replies = [await client.incr(name)]
    for transaction in (True, False):
        async with client.pipeline(transaction=transaction) as pipeline:
            pipeline.incr(name)
            pipeline.incr(name)
            replies += await pipeline.execute()
    script = "return redis.call('INCR', KEYS[1])"
    replies.append(await client.eval(script, 1, name))  # type: ignore[misc]
    replies.append(blocking.incr(name))
    with blocking.pipeline(transaction=True) as pipeline:
        pipeline.incr(name)
        replies += pipeline.execute()
    return replies


@pytest.mark.fault(20)
async def test_a_slot_that_moves_is_followed(shared: Cluster) -> None:
    """While it moves (ASK) and afterwards (MOVED), with no command lost and none sent twice."""
    name = "traveller"
    move = Move(shared, name)
    async with within(), command_client(shared.url) as client:
        with lease_client(shared.url, 5.0) as blocking:
            assert await _use(client, blocking, name) == [1, 2, 3, 4, 5, 6, 7, 8]
            move.begin()
            move.carry(name)
            assert await client.incr(name) == 9
            async with client.pipeline(transaction=True) as pipeline:
                pipeline.incr(name)
                pipeline.incr(name)
                assert await pipeline.execute() == [10, 11]
            async with client.pipeline(transaction=False) as pipeline:
                pipeline.incr(name)
                assert await pipeline.execute() == [12]
            with pytest.raises(UNAVAILABLE):  # the lease thread tries again later
                blocking.incr(name)
            move.end()
            assert await _use(client, blocking, name) == [13, 14, 15, 16, 17, 18, 19, 20]


async def test_a_write_without_a_reply_is_not_sent_again(
    shared: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets the error and decides; the control is that it was applied, once."""
    monkeypatch.setattr(connections, "COMMAND_TIMEOUT_S", TIMEOUT_S)
    async with within(), command_client(shared.url) as client:
        await client.set("count", 0)
        owner = shared.owner("count")
        owner.freeze()
        with pytest.raises(UNAVAILABLE):
            await client.incr("count")
        owner.thaw()

        async def is_back() -> bool:
            try:
                return bool(await client.get("count"))
            except UNAVAILABLE:
                return False

        await eventually(is_back)
        assert await client.get("count") == b"1"


async def test_a_cancelled_command_leaves_the_connections_usable(shared: Cluster) -> None:
    """However many are cancelled in mid-command, no later one gets another one's reply."""
    async with within(), command_client(shared.url, max_connections=2) as client:
        for name in NAMES:
            await client.set(name, name)
        for delay_s in (0.0, 0.0001, 0.0005, 0.001):
            tasks = [asyncio.ensure_future(client.get(name)) for name in NAMES]
            await asyncio.sleep(delay_s)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert [await client.get(name) for name in NAMES] == [name.encode() for name in NAMES]


async def test_a_cluster_that_is_none_is_said(own_server: Server) -> None:
    """A URL for a cluster with one server behind it is an error with a reason."""
    url = f"redis+cluster://127.0.0.1:{own_server.port}"
    async with within(), command_client(url) as client:
        with pytest.raises(ResponseError, match="cluster support disabled"):
            await client.ping()


async def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    """The reason of the last node is told."""
    async with within(), command_client("redis+cluster://127.0.0.1:1") as client:
        with pytest.raises(UNAVAILABLE, match=r"none of 1 cluster nodes answers: .*Connect"):
            await client.ping()
    with (
        lease_client("redis+cluster://127.0.0.1:1", 1.0) as blocking,
        pytest.raises(UNAVAILABLE, match="none of 1 cluster nodes answers"),
    ):
        blocking.ping()


@pytest.mark.faults
async def test_a_subscription_goes_to_another_node_when_its_node_dies(cluster: Cluster) -> None:
    """A message reaches it on any node; the control is that it was on the one that died."""
    async with within(30), pubsub_client(cluster.url) as client:
        async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe("news")
            assert pubsub.connection
            old = next(s for s in cluster.servers if s.port == pubsub.connection.port)
            await pubsub.get_message(timeout=None)  # that the subscription is confirmed
            old.kill()
            with pytest.raises(UNAVAILABLE):
                await pubsub.get_message(timeout=None)
        async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe("news")
            assert pubsub.connection
            assert pubsub.connection.port != old.port
            sender = next(s for s in cluster.servers if s.is_running)

            async def arrives() -> bool:
                ask(sender, "PUBLISH", "news", "it works")
                message = await pubsub.get_message(timeout=0.1)
                return bool(message and message["data"] == b"it works")

            await eventually(arrives)
