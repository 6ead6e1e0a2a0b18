"""TLS: the whole stack over rediss://, and nothing over one that proves nothing."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from common.connections import command_client, lease_client
from common.keys import Keys
from headrace.addresses import free_port
from tests.support.programs import Programs
from tests.support.servers import STARTABLE, Server
from tests.support.tls import NEEDS_OPENSSL, OPENSSL, Authority, Certificate, tls_door
from tests.support.topologies import Cluster, SentinelSet, running
from tests.topologies.conftest import FleetOn
from tests.topologies.lives import UNDISTURBED, expected_texts, outlive

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not OPENSSL, reason=NEEDS_OPENSSL)]

REDIS = shutil.which("redis-server")
NEEDS_REDIS = pytest.mark.skipif(
    not REDIS, reason="needs redis-server, which has TLS of its own (Debian: redis-server)"
)


@dataclass(frozen=True, slots=True)
class TlsServer:
    """A server that asks clients for a certificate, and what there is to show it."""

    port: int
    authority: Authority
    client: Certificate

    def url(self, host: str = "127.0.0.1", **parameters: Path | str) -> str:
        """Return its URL with the authority, unless another one is given."""
        given = {
            "ssl_ca_certs": self.authority.own.file,
            "ssl_certfile": self.client.file,
            "ssl_keyfile": self.client.key,
        } | parameters
        return f"rediss://{host}:{self.port}?{urlencode({k: v for k, v in given.items() if v})}"


@pytest.fixture(params=["valkey", pytest.param("redis", marks=NEEDS_REDIS)])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TlsServer]:
    """Redis with TLS of its own, and Valkey, whose wheel has none, behind a TLS door."""
    authority = Authority(tmp_path, "authority")
    shown = authority.issue("server", "IP:127.0.0.1")
    client = authority.issue("client", "DNS:headrace")
    async with AsyncExitStack() as stack:
        if request.param == "redis":
            assert REDIS
            port = free_port()
            plain = Server(Path(REDIS), tmp_path, *_tls_flags(port, authority, shown))
            plain.start()
            stack.callback(plain.kill)
        else:
            binary = STARTABLE[0].binary
            assert binary
            plain = Server(binary, tmp_path)
            plain.start()
            stack.callback(plain.kill)
            port = await stack.enter_async_context(
                tls_door(plain.port, shown, asks_for=authority.own.file)
            )
        yield TlsServer(port, authority, client)


def _tls_flags(port: int, authority: Authority, shown: Certificate) -> list[str]:
    door = ("--tls-port", str(port))
    return [*door, *_certificate_flags(authority, shown), "--tls-auth-clients", "yes"]


def _certificate_flags(authority: Authority, shown: Certificate) -> list[str]:
    return [
        *("--tls-cert-file", str(shown.file), "--tls-key-file", str(shown.key)),
        *("--tls-ca-cert-file", str(authority.own.file)),
        *("--tls-auth-clients", "optional"),
    ]


async def test_the_whole_stack_works_over_tls(server: TlsServer, fleet_on: FleetOn) -> None:
    """Commands, subscriptions and the lease thread: a job runs, is followed and leaves nothing."""
    async with fleet_on(server.url()) as fleet:
        await fleet.start(workers=1)
        job_id = await fleet.submit("Who may read this?")
        seen = await fleet.follow(job_id)
        story = await fleet.story(job_id)
        story.check(seen)
        assert story.outline == UNDISTURBED
        await fleet.check_at_rest()


async def test_a_server_that_proves_nothing_is_refused(server: TlsServer, tmp_path: Path) -> None:
    """Another authority, another name (redis-py alone would not look), no client certificate.

    The control is the right URL.
    """
    stranger = Authority(tmp_path, "stranger").own.file
    wrong = [
        (server.url(ssl_ca_certs=stranger), "CERTIFICATE_VERIFY_FAILED"),
        (server.url(ssl_ca_certs=""), "CERTIFICATE_VERIFY_FAILED"),
        (server.url(host="localhost"), "CERTIFICATE_VERIFY_FAILED.*localhost"),
        (server.url(ssl_certfile="", ssl_keyfile=""), "."),  # each server in its own words
    ]
    for url, said in wrong:
        async with command_client(url) as client:
            with pytest.raises(RedisConnectionError, match=said):
                await client.ping()
        with (
            lease_client(url, 1.0) as blocking,
            pytest.raises(RedisConnectionError, match=said),
        ):
            await asyncio.to_thread(blocking.ping)
    async with command_client(server.url()) as client:
        assert await client.ping()
    with lease_client(server.url(), 1.0) as blocking:
        assert await asyncio.to_thread(blocking.ping)
    unnamed = server.url(host="localhost", ssl_check_hostname="no")
    async with command_client(unnamed) as client:
        assert await client.ping()


@NEEDS_REDIS
@pytest.mark.faults
@pytest.mark.parametrize("kind", [Cluster, SentinelSet])
async def test_sentinels_and_clusters_may_have_tls(
    kind: type[Cluster | SentinelSet], fleet_on: FleetOn, keys: Keys, tmp_path: Path
) -> None:
    """Between all of them and to the clients, whoever is the primary by now.

    The control is the URL without the authority.
    """
    assert REDIS
    authority = Authority(tmp_path, "authority")
    flags = _certificate_flags(authority, authority.issue("server", "IP:127.0.0.1"))
    topology = kind(Path(REDIS), tmp_path, flags)
    with running(topology) as url:
        async with command_client(url) as client:
            with pytest.raises(RedisConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.ping()
        trusting = f"{url}?ssl_ca_certs={authority.own.file}"
        async with fleet_on(trusting) as fleet:
            await fleet.start(workers=1)
            texts = await expected_texts(fleet)
            await outlive(fleet, texts, lambda job: topology.lose_primary(keys.job(job).record))
            await fleet.check_at_rest()


async def test_a_worker_says_what_is_wrong_with_the_certificate(
    server: TlsServer, programs: Programs
) -> None:
    """It waits, because the server may be mended, and its log says why."""
    worker = await programs.start("worker", "worker", redis=server.url(host="localhost"))
    line = await worker.says('"waiting_for_redis"')
    assert "CERTIFICATE_VERIFY_FAILED" in line
