"""What the native HTTP door takes and gives. ``/openapi.json`` is generated from these types."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from common.events import ErrorInfo, Timings, TokenLogprob, Usage
from common.jobs import MAX_TOKENS_LIMIT, FinishReason, JobState, Message, Priority
from common.registry import WorkerInfo

StopString = Annotated[str, Meta(min_length=1, max_length=256)]
MetadataKey = Annotated[str, Meta(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Bias = Annotated[float, Meta(ge=-100, le=100)]


class JobRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A job to run. Give one of ``prompt`` and ``messages``, or build on a ``prompt_id``."""

    model: Annotated[
        str | None, Meta(description="Model to run; without it the default model.")
    ] = None
    prompt: Annotated[str | None, Meta(description="Plain text to continue.")] = None
    messages: Annotated[
        tuple[Message, ...] | None,
        Meta(description="A conversation, for models with a chat template."),
    ] = None
    max_tokens: Annotated[
        int, Meta(ge=1, le=MAX_TOKENS_LIMIT, description="Most tokens to generate.")
    ] = 256
    temperature: Annotated[float, Meta(ge=0, le=10, description="0 is greedy.")] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1, description="Nucleus sampling.")] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1_000_000, description="0 is off.")] = 0
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=2**63 - 1)] | None,
        Meta(description="Same seed, same randomness; without it a random one."),
    ] = None
    stop: Annotated[
        StopString | Annotated[tuple[StopString, ...], Meta(max_length=16)],
        Meta(description="Strings that end the answer; they are not part of it."),
    ] = ()
    priority: Annotated[Priority, Meta(description="Which lane the job waits in.")] = (
        Priority.NORMAL
    )
    deadline_s: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Seconds until the job expires, waiting and running together."),
    ] = None
    prompt_id: Annotated[
        Annotated[str, Meta(min_length=1, max_length=200)] | None,
        Meta(description="Your name for this conversation or document."),
    ] = None
    metadata: Annotated[
        dict[MetadataKey, MetadataValue], Meta(max_length=16, description="Kept with the job.")
    ] = {}
    stream: Annotated[
        bool, Meta(description="Answer with the event stream itself instead of 202.")
    ] = False
    min_p: Annotated[
        float,
        Meta(ge=0, le=1, description="Least probability, as a share of the likeliest; 0 is off."),
    ] = 0.0
    repetition_penalty: Annotated[
        float, Meta(gt=0, le=10, description="Against tokens that occurred; 1 is off.")
    ] = 1.0
    presence_penalty: Annotated[
        float, Meta(ge=-2, le=2, description="Against tokens of the answer, once each.")
    ] = 0.0
    frequency_penalty: Annotated[
        float, Meta(ge=-2, le=2, description="Against tokens of the answer, per occurrence.")
    ] = 0.0
    logit_bias: Annotated[
        dict[TokenId, Bias],
        Meta(max_length=1024, description="Added to the logits, by token ID."),
    ] = {}
    stop_token_ids: Annotated[
        tuple[TokenId, ...],
        Meta(max_length=64, description="Tokens that end the answer; they have no text."),
    ] = ()
    min_tokens: Annotated[
        int, Meta(ge=0, le=MAX_TOKENS_LIMIT, description="Tokens before the answer may end.")
    ] = 0
    ignore_eos: Annotated[
        bool, Meta(description="Go on where the model itself would end the answer.")
    ] = False
    n: Annotated[int, Meta(ge=1, le=16, description="Answers to make from the prompt.")] = 1
    logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=20)] | None,
        Meta(description="Report the chosen tokens' probabilities, and so many alternatives."),
    ] = None
    echo: Annotated[bool, Meta(description="Put the prompt before the answer.")] = False
    append: Annotated[
        str | tuple[Message, ...] | None,
        Meta(description="Text or messages to add to what is stored under `prompt_id`."),
    ] = None
    if_version: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="The version under `prompt_id` that must be there when the job starts."),
    ] = None
    allow_reset: Annotated[
        bool, Meta(description="Let an engine that cannot continue an answer begin it anew.")
    ] = False
    queue_deadline_s: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Seconds until the job must have started, or it expires."),
    ] = None
    run_deadline_s: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Seconds that the job may run from its first start, or it expires."),
    ] = None
    durable: Annotated[bool, Meta(description="Accept the job only once Redis has it on disk.")] = (
        False
    )


class SubmittedJob(msgspec.Struct, frozen=True):
    """The job is accepted: it will end in exactly one terminal event."""

    id: str
    status: JobState
    model: str
    created_at: str
    url: str
    events_url: str


class LinkView(msgspec.Struct, frozen=True):
    """Where who has no key can follow one job, until the link expires."""

    url: str
    expires_at: str


class ChoiceView(msgspec.Struct, frozen=True):
    """One answer of a job with several. ``logprobs`` is there where it was asked for."""

    index: int
    text: str
    finish_reason: FinishReason | None
    is_eos: bool | None
    logprobs: list[TokenLogprob] | msgspec.UnsetType = msgspec.UNSET


class JobView(msgspec.Struct, frozen=True):
    """A job as it stands. ``text`` is the answer so far, or whole; lists leave it out.

    With ``echo`` it begins with the prompt. ``choices`` is there where ``n`` is above 1; ``text``
    and ``logprobs`` are then the first answer's. ``prompt_version`` is the version that the job
    made under its prompt ID.
    """

    id: str
    status: JobState
    model: str
    priority: Priority
    created_at: str
    started_at: str | None
    finished_at: str | None
    deadline_at: str
    attempts: int
    worker: str | None
    finish_reason: FinishReason | None
    is_eos: bool | None
    usage: Usage | None
    timings: Timings | None
    error: ErrorInfo | None
    metadata: dict[str, str]
    events_url: str
    text: str | msgspec.UnsetType = msgspec.UNSET
    choices: list[ChoiceView] | msgspec.UnsetType = msgspec.UNSET
    logprobs: list[TokenLogprob] | msgspec.UnsetType = msgspec.UNSET
    prompt_version: int | None = None


class JobList(msgspec.Struct, frozen=True):
    """A page of jobs, newest first. ``next_cursor`` is null on the last one."""

    data: list[JobView]
    next_cursor: str | None


class CancelledJob(msgspec.Struct, frozen=True):
    """What the cancel met: a job that waited, one that ran (its end follows), or an ended one."""

    id: str
    status: JobState
    cancelled: Literal["queued", "running", "already_ended"]


class ModelView(msgspec.Struct, frozen=True):
    """A model that had a worker in the last day."""

    id: str
    object: Literal["model"]
    workers: int


class ModelList(msgspec.Struct, frozen=True):
    """The models, by name."""

    object: Literal["list"]
    data: list[ModelView]


class WorkerView(WorkerInfo, frozen=True, kw_only=True):
    """A live worker. ``load`` is running / capacity, ``lease_age_s`` the time since it renewed."""

    load: float
    lease_age_s: float


class WorkerList(msgspec.Struct, frozen=True):
    """The live workers, by model and ID."""

    data: list[WorkerView]


class PromptView(msgspec.Struct, frozen=True):
    """What a prompt ID stands for: ``length`` tokens, at this ``version``.

    ``worker`` holds their tensors; it is null when that worker is gone, which costs the next job a
    prefill and nothing else.
    """

    id: str
    model: str
    version: int
    length: int
    worker: str | None
    updated_at: str
    expires_at: str


class StreamControl(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Where a reader of a Durable Stream stands; follows every ``data`` event."""

    stream_next_offset: str
    stream_cursor: str | None = None
    up_to_date: bool = False
    stream_closed: bool = False


class Health(msgspec.Struct, frozen=True):
    """The process answers."""

    status: Literal["ok"]


class Readiness(msgspec.Struct, frozen=True):
    """Whether traffic should come here, and what is missing."""

    status: Literal["ready", "not_ready", "draining"]
    checks: dict[str, bool]


class ProblemView(msgspec.Struct, frozen=True):
    """RFC 9457: a stable ``type``, one sentence in ``detail`` that says what to do."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
