"""The door of ``/v1/streams/{id}``: a job's log for clients of the Durable Streams protocol.

Read only: jobs are made by ``POST /v1/jobs``, and only their workers append. Catching up reads the
log itself, so that it shows what any gateway has acknowledged; live reads share the relay's watch.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from common.errors import Problem
from common.events import Event, decode_event, is_terminal
from gateway.dialects import durable_stream, native_sse
from gateway.dialects.durable_stream import BEGINNING, MAX_BATCH, NOW, Place
from gateway.event_stream import EventStream, Framing
from gateway.reading import bad_request, read_job_id
from gateway.relay import job_not_found
from gateway.services import services_of, tenant_of
from gateway.streams import Hold
from gateway.watch import Cursor, Signal

LONG_POLL_S = 20.0
MAX_JITTER = 180  # intervals: an hour, as the protocol has it

_SAFETY = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
_NO_STORE = {"Cache-Control": "no-store", **_SAFETY}
_REVALIDATE = {"Cache-Control": "private, no-cache", **_SAFETY}
_JSON = "application/json"


async def read(request: Request) -> Response:
    """``GET`` and ``HEAD /v1/streams/{id}``: what there is, or what comes next."""
    job_id = read_job_id(request.path_params["job_id"])
    if request.method == "HEAD":
        return await _describe(request, job_id)
    position = _read_position(request)
    match request.query_params.get("live"):
        case None:
            return await _catch_up(request, job_id, position)
        case "long-poll":
            _require_offset(request)
            return await _long_poll(request, job_id, position)
        case "sse":
            _require_offset(request)
            return await _stream(request, job_id, position)
        case other:
            detail = f"`live` must be `long-poll` or `sse`, not {other[:40]!r}."
            raise bad_request("invalid-parameter", detail)


def _read_position(request: Request) -> int | None:
    """Return the number of the next event to read, None for the end of the log as it is now."""
    given = request.query_params.getlist("offset")
    text = given[0] if given else BEGINNING
    if text == NOW and len(given) == 1:
        return None
    position = 0 if text == BEGINNING else durable_stream.read_offset(text)
    if position is None or len(given) > 1:
        detail = "`offset` must be one `-1`, `now` or `Stream-Next-Offset` of an earlier answer."
        raise bad_request("invalid-parameter", detail)
    return position


def _require_offset(request: Request) -> None:
    if "offset" not in request.query_params:
        detail = "A live read needs an `offset`: `-1`, `now` or that of an earlier answer."
        raise bad_request("invalid-parameter", detail)


async def _describe(request: Request, job_id: str) -> Response:
    log = await _read_log(request, job_id, None)
    place = Place(log.start, is_up_to_date=False, is_closed=log.is_closed)
    return Response(headers={**_NO_STORE, **durable_stream.headers(place)}, media_type=_JSON)


@dataclass(frozen=True, slots=True)
class _Log:
    """A part of a log: ``events[0]`` is event ``start``."""

    incarnation: str
    start: int
    events: list[Event]
    is_whole: bool  # the log ended here when it was read
    is_closed: bool  # the log has its end


async def _read_log(request: Request, job_id: str, position: int | None) -> _Log:
    """Read a batch of the log from a position on, or no more than where it ends."""
    store = services_of(request).store
    is_own = await store.owner(job_id) == tenant_of(request)
    [top] = await store.top([job_id]) if is_own else [None]
    if top is None:
        raise job_not_found(job_id)
    incarnation, tail = top
    start = tail if position is None else position
    if start > tail:
        detail = f"The log ends before this `offset`; go on at {durable_stream.write_offset(tail)}."
        raise Problem(409, "cursor-ahead", detail)
    before = max(start - 1, 0)  # the event before tells whether there is one to come
    page = await store.log(job_id, before, start - before + MAX_BATCH)
    events = [decode_event(payload) for _, payload in page]
    is_closed = bool(events) and is_terminal(events[-1])
    is_whole = is_closed or before + len(events) >= tail
    return _Log(incarnation, start, events[start - before :], is_whole, is_closed)


async def _catch_up(request: Request, job_id: str, position: int | None) -> Response:
    log = await _read_log(request, job_id, position)
    end = log.start + len(log.events)
    place = Place(end, is_up_to_date=log.is_whole, is_closed=log.is_closed)
    headers = durable_stream.headers(place)
    if position is None:
        return Response(b"[]", 200, {**_NO_STORE, **headers}, _JSON)
    name = durable_stream.etag(log.incarnation, log.start, end)
    headers |= {**_REVALIDATE, "ETag": name}
    if name in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(durable_stream.body(log.events), 200, headers, _JSON)


async def _long_poll(request: Request, job_id: str, position: int | None) -> Response:
    services, signal = services_of(request), Signal()
    async with _opened(request, job_id, position, signal) as cursor:
        hold = Hold(signal.set)
        services.streams.add(hold)
        try:
            async with asyncio.timeout(LONG_POLL_S):
                while not (cursor.has_news or cursor.is_done or services.streams.draining):
                    await signal.wait()
        except TimeoutError:
            pass
        finally:
            services.streams.remove(hold)
        start = cursor.position
        found = cursor.take_batch(durable_stream.body, MAX_BATCH)
        headers = {
            **_NO_STORE,
            **durable_stream.headers(_place(cursor)),
            "Stream-Cursor": _next_cursor(request),
            "ETag": durable_stream.etag(
                cursor.watch.transcript.incarnation, start, cursor.position
            ),
        }
    if not found:
        return Response(status_code=204, headers=headers)
    return Response(found, 200, headers, _JSON)


@asynccontextmanager
async def _opened(
    request: Request, job_id: str, position: int | None, signal: Signal
) -> AsyncIterator[Cursor]:
    relay = services_of(request).relay
    cursor = await _open(request, job_id, position, signal)
    try:
        yield cursor
    finally:
        await relay.close(cursor)


async def _open(request: Request, job_id: str, position: int | None, signal: Signal) -> Cursor:
    services = services_of(request)
    services.streams.require_room()
    cursor = await services.relay.open(tenant_of(request), job_id, position or 0, signal.set)
    if position is None:
        cursor.position = len(cursor.watch.transcript)
    return cursor


async def _stream(request: Request, job_id: str, position: int | None) -> Response:
    services, signal = services_of(request), Signal()
    cursor = await _open(request, job_id, position, signal)
    framing = DurableFraming(_next_cursor(request))
    return EventStream(services.relay, services.streams, cursor, signal, framing)


class DurableFraming(Framing):
    """How this protocol writes a stream: after all data, and at once, where the reader stands."""

    headers = (
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-cache, no-store"),
        (b"x-accel-buffering", b"no"),
        *((name.lower().encode(), value.encode()) for name, value in _SAFETY.items()),
    )

    def __init__(self, next_cursor: str) -> None:
        self._next_cursor = next_cursor

    def opening(self, cursor: Cursor) -> bytes:
        """Return where the reader stands, if there is nothing else to say."""
        return native_sse.PING if cursor.has_news else self._control(cursor)

    def take(self, cursor: Cursor) -> bytes:
        """Return what is new."""
        frames = []
        while data := cursor.take_batch(durable_stream.data_frame, MAX_BATCH):
            frames += [data, self._control(cursor)]
        return b"".join(frames)

    def broken(self, problem: Problem) -> bytes:
        """Return the last words of a stream that cannot go on: a comment, the protocol has none."""
        return b": %s\n\n" % problem.type.encode()

    def _control(self, cursor: Cursor) -> bytes:
        return durable_stream.control_frame(_place(cursor), self._next_cursor)


def _place(cursor: Cursor) -> Place:
    return Place(cursor.position, is_up_to_date=not cursor.has_news, is_closed=cursor.is_done)


def _next_cursor(request: Request) -> str:
    jitter = 1 + secrets.randbelow(MAX_JITTER)
    return durable_stream.next_cursor(request.query_params.get("cursor"), time.time(), jitter)
