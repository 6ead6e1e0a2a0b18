"""The gateway's refusals: problem documents become errors, also where one ends a stream."""

import httpx2
import msgspec

from common.errors import URN
from headrace.errors import ApiError, ProtocolError
from headrace.views import ProblemDocument

_SHOWN_CHARS = 200


def problem_of(response: httpx2.Response) -> ApiError:
    """Return the refusal as an error, also where it is not a problem document (a proxy's page)."""
    try:
        problem = msgspec.json.decode(response.content, type=ProblemDocument)
    except msgspec.DecodeError:
        shown = " ".join(response.text.split())[:_SHOWN_CHARS]
        problem = ProblemDocument(type="unknown", detail=f"HTTP {response.status_code}: {shown}")
    return ApiError(
        response.status_code,
        problem.type.removeprefix(URN),
        problem.detail or problem.title or f"HTTP {response.status_code}",
        request_id=problem.request_id or response.headers.get("x-request-id", ""),
        retry_after_s=retry_after_s(response),
    )


def problem_of_event(data: str) -> ApiError:
    """Return the problem that ended a stream as an error."""
    try:
        problem = msgspec.json.decode(data, type=ProblemDocument)
    except msgspec.DecodeError as error:
        raise ProtocolError(
            f"the gateway sent a problem that this client cannot read: {error}"
        ) from error
    type_ = problem.type.removeprefix(URN)
    return ApiError(problem.status, type_, problem.detail or problem.title or type_)


def retry_after_s(response: httpx2.Response) -> float | None:
    """Return the seconds of ``Retry-After``; a date is left to the caller's own pause."""
    try:
        return max(float(response.headers["retry-after"]), 0.0)
    except (KeyError, ValueError):
        return None
