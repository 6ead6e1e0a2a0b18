"""The embedded server, for real."""

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from common.connections import command_client
from common.errors import StartupFailed
from headrace import embedded
from headrace.data_dir import locked
from headrace.supervisor import supervising

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def server(folder: Path) -> AsyncIterator[Redis]:
    """Run an embedded server and give a client of it."""
    with locked(folder) as data_dir:
        async with supervising(print) as supervisor:
            prepared = embedded.prepare(data_dir)
            supervisor.start(prepared.spec)
            await embedded.wait_ready(prepared.url)
            client = command_client(prepared.url)
            yield client
            await client.aclose()


async def test_data_survives_a_restart(tmp_path: Path) -> None:
    """What was written before a stop is there after the next start."""
    async with server(tmp_path) as redis:
        await redis.set("key", "value")
    async with server(tmp_path) as redis:
        assert await redis.get("key") == b"value"


async def test_it_is_durable_and_never_evicts(tmp_path: Path) -> None:
    """The append-only file is on, and a full memory refuses writes."""
    async with server(tmp_path) as redis:
        settings = await redis.config_get("*")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["save"] == ""


async def test_a_short_path_gets_a_socket_of_the_user(tmp_path: Path) -> None:
    """No port is open, and nobody else can use the socket."""
    async with server(tmp_path) as redis:
        assert (await redis.config_get("port"))["port"] == "0"
    assert stat.S_IMODE((tmp_path / "valkey").stat().st_mode) == 0o700


async def test_a_long_path_gets_a_port_with_a_password(tmp_path: Path) -> None:
    """Where the kernel's limit forbids a socket, the loopback port is not open to everyone."""
    folder = tmp_path / ("x" * 100)
    with locked(folder) as data_dir:
        url = embedded.prepare(data_dir).url
    assert url.startswith("redis://:")
    async with server(folder) as redis:
        assert await redis.ping()


async def test_an_odd_path_works(tmp_path: Path) -> None:
    """Spaces and signs in the directory's name are kept apart from the configuration's syntax."""
    async with server(tmp_path / "a b%c#d") as redis:
        assert await redis.ping()


async def test_a_missing_server_is_one_line(tmp_path: Path) -> None:
    """A server that the user named must answer, and its password is not shown."""
    with pytest.raises(StartupFailed, match=r"no Redis answers at redis://:\*\*\*@127.0.0.1:1 "):
        await embedded.require("redis://:secret@127.0.0.1:1")
