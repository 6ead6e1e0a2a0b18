"""What a connection may cost before there is a request: bounded, and refused in clear words."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import patch

import pytest
from redis.asyncio import Redis

from gateway import http_limits
from gateway.http_limits import MAX_HEAD, MAX_HEADERS, MAX_LINE
from tests.gateway.conftest import MakeGateway
from tests.gateway.player import Player
from tests.gateway.raw import request, wire_to
from tests.gateway.running import RunningGateway
from tests.support.waiting import eventually

HEALTH = request("GET", "/healthz")
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
UPGRADE_KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
LINGER_S = 0.2
BODY_LIMIT = 1024
JOB_ID = re.compile(rb"job_\w+")


@pytest.fixture(autouse=True)
def impatient() -> Any:
    """Refused clients are waited for a moment only."""
    with patch.object(http_limits, "LINGER_S", LINGER_S):
        yield


@pytest.fixture
async def strict(redis: Redis, make_gateway: MakeGateway) -> AsyncIterator[RunningGateway]:
    """A gateway with low limits."""
    settings = {"request_timeout_s": 0.4, "max_sockets": 3, "max_body_bytes": BODY_LIMIT}
    async with make_gateway(**settings, write_timeout_s=0.3) as running:
        yield running
        await until_closed(running)
        assert running.num_faults == 0


async def until_closed(gateway: RunningGateway) -> None:
    """Return when the gateway holds no socket any more."""

    async def is_closed() -> bool:
        return gateway.num_connections == 0

    await eventually(is_closed)


def headers_of(num: int, size: int) -> list[str]:
    """Return so many headers of so many bytes each."""
    return [f"X-{i:04}: ".ljust(size + 1, "v") for i in range(num)]


@pytest.mark.parametrize(
    ("head", "status", "name"),
    [
        (request("GET", "/" + "a" * 100_000), 414, "url-too-long"),
        (b"GET /" + b"a" * 2_000_000, 414, "url-too-long"),
        (request("GET", "/healthz", "X: " + "v" * MAX_LINE), 431, "headers-too-large"),
        (request("GET", "/healthz", *headers_of(MAX_HEADERS, 20)), 431, "headers-too-large"),
        (request("GET", "/healthz", *headers_of(20, 7000)), 431, "headers-too-large"),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"v" * 2_000_000, 431, "headers-too-large"),
        (b"\r\n" * 1_000_000, 431, "headers-too-large"),
        (b"nonsense\r\n\r\n", 400, "invalid-http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "invalid-http"),
        (request("GET", "/v1/ws", *UPGRADE, *headers_of(98, 20)), 431, "headers-too-large"),
        (request("GET", "/v1/ws", *UPGRADE, UPGRADE_KEY, "X: a\r\n b"), 400, "invalid-http"),
    ],
    ids=range(11),
)
async def test_a_head_is_bounded(
    gateway: RunningGateway, head: bytes, status: int, name: str
) -> None:
    """The refusal has a status and a reason, and the connection ends."""
    async with wire_to(gateway) as wire:
        await wire.send(head)
        answer = await wire.answer()
        answer.check_problem(status, name)
        assert answer.headers["connection"] == "close"
        assert await wire.rest() == b""
    await until_closed(gateway)


async def test_what_is_just_inside_is_served(gateway: RunningGateway) -> None:
    """The longest address, the most headers, the longest one: also for a WebSocket."""
    longest = headers_of(1, MAX_LINE)[0]
    query = "?" + "q" * (MAX_LINE - len("/healthz?"))
    heads = [
        request("GET", f"/healthz{query}"),
        request("GET", "/healthz", *headers_of(MAX_HEADERS - 1, 20)),
        request("GET", "/healthz", *headers_of(MAX_HEAD // MAX_LINE - 1, MAX_LINE)),
    ]
    async with wire_to(gateway) as wire:
        for head in heads:
            await wire.send(head)
            assert (await wire.answer()).status == 200
        await wire.send(request("GET", "/v1/ws", *UPGRADE, UPGRADE_KEY, longest))
        assert (await wire.answer()).status == 101


@pytest.mark.parametrize(
    "body",
    [b"zz\r\n", b"5\r\nabc\r\nX", b"-1\r\n", b"ffffffffffffffffff\r\n", b"1\r\n" + b"a" * 10],
)
async def test_a_broken_chunk_is_refused(gateway: RunningGateway, body: bytes) -> None:
    """The job that it should have been is not accepted."""
    async with wire_to(gateway) as wire:
        await wire.send(request("POST", "/v1/jobs", "Transfer-Encoding: chunked", body=body))
        (await wire.answer()).check_problem(400, "invalid-http")
        assert await wire.rest() == b""


@pytest.mark.parametrize(
    "endless",
    [b"1;" + b"x" * 1_000_000, b"0\r\n" + b"X: " + b"v" * 1_000_000, b"0\r\n" + b"X: v\r\n" * 200],
    ids=["extension", "trailer", "trailers"],
)
async def test_what_surrounds_a_body_is_bounded_too(
    gateway: RunningGateway, endless: bytes
) -> None:
    """Chunk extensions and trailers are no way around the limits."""
    async with wire_to(gateway) as wire:
        await wire.send(request("POST", "/v1/jobs", "Transfer-Encoding: chunked", body=endless))
        (await wire.answer()).check_problem(431, "headers-too-large")
        assert await wire.rest() == b""


async def test_contradictory_lengths_are_refused(gateway: RunningGateway) -> None:
    """Two readers of one such request could see two different requests."""
    for headers in (
        ("Content-Length: 2", "Transfer-Encoding: chunked"),
        ("Content-Length: 2", "Content-Length: 3"),
        ("Content-Length: -1",),
        ("Content-Length: 99999999999999999999999",),
    ):
        async with wire_to(gateway) as wire:
            await wire.send(request("POST", "/v1/jobs", *headers, body=b"{}"))
            (await wire.answer()).check_problem(400, "invalid-http")


@pytest.mark.parametrize("how", ["declared", "chunked"])
async def test_a_body_above_the_limit_is_refused_and_not_read(
    strict: RunningGateway, player: Player, how: str
) -> None:
    """Just inside it is read; beyond it the answer comes at once, and a body without end is cut."""
    fitting = b'{"prompt":"%s"}' % (b"a" * (BODY_LIMIT - 13))
    if how == "declared":
        bodies = [request("POST", "/v1/jobs", f"Content-Length: {BODY_LIMIT + 1}"), b"a"]
    else:
        chunk = b"%x\r\n%s\r\n" % (BODY_LIMIT + 1, b"a" * (BODY_LIMIT + 1))
        bodies = [request("POST", "/v1/jobs", "Transfer-Encoding: chunked", body=chunk), b"1\r\na"]
    async with wire_to(strict) as wire:
        head = request("POST", "/v1/jobs", f"Content-Length: {len(fitting)}", body=fitting)
        await wire.send(head)
        assert (await wire.answer()).status == 202
        await wire.send(bodies[0])
        (await wire.answer()).check_problem(413, "body-too-large")
        await wire.send(bodies[1])
        assert await wire.rest() == b""


async def test_a_client_that_ends_its_refused_body_keeps_the_connection(
    strict: RunningGateway,
) -> None:
    """The next request is served, and then the usual patience is over."""
    body = b"a" * (BODY_LIMIT + 1)
    async with wire_to(strict) as wire:
        await wire.send(request("POST", "/v1/jobs", f"Content-Length: {len(body)}"))
        assert (await wire.answer()).status == 413
        await wire.send(body + HEALTH)
        assert (await wire.answer()).status == 200


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /healthz HTT", b"P/1.1\r\nHo"],
        [request("POST", "/v1/jobs", "Content-Length: 100"), b"{"],
        [HEALTH, b"GET /healthz?"],
    ],
    ids=["head", "body", "second"],
)
async def test_a_slow_request_is_refused(strict: RunningGateway, pieces: list[bytes]) -> None:
    """A byte now and then does not keep a connection; the time counts for the whole request."""
    async with wire_to(strict) as wire:

        async def drip() -> None:
            for piece in pieces:
                await wire.send(piece)
            while True:
                await asyncio.sleep(0.05)  # the fault itself: a client that dawdles
                await wire.send(b"a")

        dripping = asyncio.create_task(drip())
        try:
            if pieces[0] == HEALTH:
                assert (await wire.answer()).status == 200
            (await wire.answer()).check_problem(408, "request-too-slow")
            assert await wire.rest() == b""
        finally:
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)


async def test_a_silent_connection_is_closed_without_a_word(strict: RunningGateway) -> None:
    """Browsers open some in advance; there is nothing to refuse."""
    async with wire_to(strict) as wire:
        assert await wire.rest() == b""


async def test_an_idle_connection_is_closed(
    strict: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that pretends that something will come."""
    strict.server.config.timeout_keep_alive = 0  # of the connections that follow
    for rest in (b"", b"\r\n"):
        async with wire_to(strict) as wire:
            await wire.send(HEALTH + rest)
            assert (await wire.answer()).status == 200
            assert await wire.rest() == b""


async def test_a_long_answer_is_no_slow_request(strict: RunningGateway, player: Player) -> None:
    """The clock runs while the client is late, not while we are."""
    body = b'{"prompt":"a","stream":true}'
    async with wire_to(strict) as wire:
        await wire.send(
            request("POST", "/v1/jobs", f"Content-Length: {len(body)}", body=body)
            + b"GET /healthz HT"  # the next one waits for this answer
        )
        await wire.until(b"event: accepted")
        job_id = JOB_ID.search(await wire.until(b"}"))
        assert job_id
        async with wire_to(strict) as late:  # as late as the next one here
            await late.send(b"GET /healthz HT")
            (await late.answer()).check_problem(408, "request-too-slow")
        await (await player.take(job_id[0].decode())).say("still here")
        await wire.until(b"still here")


async def test_pipelined_requests_are_answered_in_order(gateway: RunningGateway) -> None:
    """A hundred in one packet."""
    paths = ["/healthz", "/nothing", "/readyz", "/v1/jobs/x"]
    statuses = [200, 404, 503, 404]
    async with wire_to(gateway) as wire:
        await wire.send(b"".join(request("GET", path) for path in 25 * paths))
        assert [(await wire.answer()).status for _ in range(100)] == 25 * statuses


async def test_nonsense_behind_a_request_does_not_forge_its_answer(
    gateway: RunningGateway, player: Player
) -> None:
    """The connection is cut: a refusal would look like the answer to the first request."""
    body = b'{"prompt":"a"}'
    submit = request("POST", "/v1/jobs", f"Content-Length: {len(body)}", body=body)
    for nonsense in (b"nonsense\r\n\r\n", request("GET", "/v1/ws", *UPGRADE, UPGRADE_KEY)):
        async with wire_to(gateway) as wire:
            await wire.send(submit + nonsense)
            assert await wire.rest() == b""


async def test_sockets_are_bounded(strict: RunningGateway) -> None:
    """One too many is told so and closed; when one leaves, there is room again."""
    async with wire_to(strict) as first, wire_to(strict), wire_to(strict):
        await first.send(HEALTH)
        assert (await first.answer()).status == 200
        async with wire_to(strict) as refused:
            await refused.send(HEALTH)
            answer = await refused.answer()
            answer.check_problem(503, "too-many-sockets")
            assert answer.headers["retry-after"] == "5"
            assert await refused.rest() == b""
        await first.send(HEALTH)
        assert (await first.answer()).status == 200
    await until_closed(strict)
    async with wire_to(strict) as again:
        await again.send(HEALTH)
        assert (await again.answer()).status == 200


async def test_beyond_those_who_are_told_connections_are_cut(
    strict: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood costs no more than so many."""
    monkeypatch.setattr(http_limits, "MAX_LINGERING", 0)
    async with wire_to(strict), wire_to(strict), wire_to(strict), wire_to(strict) as cut:
        assert await cut.rest() == b""


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="needs Linux")
async def test_an_answer_that_nobody_reads_is_dropped(
    strict: RunningGateway, player: Player
) -> None:
    """A connection that waits to be closed does not wait for ever."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", int(strict.url.rpartition(":")[2])))
        wanted = 2_000 * request("GET", "/openapi.json")
        asking = asyncio.create_task(loop.sock_sendall(raw, wanted))

        async def is_held() -> bool:
            return strict.num_connections == 1

        try:
            await eventually(is_held)
            await until_closed(strict)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
