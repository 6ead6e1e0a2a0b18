"""What a job is: its specification, its states and the moves between them."""

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_TOKENS_LIMIT = 1_048_576


class Priority(enum.StrEnum):
    """The three lanes of a model, in the order in which workers read them."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class JobState(enum.StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


ACTIVE = frozenset({JobState.QUEUED, JobState.RUNNING})
TERMINAL = frozenset(JobState) - ACTIVE


class FinishReason(enum.StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"
    EXPIRED = "expired"


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation, for models with a chat template."""

    role: Annotated[str, Meta(min_length=1, max_length=32)]
    content: str


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is chosen. ``temperature`` 0 is greedy; ``top_k`` 0 is off.

    Random numbers are a function of ``seed`` and the position, so that a job that moves to
    another worker goes on with the same randomness.
    """

    temperature: Annotated[float, Meta(ge=0, le=10)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


class JobSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker needs to run a job. Exactly one of ``prompt`` and ``messages`` is set.

    Durations are seconds. New fields go last, with a default.
    """

    model: str
    max_tokens: int
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    priority: Priority = Priority.NORMAL
    deadline_s: float = 86_400.0
    prompt_id: str | None = None
    metadata: dict[str, str] = {}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(JobSpec)


def encode_spec(spec: JobSpec) -> bytes:
    """Return the msgpack form that the job record keeps."""
    return _encoder.encode(spec)


def decode_spec(data: bytes) -> JobSpec:
    """Return the spec of a job record; raises ``msgspec.DecodeError`` on damaged data."""
    return _decoder.decode(data)
