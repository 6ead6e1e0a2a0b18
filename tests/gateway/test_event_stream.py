"""One reader over SSE: live events, pings, leaving, stalling, draining."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

import httpx2
import pytest
from redis.asyncio import Redis

from common.connections import command_client
from common.job_store import JobStore
from common.keys import Keys
from gateway.dialects import native_sse
from gateway.event_stream import EventStream
from gateway.relay import Relay
from gateway.watch import Cursor
from tests.gateway.conftest import MakeGateway
from tests.gateway.doors import submit
from tests.gateway.followers import check_is_log, log_of, numbered, read_stream
from tests.gateway.player import Attempt, Player
from tests.gateway.running import RunningGateway
from tests.support.jobs import start
from tests.support.servers import Server
from tests.support.waiting import eventually, within

BIG = "x" * 100_000
WRITE_TIMEOUT_S = 0.5


@asynccontextmanager
async def client_of(gateway: RunningGateway) -> AsyncIterator[httpx2.AsyncClient]:
    """Give an HTTP client of a gateway."""
    async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        yield client


async def test_events_come_while_they_are_made(
    client: httpx2.AsyncClient, store: JobStore, player: Player
) -> None:
    """Each is there before the next one is written."""
    job_id = await submit(client)
    async with within(), client.sse(f"/v1/jobs/{job_id}/events") as source:
        events = numbered(source)
        seen = [await anext(events)]
        attempt = await player.take(job_id)
        seen.append(await anext(events))
        for text in "abc":
            await attempt.say(text)
            seen.append(await anext(events))
        await attempt.end()
        seen += [event async for event in events]
    assert [n for n, _ in seen] == list(range(6))
    check_is_log(seen, await log_of(store, job_id))


def num_streams() -> int:
    """Return how many streams are in memory, those of other tests too."""
    return sum(type(each) is EventStream for each in gc.get_objects())


async def is_freed(most: int) -> bool:
    """Tell whether no more streams than these are in memory."""
    return num_streams() <= most


async def test_an_ended_stream_leaves_nothing_to_the_collector(
    client: httpx2.AsyncClient, player: Player
) -> None:
    """Full collections are rare: a stream that waited for one would keep its job's events."""
    gc.collect()
    gc.disable()
    before = num_streams()
    try:
        async with within():
            for _ in range(5):
                job_id = await submit(client)
                attempt = await player.take(job_id)
                async with client.sse(f"/v1/jobs/{job_id}/events") as source:
                    events = numbered(source)
                    await anext(events)
                    await attempt.say("a")
                    await attempt.end()
                    assert [event async for event in events]
        # The streams' clock may hold the one it saw last; tasks that end need a turn of the loop.
        await eventually(lambda: is_freed(before + 1))
    finally:
        gc.enable()


async def test_the_headers_forbid_caches_and_buffers(
    client: httpx2.AsyncClient, player: Player
) -> None:
    """No proxy holds the stream back, and the job is named."""
    job_id = await submit(client)
    async with client.stream("GET", f"/v1/jobs/{job_id}/events") as response:
        headers = response.headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-job-id"] == job_id


async def test_a_submit_can_answer_with_the_stream(
    client: httpx2.AsyncClient, store: JobStore, player: Player
) -> None:
    """``stream`` makes one request of two; the stream begins with ``accepted``."""
    body = {"prompt": "Once", "stream": True}
    async with within(), client.sse("/v1/jobs", method="POST", json=body) as source:
        job_id = source.response.headers["x-job-id"]
        events = numbered(source)
        seen = [await anext(events)]
        await (await player.take(job_id)).end()
        seen += [event async for event in events]
    check_is_log(seen, await log_of(store, job_id))


async def test_a_silent_stream_is_pinged_from_the_start(
    make_gateway: MakeGateway, player: Player
) -> None:
    """A queued job's reader sees signs of life, which are no events."""
    async with make_gateway(ping_s=0.1) as gateway, client_of(gateway) as client:
        job_id = await submit(client)
        received = b""
        async with within(), client.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            async for chunk in response.aiter_bytes():
                received += chunk
                if received.count(native_sse.PING) == 3:
                    break
        assert received.count(b"\nid: ") == 1


@pytest.mark.fault(29)
async def test_a_reader_that_leaves_is_forgotten_promptly(
    client: httpx2.AsyncClient, gateway: RunningGateway, player: Player
) -> None:
    """Its cursor goes with it, although the job says nothing; its neighbour stays."""
    job_id = await submit(client)
    async with client.stream("GET", f"/v1/jobs/{job_id}/events"):
        async with client.stream("GET", f"/v1/jobs/{job_id}/events"):
            assert gateway.relay.num_cursors == 2

        async def is_one() -> bool:
            return gateway.relay.num_cursors == 1

        await eventually(is_one)


async def test_a_disconnect_cancels_nothing(
    client: httpx2.AsyncClient, store: JobStore, player: Player
) -> None:
    """The job goes on, and its reader can come back."""
    job_id = await submit(client)
    async with client.stream("GET", f"/v1/jobs/{job_id}/events"):
        attempt = await player.take(job_id)
    await attempt.say("a")
    await attempt.end()
    check_is_log(await read_stream(client, job_id, after=0), await log_of(store, job_id), after=0)


@contextmanager
def stalled_reader(gateway: RunningGateway, job_id: str) -> Iterator[socket.socket]:
    """Ask for a stream over a socket with a tiny buffer, and read nothing."""
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", int(gateway.url.rpartition(":")[2])))
        reader.sendall(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield reader


async def flood(gateway: RunningGateway, attempt: Attempt) -> None:
    """Append more than any buffer takes; return when the stalled reader is cut."""
    for _ in range(2_000):
        await attempt.say(BIG)
        if gateway.services.streams.num_stalled:
            return

    async def is_cut() -> bool:
        return gateway.services.streams.num_stalled > 0

    await eventually(is_cut)


def num_buffered(gateway: RunningGateway) -> int:
    """Return the bytes that wait in the gateway for its readers."""
    transports = [protocol.transport for protocol in gateway.server.server_state.connections]
    return max(transport.get_write_buffer_size() for transport in transports)


@pytest.mark.fault(28)
async def test_a_reader_that_takes_nothing_is_cut(
    make_gateway: MakeGateway, store: JobStore, player: Player
) -> None:
    """Its memory is bounded, its neighbour sees everything, and it can resume where it was."""
    async with (
        make_gateway(write_timeout_s=WRITE_TIMEOUT_S) as gateway,
        client_of(gateway) as client,
    ):
        job_id = await submit(client)
        attempt = await player.take(job_id)
        neighbour = asyncio.create_task(read_stream(client, job_id))
        with stalled_reader(gateway, job_id) as reader:

            async def both_follow() -> bool:
                return gateway.relay.num_cursors == 2

            await eventually(both_follow)
            async with within(30):
                await flood(gateway, attempt)

            async def one_follows() -> bool:
                return gateway.relay.num_cursors == 1

            await eventually(one_follows)
            received = await drained(reader)
        await attempt.end()
        log = await log_of(store, job_id)
        async with within():
            check_is_log(await neighbour, log)
        assert b"event: completed" not in received
        assert not received.endswith(b"0\r\n\r\n")
        check_is_log(await read_stream(client, job_id, after=1), log, after=1)
        assert gateway.services.streams.num_stalled == 1


@pytest.mark.fault(28)
async def test_a_stalled_reader_costs_no_memory(make_gateway: MakeGateway, player: Player) -> None:
    """While it takes nothing, what is buffered for it stays as small as a few events."""
    async with make_gateway(write_timeout_s=60) as gateway, client_of(gateway) as client:
        job_id = await submit(client)
        attempt = await player.take(job_id)
        with stalled_reader(gateway, job_id):
            buffered = []
            for _ in range(100):
                await attempt.say(BIG)
                buffered.append(num_buffered(gateway))
        assert 0 < max(buffered) < 3 * len(BIG)


async def drained(reader: socket.socket) -> bytes:
    """Return what the kernel still holds for a socket, up to the cut."""

    def read() -> bytes:
        data = bytearray()
        try:
            while chunk := reader.recv(65_536):
                data += chunk
        except ConnectionResetError:
            pass
        return bytes(data)

    return await asyncio.to_thread(read)


async def read_to_cut(
    client: httpx2.AsyncClient, job_id: str, once: Callable[[], Awaitable[None]]
) -> bytes:
    """Return what comes up to the cut; after the first event do something, once."""
    received, is_done = b"", False
    try:
        async with within(), client.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            async for chunk in response.aiter_bytes():
                received += chunk
                if b"id: 0" in received and not is_done:
                    is_done = True
                    await once()
    except httpx2.RemoteProtocolError:
        return received
    raise AssertionError("the stream ended in order, without its terminal event")


async def test_a_drain_cuts_streams_with_a_hint(
    make_gateway: MakeGateway, store: JobStore, player: Player
) -> None:
    """The last words are a comment, the end is not clean, and the rest is read elsewhere."""
    async with make_gateway() as gateway, client_of(gateway) as client:
        job_id = await submit(client)

        async def drain() -> None:
            gateway.services.streams.drain()

        received = await read_to_cut(client, job_id, drain)
    assert received.endswith(native_sse.RECONNECT)
    await (await player.take(job_id)).end()
    async with make_gateway() as gateway, client_of(gateway) as client:
        log = await log_of(store, job_id)
        check_is_log(await read_stream(client, job_id, after=0), log, after=0)


@pytest.mark.control(29)
async def test_a_stream_that_does_not_let_go_would_stay(
    client: httpx2.AsyncClient,
    gateway: RunningGateway,
    player: Player,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fault bites: nobody else closes the cursor of a reader that has left."""
    kept: list[Cursor] = []

    async def keep(_relay: Relay, cursor: Cursor) -> None:
        kept.append(cursor)

    async def has_left() -> bool:
        return len(kept) == 2

    with monkeypatch.context() as patched:
        patched.setattr(Relay, "close", keep)
        job_id = await submit(client)
        for _ in range(2):
            async with client.stream("GET", f"/v1/jobs/{job_id}/events"):
                pass
        await eventually(has_left)
        assert gateway.relay.num_cursors == 2
    for cursor in kept:
        await gateway.relay.close(cursor)


@pytest.mark.fault(11)
async def test_a_stream_whose_job_vanishes_says_so_and_is_cut(
    client: httpx2.AsyncClient, redis: Redis, keys: Keys, player: Player
) -> None:
    """The reader sees a problem without an ID, and no clean end."""
    job_id = await submit(client)

    async def vanish() -> None:
        await redis.delete(keys.job(job_id).record, keys.job(job_id).log)

    received = await read_to_cut(client, job_id, vanish)
    assert b"event: problem\ndata: " in received
    assert b"job-not-found" in received


@pytest.mark.fault(11)
async def test_a_stream_outlives_a_restart_of_redis(
    own_server: Server, make_gateway: MakeGateway, keys: Keys
) -> None:
    """The reader's connection stays open through the outage, and the events go on without a gap."""
    async with (
        aclosing(command_client(own_server.url)) as redis,
        make_gateway(redis=own_server.url, default_model="tiny") as gateway,
        client_of(gateway) as client,
    ):
        store = JobStore(redis, keys)
        job_id = await submit(client)
        attempt = Attempt(store, job_id, await start(store, job_id), 2)
        async with within(), client.sse(f"/v1/jobs/{job_id}/events") as source:
            events = numbered(source)
            seen = [await anext(events), await anext(events)]
            await asyncio.to_thread(own_server.stop)
            refused = await client.post("/v1/jobs", json={"prompt": "a"})
            assert refused.status_code == 503
            await asyncio.to_thread(own_server.start)
            await attempt.say("a", "b")
            await attempt.end()
            seen += [event async for event in events]
        check_is_log(seen, await log_of(store, job_id))
