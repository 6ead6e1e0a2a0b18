"""Clients that leave, come back, lie about where they were, or take nothing."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from common.events import ErrorInfo, Failed, Tokens
from common.jobs import FinishReason
from common.names import random_job_id
from tests.faults.checks import check_whole
from tests.faults.monologue import Monologue
from tests.support.fault_proxy import fault_proxy
from tests.support.fleet import Fleet
from tests.support.readers import Reader, SseReader, WsReader
from tests.support.waiting import eventually, within

pytestmark = pytest.mark.anyio

PROMPT = "Who reads the book of the river?"
NUM_TOKENS = 60

NUM_IDLE = 20
BIG = "x" * 8_000
NUM_BIG = 1_000
BUFFER = 4_096
LARGE = 16_000_000
RTT_S = 0.005
MEMORY = 50_000_000
"""To 20 readers that take nothing 160 MB are said, 8 MB to each; the kernel keeps a part of it."""


@pytest.mark.fault(24)
@pytest.mark.parametrize("kind", [SseReader, WsReader])
async def test_a_reader_that_hangs_up_after_every_event(
    fleet: Fleet, kind: type[SseReader | WsReader]
) -> None:
    """On two gateways in turn, and twice before each event; it misses nothing."""
    await fleet.start(gateways=2, workers=1, fake_tokens_per_s=60)
    job_id = await fleet.submit(PROMPT, max_tokens=NUM_TOKENS)
    reader = kind(job_id)
    async with within(30):
        while not reader.is_done:
            for url in fleet.urls:
                await hang_up_at_once(reader, url)
            await reader.read(fleet.urls[len(reader.seen) % 2], num_events=1)
    assert reader.num_connections == len(reader.seen)
    await check_whole(fleet, job_id, PROMPT, reader.seen, max_tokens=NUM_TOKENS)


async def hang_up_at_once(reader: Reader, url: str) -> None:
    """Ask to go on after the last event, and leave before any comes."""
    address = urlsplit(url)
    answer, writer = await asyncio.open_connection(address.hostname, address.port)
    path = f"/v1/jobs/{reader.job_id}/events?after={reader.cursor}"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (await answer.readline()).startswith(b"HTTP/1.1 200 ")
    writer.transport.abort()


@pytest.mark.fault(24)
async def test_a_cursor_that_was_never_given_is_refused(fleet: Fleet) -> None:
    """Of the future, of another job, of no job, or no number: a refusal, and never a stream."""
    await fleet.start(workers=1)
    job_id = await fleet.submit(PROMPT, max_tokens=NUM_TOKENS)
    await fleet.follow(job_id)
    async with httpx2.AsyncClient(base_url=fleet.urls[0], trust_env=False) as client:
        for asked, after, status in [
            (job_id, "9999", 409),
            (job_id, "-2", 400),
            (job_id, "1e3", 400),
            (job_id, "\u0661", 400),
            (job_id, job_id, 400),
            (random_job_id(), "3", 404),
            ("job_of_nobody", "3", 404),
        ]:
            answer = await client.get(f"/v1/jobs/{asked}/events", params={"after": after})
            assert (answer.status_code, after) == (status, after), answer.text
            assert answer.headers["content-type"].startswith("application/problem+json")


@asynccontextmanager
async def idle_readers(fleet: Fleet, job_id: str) -> AsyncIterator[None]:
    """Readers of a job that ask for its stream and take nothing."""
    sockets = [socket.socket() for _ in range(NUM_IDLE)]
    address = urlsplit(fleet.urls[0])
    request = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    try:
        for reader in sockets:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            reader.connect((address.hostname, address.port))
            reader.sendall(request)
        yield
    finally:
        for reader in sockets:
            reader.close()


async def flood(fleet: Fleet) -> tuple[int, float]:
    """Speak to readers that take nothing; returns the memory it cost, and a neighbour's wait."""
    gateway = psutil.Process(fleet.gateways[0].program.pid)
    loud, quiet = await Monologue.begin(fleet), await Monologue.begin(fleet)
    neighbour = SseReader(quiet.job_id)
    waits = []
    async with within(60), idle_readers(fleet, loud.job_id), asyncio.TaskGroup() as group:
        group.create_task(neighbour.read(fleet.urls[0]))
        await neighbour.has(2)
        before = gateway.memory_info().rss
        for number in range(NUM_BIG):
            await loud.say(BIG)
            if number % 25 == 0:
                said_at = time.monotonic()
                await quiet.say("still here")
                await neighbour.has(3 + number // 25)
                waits.append(time.monotonic() - said_at)
        cost = gateway.memory_info().rss - before
        await quiet.end()
    await loud.end()
    return cost, max(waits)


@pytest.mark.fault(28)
async def test_readers_that_take_nothing_cost_nothing(fleet: Fleet) -> None:
    """Neither the gateway's memory nor their neighbour's time."""
    await fleet.start(workers=1)
    cost, wait_s = await flood(fleet)
    assert cost < MEMORY
    assert wait_s < 1


@pytest.mark.control(28)
async def test_written_to_regardless_they_would_cost_memory(fleet: Fleet) -> None:
    """The fault bites: without a look at what a reader takes, all of it piles up."""
    await fleet.start(workers=1, changes="hoards")
    cost, _ = await flood(fleet)
    assert cost > MEMORY


@pytest.mark.fault(28)
@pytest.mark.faults
async def test_a_reader_of_a_byte_at_a_time_gets_everything(fleet: Fleet) -> None:
    """A slow reader that moves is not cut, whatever it takes for the whole answer."""
    await fleet.start(workers=1, write_timeout_s=2)
    job = await Monologue.begin(fleet)
    address = urlsplit(fleet.urls[0])
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=16)
    path = f"/v1/jobs/{job.job_id}/events"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    received = b""
    async with within(40), asyncio.TaskGroup() as group:
        speaking = group.create_task(speak(job, 20))
        while byte := await reader.read(1):
            received += byte
            if not speaking.done():
                await asyncio.sleep(0.01)
    assert received.endswith(b"0\r\n\r\n")
    assert received.count(b"event: completed") == 1
    writer.close()


async def speak(job: Monologue, times: int) -> None:
    """Say so much, then end."""
    for _ in range(times):
        await job.say("a word ")
    await job.end()


@pytest.mark.fault(28)
@pytest.mark.parametrize("kind", [SseReader, pytest.param(WsReader, marks=pytest.mark.faults)])
async def test_a_reader_that_vanishes_without_a_word_is_forgotten(
    fleet: Fleet, kind: type[SseReader | WsReader]
) -> None:
    """No FIN, no answer to a ping: the write timeout ends it, and the gateway holds no stream."""
    await fleet.start(workers=1, write_timeout_s=1, ping_s=0.5)
    port = urlsplit(fleet.urls[0]).port
    assert port
    async with fault_proxy(port) as network:
        job = await Monologue.begin(fleet)
        reader = kind(job.job_id)
        reading = asyncio.create_task(reader.read(f"http://127.0.0.1:{network.port}"))
        await reader.has(2)
        network.swallow()

        async def is_forgotten() -> bool:
            await job.say(20 * BIG)
            return await fleet.metrics("headrace_stream_subscribers") == [0]

        await eventually(is_forgotten, 30)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    await job.end()


async def read_the_last_frame(fleet: Fleet) -> bytes:
    """Return what a slow reader, far away, gets of a job whose end is larger than all buffers."""
    job = await Monologue.begin(fleet)
    port = urlsplit(fleet.urls[0]).port
    assert port
    async with fault_proxy(port) as network:
        network.delay_s = RTT_S
        reader, writer = await asyncio.open_connection("127.0.0.1", network.port, limit=1_024)
        path = f"/v1/jobs/{job.job_id}/events"
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        received = await reader.readuntil(b"started")
        error = ErrorInfo("engine-error", "x" * LARGE)
        await job.end(Failed(FinishReason.ERROR, error=error))
        with suppress(ConnectionResetError):
            async with within(30):
                while chunk := await reader.read(LARGE):
                    received += chunk
        writer.transport.abort()
    return received


@pytest.mark.fault(30)
async def test_a_last_frame_larger_than_all_buffers_arrives(fleet: Fleet) -> None:
    """The connection is closed after it, and not before its last byte has been sent."""
    await fleet.start(workers=1)
    received = await read_the_last_frame(fleet)
    assert received.count(b"x") >= LARGE
    assert received.endswith(b"0\r\n\r\n")


@pytest.mark.control(30)
async def test_a_connection_closed_in_a_hurry_would_cut_it(fleet: Fleet) -> None:
    """The fault bites: what is still buffered goes with the connection."""
    await fleet.start(workers=1, changes="hurries")
    assert (await read_the_last_frame(fleet)).count(b"x") < LARGE


NASTY = (
    "\r\ndata: {}\r\n\r\nid: 9\nevent: completed\n\n\x00\u2028\ufeff:ping\n\n"
    + "\u00e9\u6c34\U0001f30a" * 900
)


@pytest.mark.fault(31)
@pytest.mark.parametrize("kind", [SseReader, WsReader])
async def test_no_text_of_a_job_forges_an_event(
    fleet: Fleet, kind: type[SseReader | WsReader]
) -> None:
    """Line breaks, NUL, field names and long tokens of several bytes come as they were said."""
    await fleet.start(workers=1)
    job_id = await fleet.submit(NASTY, max_tokens=NUM_TOKENS, echo=True)
    reader = kind(job_id)
    async with within():
        await reader.read(fleet.urls[0])
    echoed = "".join(e.text for _, e in reader.seen if isinstance(e, Tokens) and e.echo)
    assert echoed == NASTY
    (await fleet.story(job_id)).check(reader.seen)
    await fleet.check_at_rest()
