"""``/v1/ws``: many jobs on one socket, and an answer to every message."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from common.job_store import JobStore
from common.jobs import JobState
from gateway import sockets
from gateway.doorbell import Doorbell
from gateway.sockets import Socket
from tests.gateway.conftest import MakeGateway
from tests.gateway.doors import submit
from tests.gateway.followers import EventMessage, check_is_log, decode_message, log_of, read_stream
from tests.gateway.player import Player
from tests.gateway.running import RunningGateway
from tests.support.jobs import make_job
from tests.support.jobs import submit as submit_foreign
from tests.support.waiting import eventually, within

MISSING = "job_" + "0" * 32
SUBMIT = {"type": "submit", "job": {"prompt": "Once"}}
BIG = "x" * 100_000


class Talk:
    """A socket to the gateway that reads events and answers apart."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.events: list[EventMessage] = []
        self.order: list[str] = []  # of all messages: their types

    async def ask(self, message: object) -> dict[str, Any]:
        """Send a message; return its answer, keeping the events that come before it."""
        await self.connection.send(json.dumps(message))
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """Return the next message that is no event."""
        while (message := await self._receive())["type"] == "event":
            pass
        return message

    async def event(self) -> EventMessage:
        """Return the next event; fails on anything else."""
        message = await self._receive()
        assert message["type"] == "event", message
        return self.events[-1]

    async def read_to_end(self, job_id: str) -> list[tuple[int, Any]]:
        """Read until the job's terminal event; return all events of the job so far."""
        while not any(seen.job == job_id and hasattr(seen.event, "usage") for seen in self.events):
            await self.event()
        return [(seen.n, seen.event) for seen in self.events if seen.job == job_id]

    async def _receive(self) -> dict[str, Any]:
        async with within():
            data = await self.connection.recv()
        message: dict[str, Any] = json.loads(data)
        self.order.append(message["type"])
        if message["type"] == "event":
            assert isinstance(data, str)
            self.events.append(decode_message(data))
        return message


@asynccontextmanager
async def talk_to(gateway: RunningGateway) -> AsyncIterator[Talk]:
    """Open a socket."""
    url = f"ws{gateway.url.removeprefix('http')}/v1/ws"
    async with connect(url, proxy=None, max_size=None) as connection:
        yield Talk(connection)


@pytest.fixture
async def talk(gateway: RunningGateway, player: Player) -> AsyncIterator[Talk]:
    """A socket to the gateway of the test."""
    async with talk_to(gateway) as opened:
        yield opened


def check_refusal(answer: dict[str, Any], status: int, name: str, ref: str | None = "r") -> None:
    """Fail unless the answer refuses in these words."""
    assert answer["type"] == "error", answer
    assert answer.get("ref") == ref
    assert answer["error"]["type"] == f"urn:headrace:problem:{name}"
    assert answer["error"]["status"] == status
    assert answer["error"]["detail"]


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


REFUSED: list[tuple[str, str | None, int, str]] = [
    ("{", None, 400, "invalid-json"),
    ("", None, 400, "invalid-json"),
    ("[" * 100_000, None, 400, "invalid-request"),
    ("[]", None, 400, "invalid-request"),
    ('{"ref": "r"}', "r", 400, "invalid-request"),
    ('{"type": "dance", "ref": "r"}', "r", 400, "invalid-request"),
    ('{"type": "cancel", "job": "x", "bogus": 1, "ref": "r"}', "r", 400, "invalid-request"),
    ('{"type": "cancel", "job": 1, "ref": "r"}', "r", 400, "invalid-request"),
    ('{"type": "cancel", "job": "x", "ref": 1}', None, 400, "invalid-request"),
    ('{"type": "cancel", "bogus": 1, ', None, 400, "invalid-request"),
    ('{"type": "cancel", "job": "x", "ref": "r"}', "r", 404, "job-not-found"),
    (f'{{"type": "cancel", "job": "{MISSING}", "ref": "r"}}', "r", 404, "job-not-found"),
    (f'{{"type": "subscribe", "job": "{MISSING}", "ref": "r"}}', "r", 404, "job-not-found"),
    (f'{{"type": "unsubscribe", "job": "{MISSING}", "ref": "r"}}', "r", 404, "not-subscribed"),
    ('{"type": "submit", "job": {}, "ref": "r"}', "r", 400, "invalid-request"),
    ('{"type": "submit", "job": {"prompt": "a", "x": 1}, "ref": "r"}', "r", 400, "invalid-request"),
    (
        '{"type": "submit", "job": {"prompt": "a"}, "idempotency_key": "", "ref": "r"}',
        "r", 400, "invalid-idempotency-key",
    ),
    (
        '{"type": "submit", "job": {"prompt": "a", "model": "no"}, "ref": "r"}',
        "r", 404, "model-not-found",
    ),
]  # fmt: skip


async def test_a_wrong_message_is_refused_by_name(talk: Talk) -> None:
    """The refusal carries the ``ref`` wherever one can be read, and the socket lives on."""
    for text, ref, status, name in REFUSED:
        await talk.connection.send(text)
        check_refusal(await talk.answer(), status, name, ref)
    assert (await talk.ask({**SUBMIT, "subscribe": False}))["type"] == "submitted"


async def test_a_binary_message_is_refused(talk: Talk) -> None:
    """It has an answer like any other."""
    await talk.connection.send(json.dumps(SUBMIT).encode())
    check_refusal(await talk.answer(), 400, "binary-message", None)


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


_words = st.sampled_from(["submit", "subscribe", "unsubscribe", "cancel", "type", "job", "ref"])
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=4),
    max_leaves=5,
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(max_size=30) | _json.map(json.dumps))
async def test_every_text_has_an_answer(talk: Talk, text: str) -> None:
    """Nothing that a client says kills its socket."""
    await talk.connection.send(text)
    answer = await talk.answer()
    assert answer["type"] == "submitted" or answer["error"]["status"] < 500


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
