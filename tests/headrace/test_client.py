"""The client against a gateway that cuts, refuses and lies."""

import json
from contextlib import aclosing

import pytest

from common.errors import Problem
from common.events import Event
from common.jobs import JobState
from gateway.dialects.native_sse import broken
from headrace.client import Client
from headrace.errors import ApiError, ProtocolError, StreamCut, Unreachable
from headrace.resume import Patience
from headrace.views import JobRequest
from tests.headrace.fake_gateway import (
    EVENTS,
    JOB,
    Reply,
    events,
    fake_gateway,
    json_reply,
    problem,
    stream,
)

pytestmark = pytest.mark.anyio

HASTE = Patience(tries=3, first_s=0.001, longest_s=0.002)
SUBMITTED = {"id": JOB, "status": "queued", "model": "m", "url": "/", "new": "field"}


async def followed(
    *replies: Reply, after: int = -1, notices: list[str] | None = None
) -> tuple[list[tuple[int, Event]], list[str]]:
    """Return what a follower yields, and the Last-Event-ID of its requests."""
    async with fake_gateway(*replies) as gateway, Client(gateway.url, patience=HASTE) as client:
        notice = None if notices is None else notices.append
        async with aclosing(client.follow(JOB, after=after, notice=notice)) as found:
            return [item async for item in found], gateway.asked("Last-Event-ID")


async def test_a_whole_stream_is_yielded_once() -> None:
    """Every event comes with its number, in order, up to the terminal one."""
    found, asked = await followed(stream(events(0)))
    assert found == list(enumerate(EVENTS))
    assert asked == [""]


async def test_a_cut_stream_goes_on_where_it_stopped() -> None:
    """The next request names the last event; nothing is lost, nothing comes twice."""
    notices: list[str] = []
    found, asked = await followed(
        stream(events(0, 2), cut=True), stream(events(3)), notices=notices
    )
    assert found == list(enumerate(EVENTS))
    assert asked == ["", "2"]
    assert "going on after event 2" in notices[0]


async def test_events_that_come_again_are_dropped() -> None:
    """A gateway that ignores Last-Event-ID does no harm."""
    found, _ = await followed(stream(events(0, 2), cut=True), stream(events(0)))
    assert found == list(enumerate(EVENTS))


async def test_half_an_event_is_none() -> None:
    """What was cut inside a frame is asked for again."""
    found, asked = await followed(
        stream(events(0, 1) + events(2)[:20], cut=True), stream(events(2))
    )
    assert found == list(enumerate(EVENTS))
    assert asked == ["", "1"]


async def test_a_clean_end_without_a_terminal_event_is_resumed() -> None:
    """The end of the bytes is not the end of the job."""
    found, asked = await followed(stream(events(0, 2)), stream(events(3)))
    assert found == list(enumerate(EVENTS))
    assert asked == ["", "2"]


async def test_a_stream_that_never_ends_right_is_an_error() -> None:
    """After some tries without news the follower gives up, and says how to go on."""
    with pytest.raises(StreamCut, match=r"stopped after number 2 .*headrace follow job_") as cut:
        await followed(stream(events(0, 2)), stream(b""))
    assert cut.value.last_n == 2


async def test_news_renew_the_patience() -> None:
    """Only tries in a row without an event count."""
    pieces = [stream(events(n, n), cut=True) for n in range(len(EVENTS))]
    found, _ = await followed(stream(b"", cut=True), stream(b"", cut=True), *pieces)
    assert found == list(enumerate(EVENTS))


async def test_a_busy_gateway_is_asked_again() -> None:
    """503 is no refusal of the job."""
    found, _ = await followed(problem(503, "draining", "Retry-After: 0"), stream(events(0)))
    assert found == list(enumerate(EVENTS))


async def test_nothing_left_is_an_end() -> None:
    """204: the caller has seen the terminal event."""
    found, asked = await followed(Reply(b"", 204), after=4)
    assert found == []
    assert asked == ["4"]


async def test_an_unknown_job_is_refused_at_once() -> None:
    """A refusal that waiting cannot heal is not repeated."""
    with pytest.raises(ApiError) as refusal:
        await followed(problem(404, "job-not-found"))
    assert (refusal.value.type, refusal.value.request_id) == ("job-not-found", "req-1")


@pytest.mark.parametrize("body", [b"data: {}\n\n", b'id: 0\ndata: {"kind":"new"}\n\n'])
async def test_an_event_that_cannot_be_read_is_an_error(body: bytes) -> None:
    """Nothing is skipped silently."""
    with pytest.raises(ProtocolError):
        await followed(stream(body))


async def test_a_problem_ends_the_stream() -> None:
    """What the gateway says about a stream that cannot go on reaches the caller, at once."""
    last_words = broken(Problem(410, "events-gone", "The events are gone; read the job."))
    with pytest.raises(ApiError, match=r"^The events are gone; read the job\.$") as refusal:
        await followed(stream(events(0, 2) + last_words, cut=True))
    assert refusal.value.type == "events-gone"


async def test_a_problem_that_cannot_be_read_is_an_error() -> None:
    """Last words that are none are not taken for a refusal."""
    with pytest.raises(ProtocolError, match="a problem that this client cannot read"):
        await followed(stream(b"event: problem\ndata: []\n\n", cut=True))


async def test_another_server_is_an_error() -> None:
    """A page instead of a stream is not waited for."""
    with pytest.raises(ProtocolError):
        await followed(Reply(b"<html>", content_type="text/html"))


async def test_a_submission_says_only_what_was_given() -> None:
    """The gateway's defaults stay the gateway's."""
    async with fake_gateway(json_reply(SUBMITTED, 202)) as gateway, Client(gateway.url) as client:
        job = await client.submit(JobRequest(prompt="Once", seed=0), idempotency_key="k")
    assert (job.id, job.status) == (JOB, JobState.QUEUED)
    assert gateway.asked("Idempotency-Key") == ["k"]
    assert json.loads(gateway.requests[0].partition("\r\n\r\n")[2]) == {"prompt": "Once", "seed": 0}


async def test_a_lost_answer_does_not_submit_twice() -> None:
    """The repeated request carries the same key, so it is the same job."""
    lost = Reply(b'{"id":', cut=True)
    async with fake_gateway(lost, json_reply(SUBMITTED, 202)) as gateway:
        async with Client(gateway.url) as client:
            assert (await client.submit(JobRequest(prompt="Once"))).id == JOB
        first, second = gateway.asked("Idempotency-Key")
    assert first == second != ""


async def test_a_refusal_has_its_parts() -> None:
    """Type, detail, request and waiting time reach the caller."""
    refused = problem(429, "too-many-jobs", "Retry-After: 5")
    async with fake_gateway(refused) as gateway, Client(gateway.url) as client:
        with pytest.raises(ApiError, match=r"this. \(again in 5 s\) \(request req-1\)") as refusal:
            await client.submit(JobRequest(prompt="Once"))
    error = refusal.value
    assert (error.status, error.type, error.retry_after_s) == (429, "too-many-jobs", 5)


async def test_a_proxys_page_is_a_refusal_too() -> None:
    """An error that is no problem document is shown, shortened."""
    page = Reply(b"<h1>Bad\nGateway</h1>", 502)
    async with fake_gateway(page) as gateway, Client(gateway.url) as client:
        with pytest.raises(ApiError, match="HTTP 502: <h1>Bad Gateway</h1>"):
            await client.get(JOB)


async def test_no_gateway_says_what_to_do() -> None:
    """The line has the address and the command."""
    async with Client("http://127.0.0.1:1") as client:
        with pytest.raises(Unreachable, match=r"127.0.0.1:1 .*headrace up"):
            await client.workers()


async def test_listings_read_what_the_gateway_says() -> None:
    """Unknown fields are ignored, missing ones have defaults."""
    row = {"id": JOB, "status": "running", "model": "m", "created_at": "2026-01-02T03:04:05.678Z"}
    replies = (
        json_reply({"data": [row], "next_cursor": "c"}),
        json_reply({"data": [{"id": "w", "model": "m", "state": "idle", "load": 0.5}]}),
        json_reply({"object": "list", "data": [{"id": "m"}]}),
        json_reply({"id": JOB, "status": "running", "cancelled": "running"}),
        json_reply({"status": "not_ready", "checks": {"redis": False}}, 503),
    )
    async with fake_gateway(*replies) as gateway, Client(gateway.url) as client:
        page = await client.jobs(status=JobState.RUNNING, cursor="b")
        assert (page.data[0].id, page.next_cursor) == (JOB, "c")
        assert [worker.id for worker in await client.workers()] == ["w"]
        assert await client.models() == ("m",)
        assert str(await client.cancel(JOB)) == f"{JOB}: cancel asked for while it runs"
        assert not (await client.readiness()).is_ready
    assert "status=running" in gateway.requests[0]
    assert "cursor=b" in gateway.requests[0]
