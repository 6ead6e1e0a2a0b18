"""Dead letters: jobs that were given up because they cost too many workers or cannot be read."""

from dataclasses import dataclass

import msgspec
from redis.asyncio import Redis

from common.connections import every_server
from common.emitted import num_emitted
from common.events import ErrorInfo, Event, Failed, Tokens
from common.job_record import Snapshot
from common.jobs import JobSpec
from common.keys import Keys

MAX_LETTERS = 10_000  # per model; above it the oldest go
LETTERS_TTL_S = 7 * 86_400.0
_PAGE = 100  # a letter has its job's whole prompt
_SCANNED = 1_000  # keys per round trip
WORKER_LOST, UNREADABLE = "worker-lost", "record-unreadable"
"""The types of the errors with which a job is given up."""


class Letter(msgspec.Struct, frozen=True):
    """What is known of a job that was given up. ``spec`` is None where it cannot be read.

    ``history`` are its events without the tokens.
    """

    job: str
    tenant: str
    error: ErrorInfo
    spec: JobSpec | None = None
    attempts: int = 0
    num_tokens: int = 0
    history: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Filed:
    """A letter under its entry ID, which begins with the time (ms) at which it was written."""

    entry: str
    letter: Letter

    @property
    def at_ms(self) -> int:
        """When the job was given up, by Redis's clock."""
        return int(self.entry.partition("-")[0])


class DeadLetters:
    """The dead letters of one model. Raises redis-py's errors unchanged."""

    def __init__(self, redis: Redis, keys: Keys, model: str) -> None:
        self.model = model
        self._redis = redis
        self._name = keys.model(model).dead

    async def all(self) -> list[Filed]:
        """Return the letters, oldest first."""
        letters: list[Filed] = []
        after = "-"
        while page := await self._redis.xrange(self._name, after, count=_PAGE):
            letters += [Filed(at.decode(), _decoder.decode(body[b"letter"])) for at, body in page]
            after = f"({letters[-1].entry}"
        return letters

    async def count(self) -> int:
        """Return how many letters there are."""
        return int(await self._redis.xlen(self._name))

    async def drop(self, entry: str) -> bool:
        """Delete a letter; return whether it was there."""
        return bool(await self._redis.xdel(self._name, entry))


async def models_with_letters(redis: Redis, keys: Keys) -> list[str]:
    """Return the models that have had letters; of some, no worker may have lived for days."""
    found = {  # a scan may meet a key twice
        keys.model_of_dead(name.decode())
        for server in await every_server(redis)
        async for name in server.scan_iter(keys.any_dead, count=_SCANNED)
    }
    return sorted(found)


def letter_of(snapshot: Snapshot) -> Letter | None:
    """Return the letter of an ended job, None for one that was not given up."""
    record, events = snapshot.record, snapshot.events
    end = events[-1] if events else None
    if not isinstance(end, Failed) or end.error is None or end.error.type != WORKER_LOST:
        return None
    return Letter(
        job=record.id,
        tenant=record.tenant,
        error=end.error,
        spec=record.spec,
        attempts=record.attempts,
        num_tokens=num_emitted(events),
        history=tuple(event for event in events if not isinstance(event, Tokens)),
    )


def encode_letter(letter: Letter) -> bytes:
    """Return the msgpack form that the stream keeps."""
    return _encoder.encode(letter)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Letter)
