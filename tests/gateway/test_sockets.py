"""``/v1/ws``: many jobs on one socket, and an answer to every message."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from common.job_store import JobStore
from common.jobs import JobState
from gateway import sockets
from gateway.doorbell import Doorbell
from gateway.sockets import Socket
from tests.gateway.conftest import MakeGateway
from tests.gateway.doors import submit
from tests.gateway.followers import check_is_log, log_of, read_stream
from tests.gateway.player import Player
from tests.gateway.running import RunningGateway
from tests.gateway.talk import SUBMIT, Talk, check_refusal, talk_to
from tests.support.jobs import make_job
from tests.support.jobs import submit as submit_foreign
from tests.support.waiting import eventually, within

BIG = "x" * 100_000


async def test_a_submit_is_answered_before_its_first_event(
    talk: Talk, store: JobStore, player: Player
) -> None:
    """Then the whole stream follows."""
    answer = await talk.ask({**SUBMIT, "ref": "r"})
    assert (answer["type"], answer["ref"], answer["status"]) == ("submitted", "r", "queued")
    job_id = answer["job"]
    assert (await talk.event()).n == 0
    attempt = await player.take(job_id)
    await attempt.say("a", "b")
    await attempt.end()
    check_is_log(await talk.read_to_end(job_id), await log_of(store, job_id))
    assert talk.order[0] == "submitted"


async def test_a_job_that_ends_at_once_is_still_announced_first(
    talk: Talk, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that are there before the answer was sent wait for it."""
    subscribe = Doorbell.subscribe

    async def end_the_job_meanwhile(self: Doorbell, channel: str) -> None:
        await subscribe(self, channel)
        attempt = await player.take(channel[channel.index("job_") :].partition("}")[0])
        await attempt.end()

    monkeypatch.setattr(Doorbell, "subscribe", end_the_job_meanwhile)
    for _ in range(20):
        talk.order.clear()
        answer = await talk.ask(SUBMIT)
        await talk.read_to_end(answer["job"])
        assert talk.order == ["submitted", "event", "event", "event"]


async def test_many_jobs_share_a_socket(talk: Talk, store: JobStore, player: Player) -> None:
    """Thirty interleaved streams are each complete and in order."""
    jobs = [(await talk.ask(SUBMIT))["job"] for _ in range(30)]
    attempts = [await player.take(job_id) for job_id in jobs]
    for text in "abc":
        await asyncio.gather(*(attempt.say(text) for attempt in attempts))
    await asyncio.gather(*(attempt.end() for attempt in attempts))
    for job_id in jobs:
        check_is_log(await talk.read_to_end(job_id), await log_of(store, job_id))


async def test_a_submit_without_subscription_sends_no_events(
    talk: Talk, gateway: RunningGateway
) -> None:
    """Nothing is followed."""
    answer = await talk.ask({**SUBMIT, "subscribe": False})
    assert answer["type"] == "submitted"
    assert gateway.relay.num_cursors == 0


async def test_a_repeated_submit_is_one_job_and_one_subscription(talk: Talk) -> None:
    """The key counts here as it does over HTTP."""
    message = {**SUBMIT, "idempotency_key": "k"}
    first, second = await talk.ask(message), await talk.ask(message)
    assert first == second
    async with within():
        assert [event.n for event in talk.events or [await talk.event()]] == [0]


async def test_a_subscription_resumes_after_any_event(
    talk: Talk, client: httpx2.AsyncClient, store: JobStore, player: Player
) -> None:
    """``after`` is the cursor; the terminal event ends the subscription, so it can come again."""
    job_id = await submit(client)
    attempt = await player.take(job_id)
    await attempt.say("a", "b", "c")
    await attempt.end()
    log = await log_of(store, job_id)
    for after in range(-1, len(log) - 1):
        talk.events.clear()
        answer = await talk.ask({"type": "subscribe", "job": job_id, "after": after, "ref": "r"})
        assert answer == {"type": "subscribed", "job": job_id, "after": after, "ref": "r"}
        check_is_log(await talk.read_to_end(job_id), log, after)


async def test_a_second_subscription_is_refused(talk: Talk) -> None:
    """The first goes on."""
    job_id = (await talk.ask(SUBMIT))["job"]
    again = await talk.ask({"type": "subscribe", "job": job_id, "ref": "r"})
    check_refusal(again, 409, "already-subscribed")


async def test_an_unsubscribed_job_is_silent(
    talk: Talk, gateway: RunningGateway, player: Player
) -> None:
    """Its events stop, those of others do not, and it can be subscribed again."""
    quiet = (await talk.ask(SUBMIT))["job"]
    other = (await talk.ask(SUBMIT))["job"]
    answer = await talk.ask({"type": "unsubscribe", "job": quiet, "ref": "r"})
    assert answer == {"type": "unsubscribed", "job": quiet, "ref": "r"}
    assert gateway.relay.num_cursors == 1
    await (await player.take(quiet)).end()
    await (await player.take(other)).end()
    await talk.read_to_end(other)
    assert not any(seen.job == quiet and seen.n > 0 for seen in talk.events)
    again = await talk.ask({"type": "unsubscribe", "job": quiet, "ref": "r"})
    check_refusal(again, 404, "not-subscribed")
    await talk.ask({"type": "subscribe", "job": quiet, "after": 0})
    assert [n for n, _ in await talk.read_to_end(quiet)][-2:] == [1, 2]


async def test_a_cancel_is_answered_and_its_event_follows(talk: Talk) -> None:
    """What the cancel met is told."""
    job_id = (await talk.ask(SUBMIT))["job"]
    answer = await talk.ask({"type": "cancel", "job": job_id, "ref": "r"})
    assert answer == {
        "type": "cancelled",
        "job": job_id,
        "status": JobState.CANCELLED,
        "cancelled": "queued",
        "ref": "r",
    }
    assert [event.kind for _, event in await talk.read_to_end(job_id)][-1] == "cancelled"


@pytest.mark.fault(24)
@pytest.mark.parametrize("after", [-2, 5])
async def test_a_cursor_outside_the_log_is_refused(talk: Talk, after: int) -> None:
    """And leaves no subscription behind."""
    job_id = (await talk.ask({**SUBMIT, "subscribe": False}))["job"]
    answer = await talk.ask({"type": "subscribe", "job": job_id, "after": after, "ref": "r"})
    assert answer["error"]["status"] in (400, 409)
    assert answer["ref"] == "r"
    assert (await talk.ask({"type": "subscribe", "job": job_id}))["type"] == "subscribed"


async def test_a_foreign_job_is_a_missing_one(talk: Talk, store: JobStore) -> None:
    """For every message that names one."""
    foreign = (await submit_foreign(store, make_job())).id
    for type_ in ("subscribe", "cancel"):
        answer = await talk.ask({"type": type_, "job": foreign, "ref": "r"})
        check_refusal(answer, 404, "job-not-found")


async def test_subscriptions_are_bounded(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """One socket cannot follow everything; the job itself is accepted all the same."""
    monkeypatch.setattr(sockets, "MAX_SUBSCRIPTIONS", 1)
    await talk.ask(SUBMIT)
    other = await talk.ask({**SUBMIT, "subscribe": False})
    answer = await talk.ask({"type": "subscribe", "job": other["job"], "ref": "r"})
    check_refusal(answer, 429, "too-many-subscriptions")


async def test_a_client_that_leaves_is_forgotten_promptly(
    gateway: RunningGateway, player: Player
) -> None:
    """All its subscriptions go with it."""
    async with talk_to(gateway) as talk:
        for _ in range(5):
            await talk.ask(SUBMIT)
        assert gateway.relay.num_cursors == 5

    async def is_forgotten() -> bool:
        return gateway.relay.num_cursors == 0 and gateway.num_connections == 0

    await eventually(is_forgotten)


@pytest.mark.parametrize("method", ["_answer", "_deliver"])
async def test_a_fault_of_ours_is_told_on_the_socket(
    gateway: RunningGateway, player: Player, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Whichever task fails, the client hears of it before the close, and the code says whose."""

    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Socket, method, fail)
    async with talk_to(gateway) as talk:
        await talk.connection.send(json.dumps(SUBMIT))
        answer = await talk.answer()
        if answer["type"] == "submitted":
            answer = await talk.answer()
        check_refusal(answer, 500, "internal-error", None)
        with pytest.raises(ConnectionClosed) as closed:
            await talk.connection.recv()
    assert closed.value.rcvd
    assert closed.value.rcvd.code == CloseCode.INTERNAL_ERROR


async def test_a_drain_closes_with_the_code_for_a_restart(
    make_gateway: MakeGateway, player: Player
) -> None:
    """A client knows that it should come back; no end of a job is pretended."""
    async with make_gateway() as gateway, talk_to(gateway) as talk:
        await talk.ask(SUBMIT)
        assert (await talk.event()).n == 0
        gateway.services.streams.drain()
        with pytest.raises(ConnectionClosed) as closed:
            async with within():
                await talk.connection.recv()
    assert closed.value.rcvd
    assert closed.value.rcvd.code == CloseCode.SERVICE_RESTART


async def test_a_shutdown_closes_with_the_code_for_a_restart(
    make_gateway: MakeGateway, player: Player
) -> None:
    """Also when the server itself is first to close."""
    async with make_gateway() as gateway, talk_to(gateway) as talk:
        await talk.ask(SUBMIT)
        assert (await talk.event()).n == 0
        gateway.server.stop()
        with pytest.raises(ConnectionClosed) as closed:
            await talk.answer()
    assert closed.value.rcvd
    assert closed.value.rcvd.code == CloseCode.SERVICE_RESTART


@pytest.mark.fault(11)
async def test_a_job_that_vanishes_is_told_by_name(
    talk: Talk, store: JobStore, gateway: RunningGateway
) -> None:
    """The subscription ends with a refusal that names the job; the socket lives on."""
    job_id = (await talk.ask(SUBMIT))["job"]
    names = gateway.services.keys.job(job_id)
    await gateway.services.redis.delete(names.record, names.log)
    answer = await talk.answer()
    check_refusal(answer, 404, "job-not-found", None)
    assert answer["job"] == job_id
    assert (await talk.ask(SUBMIT))["type"] == "submitted"


@pytest.mark.fault(28)
async def test_a_reader_that_takes_nothing_is_cut(
    make_gateway: MakeGateway, store: JobStore, player: Player
) -> None:
    """The connection itself is gone, without an end of the job; the job can be read elsewhere."""
    async with (
        make_gateway(write_timeout_s=0.3) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        job_id = await submit(client)
        attempt = await player.take(job_id)
        async with stalled_socket(gateway, job_id):
            async with within(30):
                while not gateway.services.streams.num_stalled:
                    await attempt.say(BIG)

            async def is_gone() -> bool:
                return gateway.relay.num_cursors == 0 and gateway.num_connections <= 1

            await eventually(is_gone)
        await attempt.end()
        check_is_log(await read_stream(client, job_id), await log_of(store, job_id))
        assert gateway.services.streams.num_stalled == 1


@asynccontextmanager
async def stalled_socket(gateway: RunningGateway, job_id: str) -> AsyncIterator[None]:
    """Subscribe over a socket with a tiny buffer, and never read again."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        address = ("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        await asyncio.get_running_loop().sock_connect(raw, address)
        url = f"ws{gateway.url.removeprefix('http')}/v1/ws"
        connection = await connect(url, sock=raw, proxy=None, max_queue=1, close_timeout=0)
        await connection.send(json.dumps({"type": "subscribe", "job": job_id}))
        connection.transport.pause_reading()
        try:
            yield
        finally:
            connection.transport.abort()
