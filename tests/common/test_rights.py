"""The rights that Headrace asks for are those that it uses."""

import re
from importlib import resources

import pytest
from redis.asyncio import Redis

from common.keys import Keys
from common.rights import acl_rules, missing_rights, require_rights

pytestmark = pytest.mark.anyio


def test_every_command_of_the_scripts_is_granted() -> None:
    """With its subcommand, where the rights are given by subcommand."""
    granted = set(re.findall(r"\+(\S+)", acl_rules("hr")))
    used = set()
    for file in resources.files("common").joinpath("lua").iterdir():
        for command, word in re.findall(r"redis\.p?call\('(\w+)'(?:, '(\w+)')?", file.read_text()):
            name = command.lower()
            used.add(f"{name}|{word.lower()}" if name in ("xgroup", "xinfo") else name)
    assert len(used) > 20
    assert used <= granted


def test_nothing_dangerous_is_granted() -> None:
    """No command that reads or changes what is not Headrace's."""
    granted = set(re.findall(r"\+(\S+)", acl_rules("hr")))
    dangerous = {"acl", "cluster", "config", "debug", "flushall", "flushdb", "keys"}
    assert not granted & (dangerous | {"config|set", "eval_ro", "monitor", "replicaof", "shutdown"})


async def test_a_user_who_may_everything_lacks_nothing(redis: Redis, keys: Keys) -> None:
    """The check itself changes nothing: the fixture would find a key."""
    assert await missing_rights(redis, keys) == []
    await require_rights(redis, keys)
