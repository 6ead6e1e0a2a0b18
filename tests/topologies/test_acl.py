"""A user with the rights in ``docs/redis.md``: enough for everything, and not one too many."""

import re
from pathlib import Path

import pytest
from redis.exceptions import NoPermissionError

from common.connections import command_client
from common.keys import Keys
from common.rights import acl_rules, missing_rights
from headrace import checks
from headrace.checks import Level
from tests.support.programs import Programs
from tests.support.servers import Server
from tests.support.topologies import ask
from tests.topologies.conftest import FleetOn
from tests.topologies.lives import UNDISTURBED, expected_texts, outlive_a_worker

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
PASSWORD = "a-secret"
SET_INFO = "client|setinfo"  # redis-py asks and takes a no; Redis 7.0 has no such right to give


def documented(prefix: str) -> list[str]:
    """Return the rules of the line in the docs, under another prefix than theirs."""
    text = (ROOT / "docs" / "redis.md").read_text()
    line = re.search(r"^user headrace on >PASSWORD (.*)$", text, re.MULTILINE)
    assert line
    assert line[1] == acl_rules("hr")
    return line[1].replace("hr:", f"{prefix}:").split()


def url_of(server: Server, keys: Keys, *changes: str) -> str:
    """Make the documented user, with these changes; returns the URL to log in with."""
    ask(server, "ACL", "SETUSER", "headrace", "reset", "on", f">{PASSWORD}")
    ask(server, "ACL", "SETUSER", "headrace", *documented(keys.prefix), *changes)
    return f"redis://headrace:{PASSWORD}@127.0.0.1:{server.port}"


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
        job_id = await fleet.submit("Remember me", prompt_id="tale")
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
@pytest.mark.parametrize("command", ["gateway", "worker"])
async def test_a_user_with_one_right_less_is_a_failed_start(
    own_server: Server, programs: Programs, keys: Keys, change: str, missing: str, command: str
) -> None:
    """One line names what is missing and where the right line stands; no job is touched."""
    url = url_of(own_server, keys, change)
    settings = {"redis": url, "key_prefix": keys.prefix, "engine": "fake", "port": 0}
    program = await programs.start(command, command, **settings)
    assert await program.wait() == 3
    said = program.errors.splitlines()[-1]
    assert f"what Headrace needs: {missing}; its ACL line is in docs/redis.md" in said
    assert PASSWORD not in program.errors
    async with command_client(url) as redis:
        assert await missing_rights(redis, keys) == missing.split(", ")


async def test_a_wrong_password_is_said_and_not_shown(
    own_server: Server, programs: Programs, keys: Keys
) -> None:
    """The worker waits, because passwords change, and says why."""
    url = url_of(own_server, keys).replace(PASSWORD, "another-secret")
    worker = await programs.start("worker", "worker", redis=url, engine="fake")
    line = await worker.says('"waiting_for_redis"')
    assert "invalid username-password pair" in line
    assert "another-secret" not in worker.errors
