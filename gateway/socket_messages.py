"""The messages of ``/v1/ws``. Every message of a client is answered or refused by name.

``ref`` is the client's own word for a request; the answer carries it back.
"""

import msgspec

from common.jobs import JobState
from gateway.schemas import JobRequest


class _FromClient(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    pass


class Submit(_FromClient, frozen=True, tag="submit"):
    """Accept a job; with ``subscribe`` its events follow on this socket."""

    job: JobRequest
    ref: str | None = None
    idempotency_key: str | None = None
    subscribe: bool = True


class Subscribe(_FromClient, frozen=True, tag="subscribe"):
    """Send the job's events that follow number ``after``."""

    job: str
    after: int = -1
    ref: str | None = None


class Unsubscribe(_FromClient, frozen=True, tag="unsubscribe"):
    """Send no more events of the job."""

    job: str
    ref: str | None = None


class Cancel(_FromClient, frozen=True, tag="cancel"):
    """End the job early."""

    job: str
    ref: str | None = None


class Reference(msgspec.Struct, frozen=True):
    """What an answer carries back, of a message that may be wrong otherwise."""

    ref: str | None = None


FromClient = Submit | Subscribe | Unsubscribe | Cancel


class _ToClient(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    pass


class Submitted(_ToClient, frozen=True, tag="submitted"):
    """The job is accepted."""

    job: str
    status: JobState
    model: str
    ref: str | None = None


class Subscribed(_ToClient, frozen=True, tag="subscribed"):
    """The job's events after number ``after`` follow; the terminal one ends the subscription."""

    job: str
    after: int
    ref: str | None = None


class Unsubscribed(_ToClient, frozen=True, tag="unsubscribed"):
    """No more events of the job follow."""

    job: str
    ref: str | None = None


class CancelAnswer(_ToClient, frozen=True, tag="cancelled"):
    """The cancel met the job as ``cancelled`` says: queued, running or already_ended."""

    job: str
    status: JobState
    cancelled: str
    ref: str | None = None


class SocketProblem(msgspec.Struct, frozen=True):
    """What is wrong, as in RFC 9457."""

    type: str
    title: str
    status: int
    detail: str


class Refused(_ToClient, frozen=True, tag="error"):
    """A message was refused, or (with ``job`` and no ``ref``) a subscription cannot go on."""

    error: SocketProblem
    job: str | None = None
    ref: str | None = None


ToClient = Submitted | Subscribed | Unsubscribed | CancelAnswer | Refused
