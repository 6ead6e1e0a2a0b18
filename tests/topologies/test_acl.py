"""A user with the rights in ``docs/redis.md``: enough for everything, and not one too many."""

import pytest
from redis.exceptions import NoPermissionError

from common.connections import UNAVAILABLE, command_client, lease_client, pubsub_client
from common.job_store import JobStore
from common.keys import Keys
from common.registry import Heartbeat
from common.rights import missing_rights
from headrace import checks
from headrace.checks import Level
from headrace.cli import START_FAILED
from tests.support.acl import PASSWORD, USER, make_user
from tests.support.jobs import MODEL, make_worker, start, submit
from tests.support.programs import Programs
from tests.support.servers import Server
from tests.support.topologies import Cluster, SentinelSet, ask
from tests.support.waiting import within
from tests.topologies.conftest import FleetOn
from tests.topologies.lives import UNDISTURBED, expected_texts, outlive_a_worker

pytestmark = pytest.mark.anyio

SET_INFO = "client|setinfo"  # redis-py asks and takes a no; Redis 7.0 has no such right to give


def url_of(server: Server, keys: Keys, *changes: str) -> str:
    """Make the documented user, with these changes; returns the URL to log in with."""
    make_user(server, keys.prefix, *changes)
    return f"redis://{USER}:{PASSWORD}@127.0.0.1:{server.port}"


async def test_the_whole_stack_works_as_the_documented_user(
    own_server: Server, fleet_on: FleetOn, keys: Keys
) -> None:
    """Jobs run, a worker dies, prompt IDs, cancelling and lists work, the doctor is happy."""
    url = url_of(own_server, keys)
    async with fleet_on(url, own_server.url) as fleet:
        await fleet.start()
        texts = await expected_texts(fleet)
        await outlive_a_worker(fleet, texts)
        client = fleet.gateways[0].client
        job_id = await fleet.submit("Remember me", prompt_id="tale", max_tokens=20)
        await fleet.follow(job_id)
        assert (await fleet.story(job_id)).outline == UNDISTURBED
        assert (await client.prompt("tale")).version == 1
        assert job_id in {job.id for job in (await client.jobs()).data}
        waiting = await fleet.submit("Never mind", max_tokens=2000)
        await fleet.logged(waiting, 5)
        await client.cancel(waiting)
        await fleet.follow(waiting)
        await client.forget_prompt("tale")
        async with command_client(url) as redis:
            found = {check.name: check for check in await checks.run_all(redis, keys)}
        await fleet.check_at_rest()
    assert found["rights"].level is Level.OK
    assert {check.level for check in found.values()} == {Level.OK}
    refused = [entry for entry in map(str, ask(own_server, "ACL", "LOG")) if SET_INFO not in entry]
    assert refused == []


async def test_the_documented_user_may_do_no_more(own_server: Server, keys: Keys) -> None:
    """Other keys, other channels and dangerous commands are refused."""
    async with command_client(url_of(own_server, keys)) as redis:
        for command in (
            ("GET", "another:key"),
            ("PUBLISH", "another:channel", ""),
            ("FLUSHALL",),
            ("CONFIG", "SET", "appendonly", "no"),
            ("KEYS", "*"),
            ("ACL", "LIST"),
        ):
            with pytest.raises(NoPermissionError):
                await redis.execute_command(*command)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ("-xadd", "xadd"),
        ("-xgroup|create", "xgroup|create"),
        ("resetchannels", "publish, subscribe"),
        ("-evalsha", "evalsha"),
    ],
)
async def test_a_right_that_is_missing_is_named(
    own_server: Server, keys: Keys, change: str, missing: str
) -> None:
    """The doctor and the start of every process see the same."""
    async with command_client(url_of(own_server, keys, change)) as redis:
        assert await missing_rights(redis, keys) == missing.split(", ")
        found = {check.name: check for check in await checks.run_all(redis, keys)}
        assert (found["rights"].level, found["rights"].found) == (Level.FAIL, f"lacks {missing}")


@pytest.mark.parametrize("command", ["gateway", "worker"])
async def test_a_user_with_one_right_less_is_a_failed_start(
    own_server: Server, programs: Programs, keys: Keys, command: str
) -> None:
    """One line names what is missing and where the right line stands; no job is touched."""
    url = url_of(own_server, keys, "-xadd")
    settings = {"redis": url, "key_prefix": keys.prefix, "engine": "fake", "port": 0}
    program = await programs.start(command, command, **settings)
    assert await program.wait() == 3
    said = program.errors.splitlines()[-1]
    assert "what Headrace needs: xadd; its ACL line is in docs/redis.md" in said
    assert PASSWORD not in program.errors


async def test_a_wrong_password_is_said_and_not_shown(
    own_server: Server, programs: Programs, keys: Keys
) -> None:
    """The worker ends with one line; one that changes later is waited for."""
    url = url_of(own_server, keys).replace(PASSWORD, "another-secret")
    worker = await programs.start("worker", "worker", redis=url, engine="fake")
    assert await worker.wait() == START_FAILED
    assert "invalid username-password pair" in worker.errors
    assert "another-secret" not in worker.errors


async def _works(url: str, keys: Keys) -> None:
    """Check that the three clients of a process do their work."""
    channel = keys.probe("x")
    async with within(), command_client(url) as client, pubsub_client(url) as subscriber:
        assert await missing_rights(client, keys) == []
        async with subscriber.pubsub() as pubsub:
            await pubsub.subscribe(channel)
            await pubsub.get_message(timeout=None)
            assert await client.publish(channel, "x") is not None
            message = await pubsub.get_message(timeout=None)
            assert message
            assert message["data"] == b"x"
        store = JobStore(client, keys)
        jobs = [await submit(store) for _ in range(6)]
        for job in jobs:
            assert await start(store, job.id)
    with lease_client(url, 5.0) as blocking:
        heartbeat = Heartbeat(blocking, keys, 1.0)
        heartbeat.join(make_worker("w1"))
        assert heartbeat.renew(make_worker("w1"))
        heartbeat.leave("w1", MODEL)


async def test_the_documented_user_is_enough_on_a_cluster(cluster: Cluster, keys: Keys) -> None:
    """On every node; asking for the map of the slots is among its rights."""
    for server in cluster.servers:
        make_user(server, keys.prefix)
    await _works(cluster.url.replace("://", f"://{USER}:{PASSWORD}@"), keys)


@pytest.mark.faults
async def test_sentinels_have_a_login_of_their_own(sentinels: SentinelSet, keys: Keys) -> None:
    """One that may ask for the primary and nothing else; the control is a wrong password."""
    make_user(sentinels.primary, keys.prefix)
    rules = ("on", f">{PASSWORD}", "-@all", "+sentinel|master", "+sentinel|masters")
    for sentinel in sentinels.sentinels:
        ask(sentinel, "ACL", "SETUSER", "asker", "reset", *rules)
    url = sentinels.url.replace("://", f"://{USER}:{PASSWORD}@")
    await _works(f"{url}?sentinel_username=asker&sentinel_password={PASSWORD}", keys)
    wrong = f"{url}?sentinel_username=asker&sentinel_password=wrong"
    async with command_client(wrong) as client:
        with pytest.raises(UNAVAILABLE, match="invalid username-password pair"):
            await client.ping()
