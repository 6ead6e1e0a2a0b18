"""What the gateway's JSON says, as types. Unknown fields are ignored, so newer gateways work."""

from datetime import datetime

import msgspec

from common.events import ErrorInfo, Timings, TokenLogprob, Usage
from common.jobs import JobState, Message, Priority

READY = "ready"


class JobRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job to submit; what is left out is the gateway's default.

    ``prompt`` or ``messages`` is the question. Under a ``prompt_id``, ``append`` adds to what is
    stored there, and without any of them it is continued where it stopped.
    """

    model: str | None = None
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    priority: Priority | None = None
    deadline_s: float | None = None
    prompt_id: str | None = None
    metadata: dict[str, str] = {}
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int | None = None
    ignore_eos: bool = False
    n: int | None = None
    logprobs: int | None = None
    echo: bool = False
    append: str | tuple[Message, ...] | None = None
    if_version: int | None = None
    allow_reset: bool = False
    queue_deadline_s: float | None = None
    run_deadline_s: float | None = None
    durable: bool = False


class Submitted(msgspec.Struct, frozen=True):
    """An accepted job: from now on it ends in exactly one terminal event."""

    id: str
    status: JobState
    model: str
    created_at: datetime | None = None


class Choice(msgspec.Struct, frozen=True):
    """One answer of a job with several."""

    index: int
    text: str
    finish_reason: str | None = None
    is_eos: bool | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class Job(msgspec.Struct, frozen=True):
    """A job as it stands. With several answers, ``choices`` has them and ``text`` is the first."""

    id: str
    status: JobState
    model: str
    text: str = ""
    finish_reason: str | None = None
    is_eos: bool | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    attempts: int = 0
    worker: str | None = None
    error: ErrorInfo | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    priority: Priority = Priority.NORMAL
    metadata: dict[str, str] = {}
    choices: tuple[Choice, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_version: int | None = None


class JobPage(msgspec.Struct, frozen=True):
    """Some jobs, and where the next ones begin."""

    data: tuple[Job, ...]
    next_cursor: str | None = None


class Cancellation(msgspec.Struct, frozen=True):
    """What a cancel met: a ``queued``, a ``running`` or an ``already_ended`` job."""

    id: str
    status: JobState
    cancelled: str

    def __str__(self) -> str:
        """Say it to a person."""
        if self.cancelled == "already_ended":
            return f"{self.id} had ended already ({self.status})"
        if self.cancelled == "queued":
            return f"{self.id} cancelled before it started"
        return f"{self.id}: cancel asked for while it runs"


class Prompt(msgspec.Struct, frozen=True):
    """What a prompt ID stands for. ``worker`` holds its tensors, where it still lives."""

    id: str
    model: str
    version: int
    length: int
    worker: str | None = None
    updated_at: datetime | None = None
    expires_at: datetime | None = None


class KvCache(msgspec.Struct, frozen=True):
    """The KV cache of a worker; sizes are bytes. Cached blocks can be had back, used ones not."""

    blocks: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0
    query_tokens: int = 0
    hit_tokens: int = 0
    device_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0

    @property
    def hit_rate(self) -> float:
        """How much of the prompts was found in the cache, 0…1."""
        return self.hit_tokens / self.query_tokens if self.query_tokens else 0.0


class Worker(msgspec.Struct, frozen=True):
    """A live worker. Its last sign of life is ``lease_age_s`` seconds old."""

    id: str
    model: str
    state: str
    host: str = ""
    pid: int = 0
    engine: str = ""
    device: str = ""
    dtype: str = ""
    progress: str = ""
    capacity: int = 0
    running: int = 0
    context_len: int = 0
    tokens_per_s: float = 0.0
    lease_age_s: float = 0.0
    kv: KvCache | None = None


class Workers(msgspec.Struct, frozen=True):
    """The list of the live workers."""

    data: tuple[Worker, ...]


class Model(msgspec.Struct, frozen=True):
    """A model that jobs can name."""

    id: str


class Models(msgspec.Struct, frozen=True):
    """The list of the models."""

    data: tuple[Model, ...]


class Readiness(msgspec.Struct, frozen=True):
    """What a gateway says of itself; ``checks`` are redis, relay and worker."""

    status: str
    checks: dict[str, bool] = {}

    @property
    def is_ready(self) -> bool:
        """Tell whether a job submitted now would run."""
        return self.status == READY


class ProblemDocument(msgspec.Struct, frozen=True):
    """RFC 9457."""

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    detail: str = ""
    request_id: str = ""
