"""Readers of a job's stream, and the oracle for what they must have read."""

from collections.abc import AsyncIterator, Sequence

import httpx2
import msgspec

from common.events import Event, Tokens, is_terminal
from common.job_store import JobStore
from gateway.dialects import native_ws
from gateway.relay import Relay
from gateway.watch import Cursor, Signal

Numbered = tuple[int, Event]

_event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class EventMessage(msgspec.Struct, frozen=True, tag_field="type", tag="event"):
    """An event as ``/v1/ws`` sends it."""

    job: str
    n: int
    event: Event


decode_message = msgspec.json.Decoder(EventMessage).decode


def check_is_log(seen: Sequence[Numbered], log: Sequence[Event], after: int = -1) -> None:
    """Fail unless ``seen`` is the whole log after ``after``, runs of ``tokens`` merged or not."""
    for n, event in seen:
        part = log[after + 1 : n + 1]
        assert part, f"event {n} came after event {after}"
        assert event == (part[0] if len(part) == 1 else _sum(part)), f"event {n} is another one"
        after = n
    assert after == len(log) - 1, f"the stream ends with event {after} of {len(log) - 1}"
    assert [is_terminal(event) for _, event in seen].count(True) == 1


def _sum(part: Sequence[Event]) -> Tokens:
    tokens = [event for event in part if isinstance(event, Tokens)]
    assert len(tokens) == len(part), "something other than tokens was merged"
    kinds = {(event.choice, event.echo) for event in tokens}
    assert len(kinds) == 1, "tokens of several answers, or of an answer and its prompt, were merged"
    [(choice, echo)] = kinds
    return Tokens(
        tokens[0].index,
        tuple(token for event in tokens for token in event.ids),
        "".join(event.text for event in tokens),
        choice,
        tuple(entry for event in tokens for entry in event.logprobs),
        echo,
    )


async def log_of(store: JobStore, job_id: str) -> list[Event]:
    """Return the log itself."""
    snapshot = await store.snapshot(job_id)
    assert snapshot
    return list(snapshot.events)


class Follower:
    """A cursor and what was read through it. It resumes where it left."""

    def __init__(self, relay: Relay, tenant: str, job_id: str) -> None:
        self.seen: list[Numbered] = []
        self._relay = relay
        self._place = (tenant, job_id)
        self._signal = Signal()
        self._cursor: Cursor | None = None

    @property
    def after(self) -> int:
        """Number of the last event that was read."""
        return self.seen[-1][0] if self.seen else -1

    async def attach(self) -> None:
        """Follow from where the last attachment ended."""
        self._cursor = await self._relay.open(*self._place, self.after + 1, self._signal.set)

    async def leave(self) -> None:
        """Let the cursor go."""
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            await self._relay.close(cursor)

    def read(self) -> None:
        """Read what is there."""
        if self._cursor is not None:
            self.seen += [_parse(frame) for frame in self._cursor.take(native_ws.frame)]

    async def read_to_end(self) -> None:
        """Read up to the terminal event, and leave."""
        if self._cursor is None:
            await self.attach()
        assert self._cursor is not None
        self.read()
        while not self._cursor.is_done:
            await self._signal.wait()
            self.read()
        await self.leave()


def _parse(frame: bytes) -> Numbered:
    message = decode_message(frame)
    return message.n, message.event


async def numbered(source: httpx2.EventSource) -> AsyncIterator[Numbered]:
    """Yield the events of an SSE stream; fails on one that is not an event of a job."""
    async for item in source:
        if item.data:
            event = _event_decoder.decode(item.data)
            assert item.event == event.kind
            yield int(item.id), event


async def read_stream(
    client: httpx2.AsyncClient, job_id: str, *, after: int | None = None
) -> list[Numbered]:
    """Follow the job over SSE to its clean end."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    url = f"/v1/jobs/{job_id}/events"
    async with client.sse(url, headers=headers, max_event_size=None) as source:
        return [item async for item in numbered(source)]
