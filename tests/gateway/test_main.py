"""The process: how it starts, how it refuses to, how it stops."""

import asyncio
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from common.api_keys import ApiKeyStore, Scope
from common.errors import StartupFailed
from common.keys import Keys
from common.settings import Settings
from gateway.dialects import native_sse
from gateway.main import listen, refuse_open_door
from tests.gateway.doors import submit
from tests.gateway.player import Player
from tests.support.servers import Server
from tests.support.waiting import eventually, within

START_FAILED = 3


NO_DOORBELL = ("--user", "default", "on", "nopass", "~*", "&*", "+@all", "-subscribe")


@asynccontextmanager
async def gateway_process(**settings: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run ``headrace gateway`` on a free port; give the process and its URL."""
    environment = {f"HEADRACE_{name.upper()}": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headrace", "gateway", "--port", "0"),
        env={"PATH": "", "HOME": "/nonexistent", **environment},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    try:
        async with within():
            while not (found := re.search(rb"http://[0-9.:]+", await process.stderr.readline())):
                assert not process.stderr.at_eof(), "it ended before it listened"
        yield process, found.group().decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def settings_for(host: str, **others: Any) -> Settings:
    """Return the defaults with another host."""
    return Settings(**{"host": host, **others})


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
async def test_an_open_door_is_refused(host: str, redis: Redis, keys: Keys) -> None:
    """Without API keys nobody else may reach the gateway, unless the user insists."""
    api_keys = ApiKeyStore(redis, keys)
    with pytest.raises(StartupFailed, match="--insecure") as refusal:
        await refuse_open_door(settings_for(host), api_keys)
    assert "\n" not in str(refusal.value)
    await refuse_open_door(settings_for(host, insecure=True), api_keys)
    await api_keys.create("acme", (Scope.READ,))
    await refuse_open_door(settings_for(host), api_keys)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
async def test_loopback_is_no_open_door(host: str, redis: Redis, keys: Keys) -> None:
    """The default needs no flag."""
    await refuse_open_door(settings_for(host), ApiKeyStore(redis, keys))


def test_a_port_in_use_is_one_line() -> None:
    """It names the address and the flag."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartupFailed, match=f"127.0.0.1:{port}: .* try --port") as refusal:
            listen("127.0.0.1", port)
    assert "\n" not in str(refusal.value)


def test_a_host_that_does_not_exist_is_one_line() -> None:
    """No traceback for a typing error."""
    with pytest.raises(StartupFailed, match=r"cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 0)


async def test_the_process_refuses_with_its_own_exit_code(redis_url: str, keys: Keys) -> None:
    """A supervisor can tell that a restart would not help."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headrace", "gateway", "--host", "0.0.0.0", "--port", "0"),
        env={
            "PATH": "",
            "HOME": "/nonexistent",
            "HEADRACE_REDIS": redis_url,
            "HEADRACE_KEY_PREFIX": keys.prefix,
        },
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == START_FAILED
    assert errors.count(b"\n") == 1, errors.decode()
    assert b"--insecure" in errors


@pytest.mark.fault(22)
async def test_it_starts_without_redis_and_comes_up_with_it(own_server: Server, keys: Keys) -> None:
    """Nobody has to start things in the right order."""
    await asyncio.to_thread(own_server.stop)
    async with (
        gateway_process(redis=own_server.url, key_prefix=keys.prefix, default_model="m") as (
            _,
            url,
        ),
        httpx2.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).json()["checks"]["redis"] is False
        assert (await client.post("/v1/jobs", json={"prompt": "a"})).status_code == 503
        await asyncio.to_thread(own_server.start)

        async def is_up() -> bool:
            checks = (await client.get("/readyz")).json()["checks"]
            return bool(checks["redis"] and checks["relay"])

        await eventually(is_up)
        await submit(client)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--maxmemory-policy", "allkeys-lru"), b"allkeys-lru"),
        (("--requirepass", "secret"), b"refuses the login"),
        (NO_DOORBELL, b"refuses this user"),
    ],
)
async def test_a_server_that_comes_late_is_looked_at_too(
    own_server: Server, keys: Keys, flags: tuple[str, ...], told: bytes
) -> None:
    """One that is unfit ends the gateway that waited for it, as it would have at the start."""
    await asyncio.to_thread(own_server.stop)
    settings = {"redis": own_server.url, "key_prefix": keys.prefix}
    async with gateway_process(**settings) as (process, _):
        await asyncio.to_thread(own_server.start, *flags)
        async with within():
            _, errors = await process.communicate()
    assert process.returncode == START_FAILED
    assert told in errors.splitlines()[-1]
    assert b"Traceback" not in errors


@pytest.mark.fault(23)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(
    redis_url: str, keys: Keys, player: Player, number: signal.Signals
) -> None:
    """The open stream gets its hint and no end, the process ends by itself and in time."""
    received = b""
    async with (
        gateway_process(redis=redis_url, key_prefix=keys.prefix) as (process, url),
        httpx2.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        job_id = await submit(client)
        with pytest.raises(httpx2.RemoteProtocolError):  # noqa: PT012 - the stream is the statement
            async with within(), client.stream("GET", f"/v1/jobs/{job_id}/events") as response:
                async for chunk in response.aiter_bytes():
                    received += chunk
                    if b"id: 0" in received and not received.endswith(native_sse.RECONNECT):
                        process.send_signal(number)
        async with within():
            assert await process.wait() == 0
    assert received.endswith(native_sse.RECONNECT)
