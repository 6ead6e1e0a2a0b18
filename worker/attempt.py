"""One attempt at a job: engine outputs become numbered events. Pure, no I/O."""

import time
from dataclasses import dataclass, replace

import msgspec

from common.deadlines import passed
from common.emitted import NOTHING, emitted_choices
from common.events import (
    Cancelled,
    ChoiceEnd,
    Completed,
    Ended,
    ErrorInfo,
    Event,
    Expired,
    Failed,
    Reset,
    Timings,
    Usage,
    encode_event,
)
from common.job_record import Snapshot
from common.jobs import FinishReason
from common.lanes import Claim
from worker.engine.protocol import Delta, Finished, Output, Prefilled, Refused, Request
from worker.pending import Pending


@dataclass(frozen=True, slots=True)
class Grant:
    """One worker's hold on a job, as ``start`` granted it."""

    claim: Claim
    snapshot: Snapshot
    epoch: int
    number: int
    queue_s: float
    worker_id: str
    base: tuple[int, ...] = ()  # the stored sequence that the job builds on

    @property
    def request_id(self) -> str:
        """The engine's name for this attempt."""
        return f"{self.claim.job_id}:{self.epoch}"


class AttemptLog:
    """The log of one attempt as this worker knows it.

    ``payloads[n]`` is event ``n`` of the job, those of earlier attempts included, so that a server
    that lost its last second can be given everything again. ``confirmed`` events are in Redis.
    """

    def __init__(self, grant: Grant, started: Event) -> None:
        self.grant = grant
        self.payloads = [*grant.snapshot.payloads, encode_event(started)]
        self.confirmed = len(self.payloads)
        self.end: Ended | None = None  # set once; nothing is accepted after it
        record = grant.snapshot.record
        self.request = Request(  # what the engine works on now
            grant.request_id,
            record.spec,
            emitted_choices(grant.snapshot.events, record.spec.n),
            record.tenant,
            grant.base,
        )
        self.sequence: tuple[int, ...] = ()  # what the engine left behind, set with the end
        self.expire = False  # the deadline passed: the engine was cancelled for that
        self.appended_at = time.monotonic()  # when Redis was last asked about the job
        self._started_at = time.monotonic()
        self._first_token_at = 0.0
        self._last_token_at = 0.0
        self._pending = Pending(self.request.emitted)  # what the next events will say
        self._prefilled = Prefilled(0, 0, 0.0)

    @property
    def job_id(self) -> str:
        """The job's ID."""
        return self.grant.claim.job_id

    @property
    def is_first_token(self) -> bool:
        """Tell whether the first new token waits to be sent: it is worth a flush of its own."""
        is_first = 0 < self._first_token_at == self._last_token_at
        return is_first and bool(self._pending)

    @property
    def is_sent(self) -> bool:
        """Tell whether Redis has every event but the end."""
        return not self._pending and self.confirmed >= len(self.payloads)

    def take(self, output: Output) -> None:
        """Accept an engine's output; an end is kept until everything before it is confirmed."""
        if self.end is not None:
            return
        match output:
            case Prefilled():
                self._prefilled = output
            case Delta():
                self._take_delta(output)
            case Finished():
                self.end = self._ended(output)
                self.sequence = output.sequence
            case Refused():
                error = ErrorInfo(output.type, output.detail)
                broken = Finished(FinishReason.ERROR, completion_tokens=output.completion_tokens)
                self.end = self._build_end(Failed, broken, error)

    def restart(self, reason: str) -> None:
        """Begin the answer anew, and tell its readers: the engine cannot continue the old one."""
        self.payloads.append(encode_event(Reset(reason)))
        old = self.request
        nothing = (NOTHING,) * old.spec.n
        self.request = replace(old, id=f"{old.id}:anew", emitted=nothing)
        self._pending = Pending(nothing)

    def unsent(self) -> tuple[bytes, ...]:
        """Return the payloads from ``confirmed`` on; what is pending becomes events."""
        self.payloads += map(encode_event, self._pending.drain())
        return tuple(self.payloads[self.confirmed :])

    def confirm(self, next_n: int) -> None:
        """Take Redis's word for the length of the log; it can also have lost its tail."""
        if next_n < self.confirmed and isinstance(self.end, Completed):
            # What was stored under the prompt ID may be lost as well: it must be stored again.
            self.end = msgspec.structs.replace(self.end, prompt_version=0)
        self.confirmed = min(next_n, len(self.payloads))
        self.appended_at = time.monotonic()

    def _take_delta(self, delta: Delta) -> None:
        if delta.ids or (delta.text and not delta.echo):  # a remote engine has no IDs
            self._last_token_at = time.monotonic()
            self._first_token_at = self._first_token_at or self._last_token_at
        self._pending.take(delta)

    def _ended(self, finished: Finished) -> Ended:
        if finished.reason is not FinishReason.CANCELLED:
            return self._build_end(Completed, finished)
        if not self.expire:
            return self._build_end(Cancelled, finished)
        choices = tuple(map(_expired, finished.choices))
        late = replace(finished, reason=FinishReason.EXPIRED, choices=choices)
        return self._build_end(Expired, late, passed(self.request.spec, self.grant.queue_s))

    def _build_end(
        self,
        kind: type[Completed | Failed | Cancelled | Expired],
        finished: Finished,
        error: ErrorInfo | None = None,
    ) -> Ended:
        num_ids = finished.completion_tokens
        return kind(
            finished.reason,
            is_eos=finished.is_eos,
            usage=Usage(
                self._prefilled.prompt_tokens,
                self._pending.num_ids if num_ids is None else num_ids,
                self._prefilled.cached_tokens,
            ),
            timings=self._timings(),
            attempts=self.grant.number,
            worker=self.grant.worker_id,
            error=error,
            choices=finished.choices,
        )

    def _timings(self) -> Timings:
        has_tokens = self._first_token_at > 0
        return Timings(
            queue_s=self.grant.queue_s,
            prefill_s=self._prefilled.prefill_s,
            first_token_s=self._first_token_at - self._started_at if has_tokens else 0.0,
            decode_s=self._last_token_at - self._first_token_at,
        )


def _expired(choice: ChoiceEnd) -> ChoiceEnd:
    """Return how an answer ended whose job was cancelled for its deadline."""
    if choice.finish_reason is FinishReason.CANCELLED:
        return ChoiceEnd(choice.choice, FinishReason.EXPIRED, choice.is_eos)
    return choice
