"""What can go wrong between a client and its gateway.

HeadraceError
└── ClientError
    ├── Unreachable      no gateway answers at this address
    ├── ApiError         the gateway refused, with a problem document
    ├── ProtocolError    the answer is not one that this client understands
    ├── StreamCut        the events stopped before the end, and resuming did not help
    └── JobNotCompleted  the job ended, but without a whole answer
"""

from common.errors import HeadraceError


class ClientError(HeadraceError):
    """The root of the client's errors; the text is one line for a person."""


class Unreachable(ClientError):
    """No gateway answers."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"no gateway answers at {url} ({reason}); start one with `headrace up`")
        self.url = url
        self.reason = reason


class ApiError(ClientError):
    """The gateway's refusal (RFC 9457). ``type`` is stable: the last part of the problem's URN.

    ``status`` is 0 for a problem that ended a stream.
    """

    def __init__(
        self,
        status: int,
        type_: str,
        detail: str,
        *,
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        reference = f" (request {request_id})" if request_id else ""
        wait = f" (again in {retry_after_s:g} s)" if retry_after_s is not None else ""
        super().__init__(f"{detail}{wait}{reference}")
        self.status = status
        self.type = type_
        self.detail = detail
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class ProtocolError(ClientError):
    """The answer is not one that this client understands: another program, or another version."""


class StreamCut(ClientError):
    """The events stopped before a terminal one. ``last_n`` is the last event seen, -1 for none."""

    def __init__(self, job_id: str, last_n: int, reason: str) -> None:
        super().__init__(
            f"the events of {job_id} stopped after number {last_n} ({reason}); "
            f"go on with `headrace follow {job_id}`"
        )
        self.job_id = job_id
        self.last_n = last_n


class JobNotCompleted(ClientError):
    """The job ended as failed, cancelled or expired."""
