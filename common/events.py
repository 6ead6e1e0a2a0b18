"""The events of a job's log: what happened, in order, for everyone who follows it.

An event's number ``n`` is its place in the log (0, 1, 2 …). It is not part of the payload: the log
entry's ID and the doorbell carry it. Text is a delta; the sum of the deltas is the answer.
"""

import msgspec

from common.jobs import FinishReason, JobState


class _Event(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", gc=False):
    @property
    def kind(self) -> str:
        """The event's name on the wire."""
        return str(type(self).__struct_config__.tag)


class Accepted(_Event, frozen=True, tag="accepted"):
    """Event 0: the job is durable and will end in exactly one terminal event."""

    job: str
    model: str


class Started(_Event, frozen=True, tag="started"):
    """A worker took the job. ``attempt`` counts from 1.

    ``cache`` says how much of the prompt the worker held when it took the job: ``hit`` (all that
    can be held), ``partial`` or ``miss``; empty where the engine does not know.
    """

    worker: str
    attempt: int
    cache: str = ""


class Alternative(msgspec.Struct, frozen=True, gc=False):
    """A token that was likely at one position; ``logprob`` is a natural logarithm."""

    id: int
    text: str
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """The chosen token of one position, and the most likely ones there, most likely first.

    The probabilities are the model's own, before temperature, penalties and truncation.
    """

    id: int
    text: str
    logprob: float
    top: tuple[Alternative, ...] = ()


class Tokens(_Event, frozen=True, tag="tokens"):
    """New tokens. ``index`` is the position of the first of ``ids`` among the generated tokens.

    ``ids`` holds every generated token, also one whose text is still held back (half a character,
    a possible stop string), so that another worker can rebuild the decoder's state exactly.
    ``logprobs`` belongs to ``ids``, where it was asked for. ``choice`` is the number of the answer
    in a job with several. With ``echo`` the text is the prompt's, and ``ids`` is empty.
    """

    index: int
    ids: tuple[int, ...]
    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    echo: bool = False


class Retrying(_Event, frozen=True, tag="retrying"):
    """The job waits again: its worker died or was handed over (``reason`` says which)."""

    reason: str


class Reset(_Event, frozen=True, tag="reset"):
    """Discard the text so far: this attempt cannot continue it."""

    reason: str


class Usage(msgspec.Struct, frozen=True):
    """Token counts. ``cached_tokens`` of the prompt needed no prefill."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Timings(msgspec.Struct, frozen=True):
    """Durations in seconds, each taken between two moments of one clock.

    ``queue_s``: accepted → first started (Redis's clock). The others are of the last attempt:
    ``prefill_s``: the forward passes over the prompt. ``first_token_s``: started → first new token.
    ``decode_s``: first → last new token. So TTFT is ``queue_s + first_token_s`` where there was one
    attempt, and TPOT of a single answer is ``decode_s / (new tokens - 1)``.
    """

    queue_s: float = 0.0
    prefill_s: float = 0.0
    first_token_s: float = 0.0
    decode_s: float = 0.0


class ErrorInfo(msgspec.Struct, frozen=True):
    """Why a job failed: a stable ``type`` and one sentence that says what to do."""

    type: str
    detail: str


class ChoiceEnd(msgspec.Struct, frozen=True):
    """How one answer of a job with several ended."""

    choice: int
    finish_reason: FinishReason
    is_eos: bool


class _Ended(_Event, frozen=True, omit_defaults=False):
    finish_reason: FinishReason
    is_eos: bool = False
    usage: Usage = Usage()
    timings: Timings = Timings()
    attempts: int = 0
    worker: str = ""
    error: ErrorInfo | None = None
    choices: tuple[ChoiceEnd, ...] = ()
    prompt_version: int = 0


class Completed(_Ended, frozen=True, tag="completed"):
    """The answer is whole. ``is_eos`` is false when it can be continued.

    ``choices`` has an entry per answer where there are several; ``finish_reason`` and ``is_eos``
    are then the first one's. ``prompt_version`` is the version of the stored sequence that the job
    made under its prompt ID, 0 without one.
    """


class Failed(_Ended, frozen=True, tag="failed"):
    """The job could not be done; ``error`` says why."""


class Cancelled(_Ended, frozen=True, tag="cancelled"):
    """Somebody asked for the end."""


class Expired(_Ended, frozen=True, tag="expired"):
    """The job's deadline passed."""


Ended = Completed | Failed | Cancelled | Expired
Event = Accepted | Started | Tokens | Retrying | Reset | Completed | Failed | Cancelled | Expired

STATE_OF_END: dict[type, JobState] = {
    Completed: JobState.COMPLETED,
    Failed: JobState.FAILED,
    Cancelled: JobState.CANCELLED,
    Expired: JobState.EXPIRED,
}

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """Return the payload that the log and the doorbell carry."""
    return _encoder.encode(event)


def decode_event(payload: bytes) -> Event:
    """Return the event of a payload; raises ``msgspec.DecodeError`` on damaged data."""
    return _decoder.decode(payload)


def is_terminal(event: Event) -> bool:
    """Tell whether the log ends with this event."""
    return isinstance(event, _Ended)
