"""``/v1/streams/{id}``: a job's log over the reading side of the Durable Streams protocol."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import httpx2
import msgspec
import pytest

from common.events import Event
from common.job_store import JobStore
from gateway import durable_streams
from tests.gateway.conftest import MakeGateway
from tests.gateway.doors import check_problem, submit
from tests.gateway.followers import log_of
from tests.gateway.player import Player
from tests.gateway.running import RunningGateway
from tests.support.jobs import make_job
from tests.support.jobs import submit as submit_foreign
from tests.support.waiting import eventually, within

BEGINNING = "-1"


def events_of(data: bytes | str) -> list[Event]:
    """Return the events of a JSON array."""
    return msgspec.json.decode(data, type=list[Event])


async def read(
    client: httpx2.AsyncClient, job_id: str, offset: str = BEGINNING, **query: str
) -> httpx2.Response:
    """Read from an offset."""
    url = f"/v1/streams/{job_id}"
    async with within():
        return await client.get(url, params={"offset": offset, **query}, timeout=None)


def check_place(
    response: httpx2.Response, position: int, *, up_to_date: bool = True, closed: bool = False
) -> str:
    """Return the next offset, which must be this one."""
    assert response.headers["stream-next-offset"] == f"{position:016}"
    assert response.headers.get("stream-up-to-date") == ("true" if up_to_date else None)
    assert response.headers.get("stream-closed") == ("true" if closed else None)
    assert response.headers["x-content-type-options"] == "nosniff"
    return str(response.headers["stream-next-offset"])


async def test_catching_up_gives_the_log_itself(
    client: httpx2.AsyncClient, store: JobStore, player: Player
) -> None:
    """Event by event, none merged, from any offset; the end of the job closes the stream."""
    job_id = await submit(client)
    first = await read(client, job_id)
    assert first.headers["content-type"] == "application/json"
    offset = check_place(first, 1)
    attempt = await player.take(job_id)
    await attempt.say("a", "b", "c")
    second = await read(client, job_id, offset)
    check_place(second, 5)
    await attempt.end()
    log = await log_of(store, job_id)
    whole = await read(client, job_id)
    check_place(whole, 6, closed=True)
    assert events_of(whole.content) == log
    assert events_of(first.content) + events_of(second.content) == log[:-1]
    for position in range(len(log) + 1):
        part = await read(client, job_id, f"{position:016}")
        check_place(part, 6, closed=True)
        assert events_of(part.content) == log[position:]


async def test_a_long_log_comes_in_parts(
    client: httpx2.AsyncClient,
    store: JobStore,
    player: Player,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the last one is up to date, and closed; this is so in every way to read."""
    monkeypatch.setattr(durable_streams, "MAX_BATCH", 2)
    job_id = await submit(client)
    attempt = await player.take(job_id)
    await attempt.say("a", "b")
    await attempt.end()
    log = await log_of(store, job_id)
    for query in ({}, {"live": "long-poll"}):
        offset, seen = BEGINNING, list[Event]()
        for end in (2, 4, 5):
            part = await read(client, job_id, offset, **query)
            offset = check_place(part, end, up_to_date=end == 5, closed=end == 5)
            seen += events_of(part.content)
        assert seen == log
    async with stream_of(client, job_id) as frames:
        controls = [control async for _, control in frames]
    assert [control.get("upToDate") for control in controls] == [None, None, True]


async def test_the_end_as_it_is_now(client: httpx2.AsyncClient, player: Player) -> None:
    """``now`` skips what there is; nothing of it may be kept by a cache."""
    job_id = await submit(client)
    answer = await read(client, job_id, "now")
    assert answer.content == b"[]"
    assert answer.headers["cache-control"] == "no-store"
    offset = check_place(answer, 1)
    attempt = await player.take(job_id)
    assert [event.kind for event in events_of((await read(client, job_id, offset)).content)] == [
        "started"
    ]
    await attempt.end()
    check_place(await read(client, job_id, "now"), 3, closed=True)


async def test_what_has_not_changed_is_not_sent_again(
    client: httpx2.AsyncClient, player: Player
) -> None:
    """304 for the ETag of the same events, 200 once there are more."""
    job_id = await submit(client)
    name = (await read(client, job_id)).headers["etag"]
    url = f"/v1/streams/{job_id}"
    same = await client.get(url, headers={"If-None-Match": name})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", name)
    check_place(same, 1)
    await player.take(job_id)
    more = await client.get(url, headers={"If-None-Match": name})
    assert more.status_code == 200
    assert more.headers["etag"] != name


async def test_head_tells_where_the_stream_ends(client: httpx2.AsyncClient, player: Player) -> None:
    """And whether it is closed, without a body."""
    job_id = await submit(client)
    url = f"/v1/streams/{job_id}"
    head = await client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == "application/json"
    assert head.headers["cache-control"] == "no-store"
    check_place(head, 1, up_to_date=False)
    await (await player.take(job_id)).end()
    check_place(await client.head(url), 3, up_to_date=False, closed=True)


async def test_a_long_poll_waits_for_the_next_event(
    client: httpx2.AsyncClient, gateway: RunningGateway, player: Player
) -> None:
    """From ``now`` too; what is there already is answered at once."""
    job_id = await submit(client)
    at_once = await read(client, job_id, live="long-poll")
    offset = check_place(at_once, 1)
    cursor = at_once.headers["stream-cursor"]
    waiting = [
        asyncio.create_task(read(client, job_id, place, live="long-poll", cursor=cursor))
        for place in (offset, "now")
    ]

    async def are_waiting() -> bool:
        return gateway.relay.num_cursors == 2

    await eventually(are_waiting)
    await player.take(job_id)
    for answer in await asyncio.gather(*waiting):
        check_place(answer, 2)
        assert [event.kind for event in events_of(answer.content)] == ["started"]
        assert int(answer.headers["stream-cursor"]) > int(cursor)


async def test_a_long_poll_ends(client: httpx2.AsyncClient, player: Player) -> None:
    """Without news after its time; at the end of a closed stream at once."""
    job_id = await submit(client)
    with patch.object(durable_streams, "LONG_POLL_S", 0.05):
        late = await read(client, job_id, "now", live="long-poll")
    assert (late.status_code, late.content) == (204, b"")
    check_place(late, 1)
    assert late.headers["stream-cursor"].isdigit()
    await (await player.take(job_id)).end()
    closed = await read(client, job_id, "now", live="long-poll")
    assert closed.status_code == 204
    check_place(closed, 3, closed=True)


async def test_a_drain_ends_a_long_poll(make_gateway: MakeGateway, player: Player) -> None:
    """Its client asks again, elsewhere."""
    async with (
        make_gateway() as gateway,
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client,
    ):
        job_id = await submit(client)
        waiting = asyncio.create_task(read(client, job_id, "now", live="long-poll"))

        async def is_waiting() -> bool:
            return len(gateway.services.streams) == 1

        await eventually(is_waiting)
        gateway.services.streams.drain()
        assert (await waiting).status_code == 204


Frames = AsyncIterator[tuple[list[Event], dict[str, Any]]]


@asynccontextmanager
async def stream_of(
    client: httpx2.AsyncClient, job_id: str, offset: str = BEGINNING
) -> AsyncIterator[Frames]:
    """Follow over SSE; every ``data`` event comes with the ``control`` event after it."""
    url = f"/v1/streams/{job_id}?live=sse&offset={offset}"

    async def frames(source: httpx2.EventSource) -> Frames:
        data: list[Event] = []
        async for item in source:
            if item.event == "data":
                assert not data, "two data events share a control event"
                data = events_of(item.data)
            elif item.event == "control":
                yield data, json.loads(item.data)
                data = []

    async with within(), client.sse(url, max_event_size=None) as source:
        assert source.response.headers["content-type"] == "text/event-stream"
        assert "no-cache" in source.response.headers["cache-control"]
        yield frames(source)


async def test_a_stream_is_the_log_and_ends_closed(
    client: httpx2.AsyncClient, store: JobStore, player: Player
) -> None:
    """Live; each control event is a place to go on from."""
    job_id = await submit(client)
    attempt = await player.take(job_id)
    seen: list[tuple[list[Event], dict[str, Any]]] = []
    async with stream_of(client, job_id) as frames:
        async for frame in frames:
            seen.append(frame)
            if len(seen) < 4:
                await attempt.say("a")
            elif len(seen) == 4:
                await attempt.end()
    log = await log_of(store, job_id)
    assert [event for events, _ in seen for event in events] == log
    position = 0
    for events, control in seen:
        position += len(events)
        assert control["streamNextOffset"] == f"{position:016}"
        assert control.get("streamClosed", False) == (position == len(log))
    async with stream_of(client, job_id, seen[1][1]["streamNextOffset"]) as frames:
        rest = [event async for events, _ in frames for event in events]
    assert rest == [event for events, _ in seen[2:] for event in events]


async def test_a_stream_without_news_says_where_it_stands(
    client: httpx2.AsyncClient, player: Player
) -> None:
    """At once, so that a client knows that it has caught up; a closed one ends with that."""
    job_id = await submit(client)
    async with stream_of(client, job_id, "now") as frames:
        events, control = await anext(frames)
    assert (events, control["upToDate"]) == ([], True)
    assert control["streamNextOffset"] == f"{1:016}"
    await (await player.take(job_id)).end()
    async with stream_of(client, job_id, "now") as frames:
        assert [frame async for frame in frames] == [
            ([], {"streamNextOffset": f"{3:016}", "streamClosed": True, "upToDate": True})
        ]


@pytest.mark.parametrize(
    "query",
    [
        {"offset": ""},
        {"offset": "0,1"},
        {"offset": "0 1"},
        {"offset": "7"},
        {"offset": "NOW"},
        {"offset": ["-1", "-1"]},
        {"offset": ["now", "now"]},
        {"live": "sse"},
        {"live": "long-poll"},
        {"live": "other", "offset": "-1"},
    ],
)
async def test_a_garbled_question_is_refused(
    client: httpx2.AsyncClient, player: Player, query: dict[str, Any]
) -> None:
    """By the name of what is wrong with it."""
    job_id = await submit(client)
    answer = await client.get(f"/v1/streams/{job_id}", params=query)
    check_problem(answer, 400, "invalid-parameter")
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("live", [{}, {"live": "long-poll"}, {"live": "sse"}])
async def test_an_offset_beyond_the_log_is_refused(
    client: httpx2.AsyncClient, player: Player, live: dict[str, str]
) -> None:
    """It belongs to another stream."""
    job_id = await submit(client)
    check_problem(await read(client, job_id, f"{9:016}", **live), 409, "cursor-ahead")


@pytest.mark.parametrize("live", [{}, {"live": "long-poll"}, {"live": "sse"}])
async def test_a_foreign_job_is_a_missing_one(
    client: httpx2.AsyncClient, store: JobStore, live: dict[str, str]
) -> None:
    """From any offset, and for HEAD."""
    foreign = (await submit_foreign(store, make_job())).id
    for job_id in (foreign, "job_" + "0" * 32, "x"):
        for offset in (BEGINNING, "now", f"{0:016}", f"{99:016}"):
            check_problem(await read(client, job_id, offset, **live), 404, "job-not-found")
        assert (await client.head(f"/v1/streams/{job_id}")).status_code == 404


async def test_a_job_that_vanishes_cuts_its_stream(
    client: httpx2.AsyncClient, gateway: RunningGateway, player: Player
) -> None:
    """Nothing says that it was closed."""
    job_id = await submit(client)
    names = gateway.services.keys.job(job_id)
    controls = []
    with pytest.raises(httpx2.RemoteProtocolError):  # noqa: PT012 - the stream is the statement
        async with stream_of(client, job_id) as frames:
            async for _, control in frames:
                controls.append(control)
                await gateway.services.redis.delete(names.record, names.log)
    assert not any("streamClosed" in control for control in controls)


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
async def test_it_is_read_only(client: httpx2.AsyncClient, player: Player, method: str) -> None:
    """As the protocol has it for such a stream."""
    answer = await client.request(method, f"/v1/streams/{await submit(client)}")
    check_problem(answer, 405, "method-not-allowed")
