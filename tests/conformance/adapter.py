"""What the conformance suite needs beside the door that it tests: streams to read.

The suite creates, fills and closes its streams over HTTP; ours are made by jobs and filled by their
workers. So PUT, POST and DELETE are played here, with the scripts of a real job log: a message is
one ``tokens`` event, and its text is the message. GET, HEAD and OPTIONS go to the real gateway, and
its answers come back with nothing changed but the wrapping: the texts of the events in place of the
events, and the stream's own content type. Jobs begin and end with events of their own, which are
left out: ``-1`` becomes the place after ``started``.
"""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field

import httpx2
import msgspec
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from common.events import Event, Started, Tokens, encode_event
from common.job_store import Append, JobStore, Outcome
from common.keys import Keys
from gateway.dialects import durable_stream
from gateway.identity import TENANT
from tests.support.jobs import RETENTION_MS, STOPPED, make_job, submit

BEGINNING = 2  # the first message's event
MISSING = "job_" + "0" * 32
MAX_BODY = 4 * 1024**2
JSON = "application/json"
_HOP = {"connection", "content-length", "content-type", "date", "transfer-encoding"}


@dataclass
class Stream:
    """One stream of the suite: a job that we play the worker of."""

    job_id: str
    content_type: str
    epoch: int
    next: int = BEGINNING
    is_closed: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_json(self) -> bool:
        """Tell whether its messages are JSON values."""
        return self.content_type.partition(";")[0] == JSON

    @property
    def is_text(self) -> bool:
        """Tell whether its bytes can be lines of an event stream."""
        return self.is_json or self.content_type.startswith("text/")

    def messages(self, body: bytes) -> list[str] | None:
        """Return a body as messages, None where it is not what it should be."""
        if not self.is_json:
            return [body.decode("latin-1")]
        try:
            value = json.loads(body)
        except ValueError:
            return None
        return [json.dumps(item) for item in (value if isinstance(value, list) else [value])]

    def unwrapped(self, events: Iterable[Event]) -> bytes | None:
        """Return the messages among the events as one body, None without any."""
        texts = [event.text for event in events if isinstance(event, Tokens)]
        if self.is_json:
            return f"[{','.join(texts)}]".encode() if texts else None
        return "".join(texts).encode("latin-1") if texts else None

    def headers(self) -> dict[str, str]:
        """Return where the stream ends."""
        place = durable_stream.Place(self.next, is_up_to_date=False, is_closed=self.is_closed)
        safe = {"X-Content-Type-Options": "nosniff", "Content-Type": self.content_type}
        return {**durable_stream.headers(place), **safe}


class Adapter:
    """The suite's server: writes here, reads at the gateway."""

    def __init__(self, gateway_url: str, redis: Redis, keys: Keys) -> None:
        self._redis, self._keys = redis, keys
        self._store = JobStore(redis, keys)
        self._streams: dict[str, Stream] = {}
        self._client = httpx2.AsyncClient(base_url=gateway_url, trust_env=False, timeout=None)

    def app(self) -> Starlette:
        """Return the ASGI application."""
        writes = {"PUT": self._create, "POST": self._append, "DELETE": self._delete}
        return Starlette(
            routes=[
                *(Route("/{path:path}", end, methods=[name]) for name, end in writes.items()),
                Route("/{path:path}", self._read, methods=["GET", "HEAD", "OPTIONS"]),
            ]
        )

    async def _create(self, request: Request) -> Response:
        path, content_type = request.url.path, request.headers.get("content-type", JSON)
        body = await request.body()
        stream, status = self._streams.get(path), 200
        if stream is None:
            stream, status = await self._new(content_type), 201
            self._streams[path] = stream
        elif stream.content_type != content_type:
            return Response(status_code=409)
        if status == 201 and body:
            messages = stream.messages(body)
            if messages is None:
                return Response(status_code=400)
            await self._write(stream, messages)
        if status == 201 and _closes(request):
            await self._close(stream)
        return Response(None, status, {**stream.headers(), "Location": str(request.url)})

    async def _new(self, content_type: str) -> Stream:
        record = await submit(
            self._store, make_job(tenant=TENANT, incarnation=secrets.token_hex(4))
        )
        outcome, epoch, _ = await self._store.start(record, "w1", Started("w1", 1))
        assert outcome is Outcome.OK
        return Stream(record.id, content_type, epoch)

    async def _append(self, request: Request) -> Response:
        stream = self._streams.get(request.url.path)
        if stream is None:
            return Response(status_code=404)
        body = await request.body()
        if len(body) > MAX_BODY:
            return Response(status_code=413)
        async with stream.lock:
            return await self._append_to(stream, body, request)

    async def _append_to(self, stream: Stream, body: bytes, request: Request) -> Response:
        if stream.is_closed:
            status = 409 if body or not _closes(request) else 204
            return Response(None, status, stream.headers())
        if body:
            given = request.headers.get("content-type")
            if given is None:
                return Response(status_code=400)
            if given.partition(";")[0].lower() != stream.content_type.partition(";")[0].lower():
                return Response(status_code=409)
        elif not _closes(request):
            return Response(status_code=400)
        messages = stream.messages(body) if body else []
        if messages is None or (body and not messages):
            return Response(status_code=400)
        await self._write(stream, messages)
        if _closes(request):
            await self._close(stream)
        return Response(None, 204, stream.headers())

    async def _write(self, stream: Stream, messages: list[str]) -> None:
        if messages:
            events = tuple(encode_event(Tokens(0, (), text)) for text in messages)
            call = Append(stream.job_id, stream.epoch, stream.next, events)
            [(outcome, stream.next)] = await self._store.append([call])
            assert outcome is Outcome.OK

    async def _close(self, stream: Stream) -> None:
        place = (stream.epoch, stream.next)
        outcome, stream.next = await self._store.finish(stream.job_id, place, STOPPED, RETENTION_MS)
        assert outcome is Outcome.OK
        stream.is_closed = True

    async def _delete(self, request: Request) -> Response:
        stream = self._streams.pop(request.url.path, None)
        if stream is None:
            return Response(status_code=404)
        names = self._keys.job(stream.job_id)
        await self._redis.delete(names.record, names.log)
        return Response(status_code=204)

    async def _read(self, request: Request) -> Response:
        stream = self._streams.get(request.url.path)
        job_id = stream.job_id if stream is not None else MISSING
        query = request.url.query
        if stream is not None and request.method == "GET":
            query = _after_beginning(query)
        sent = self._client.build_request(
            request.method,
            f"/v1/streams/{job_id}" + (f"?{query}" if query else ""),
            headers=[pair for pair in request.headers.items() if pair[0] not in ("host", *_HOP)],
        )
        answer = await self._client.send(sent, stream=True)
        headers = {name: value for name, value in answer.headers.items() if name not in _HOP}
        kind = answer.headers.get("content-type", "")
        if stream is None or answer.status_code >= 400 or request.method == "OPTIONS":
            body = await _whole(answer)
            return Response(body, answer.status_code, {**headers, "Content-Type": kind})
        if kind == "text/event-stream":
            if not stream.is_text:
                headers["Stream-SSE-Data-Encoding"] = "base64"
            unwrapped = _unwrap_frames(stream, answer)
            return StreamingResponse(unwrapped, 200, {**headers, "Content-Type": kind})
        body = await _whole(answer)
        if kind:
            headers["Content-Type"] = stream.content_type
        if body:
            events = msgspec.json.decode(body, type=list[Event])
            body = stream.unwrapped(events) or (b"[]" if stream.is_json else b"")
        return Response(body, answer.status_code, headers)


async def _whole(answer: httpx2.Response) -> bytes:
    async with aclosing(answer):
        return await answer.aread()


def _closes(request: Request) -> bool:
    return request.headers.get("stream-closed", "") == "true"


def _after_beginning(query: str) -> str:
    """Let the suite's streams begin with their first message."""
    first = f"offset={durable_stream.write_offset(BEGINNING)}"
    parts = [first if part == "offset=-1" else part for part in query.split("&") if part]
    if not any(part.partition("=")[0] in ("offset", "live") for part in parts):
        parts.append(first)
    return "&".join(parts)


async def _unwrap_frames(stream: Stream, answer: httpx2.Response) -> AsyncIterator[bytes]:
    """Give the gateway's frames with the stream's own data; what came together stays together."""
    rest = b""
    async with aclosing(answer):
        async for chunk in answer.aiter_raw():
            *frames, rest = (rest + chunk).split(b"\n\n")
            yield b"".join(_unwrap_frame(stream, frame) for frame in frames)


def _unwrap_frame(stream: Stream, frame: bytes) -> bytes:
    prefix = b"event: data\ndata:"
    if not frame.startswith(prefix):
        return frame + b"\n\n"
    data = stream.unwrapped(msgspec.json.decode(frame.removeprefix(prefix), type=list[Event]))
    return _data_frame(stream, data) if data is not None else b""


def _data_frame(stream: Stream, data: bytes) -> bytes:
    if not stream.is_text:
        data = base64.b64encode(data)
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"event: data\n" + b"".join(b"data:%s\n" % line for line in lines) + b"\n"
