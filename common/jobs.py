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
    """How the next token is chosen. ``temperature`` 0 is greedy; ``top_k`` and ``min_p`` 0 are off.

    Random numbers are a function of ``seed`` and the position, so that a job that moves to
    another worker goes on with the same randomness. ``repetition_penalty`` (1: off) divides the
    logits of tokens of the prompt and the answer (CTRL, arXiv:1909.05858); ``presence_penalty``
    and ``frequency_penalty`` (0: off) are taken from those of the answer's tokens, once and per
    occurrence, as OpenAI defines them; ``logit_bias`` is added, by token ID.
    """

    temperature: Annotated[float, Meta(ge=0, le=10)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    logit_bias: dict[int, float] = {}


class JobSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker needs to run a job.

    At most one of ``prompt``, ``messages`` and ``append`` is set. ``append`` is added to what is
    stored under ``prompt_id``; with nothing set, what is stored is continued where it stopped.
    ``if_version`` is the version of the stored sequence that the job wants to build on.

    ``min_tokens`` keeps the model from ending the answer earlier, ``ignore_eos`` from ending it at
    all. ``n`` answers are made from one prompt. ``logprobs`` (None: none) is how many alternatives
    are reported beside each chosen token. ``echo`` puts the prompt before the answer.
    ``allow_reset`` lets an engine that cannot continue an answer begin it anew. Durations are
    seconds, see ``common.deadlines``. New fields go last, with a default.
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
    append: str | tuple[Message, ...] | None = None
    if_version: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    echo: bool = False
    allow_reset: bool = False
    queue_deadline_s: float | None = None
    run_deadline_s: float | None = None

    @property
    def builds_on_stored(self) -> bool:
        """Tell whether the job goes on from the sequence that is stored under its prompt ID."""
        return self.prompt is None and self.messages is None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(JobSpec)


def encode_spec(spec: JobSpec) -> bytes:
    """Return the msgpack form that the job record keeps."""
    return _encoder.encode(spec)


def decode_spec(data: bytes) -> JobSpec:
    """Return the spec of a job record; raises ``msgspec.DecodeError`` on damaged data."""
    return _decoder.decode(data)
