"""Errors as RFC 9457 problem documents; no input makes a 500, and a 500 says nothing secret."""

import math
from typing import Any

import msgspec
import structlog
from redis.exceptions import OutOfMemoryError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from common.connections import UNAVAILABLE
from common.errors import Problem
from gateway.schemas import ProblemView

_log = structlog.get_logger()

UNAUTHENTICATED = 401
_TYPES = {404: "route-not-found", 405: "method-not-allowed"}
_DETAILS = {
    404: "There is nothing at this path; see /openapi.json for what there is.",
    405: "This path does not take this method; see /openapi.json for what it takes.",
}


def problem_response(request: Request, problem: Problem) -> Response:
    """Return the problem as the client reads it."""
    view = ProblemView(
        type=problem.urn,
        title=problem.title,
        status=problem.status,
        detail=problem.detail,
        instance=request.url.path,
        request_id=request.scope.get("request_id", ""),
    )
    headers = {
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        **problem.headers,
    }
    if problem.status == UNAUTHENTICATED:
        headers["WWW-Authenticate"] = 'Bearer realm="headrace"'
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(problem.retry_after_s))
    return Response(msgspec.json.encode(view), problem.status, headers, "application/problem+json")


async def on_problem(request: Request, error: Exception) -> Response:
    """Answer one of our own refusals."""
    assert isinstance(error, Problem)
    return problem_response(request, error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer the framework's refusals in our own form."""
    assert isinstance(error, HTTPException)
    type_ = _TYPES.get(error.status_code, "refused")
    detail = _DETAILS.get(error.status_code, str(error.detail))
    response = problem_response(request, Problem(error.status_code, type_, detail))
    response.headers.update(error.headers or {})
    return response


def redis_unavailable() -> Problem:
    """Return the refusal while Redis is away."""
    detail = "Redis does not answer right now; nothing was lost, try again in a moment."
    return Problem(503, "redis-unavailable", detail, retry_after_s=1)


async def on_unavailable(request: Request, error: Exception) -> Response:
    """Fail fast while Redis is away: the client knows best when to try again."""
    _log.warning("redis_unavailable", error=str(error), path=request.url.path)
    return problem_response(request, redis_unavailable())


async def on_full(request: Request, error: Exception) -> Response:
    """Answer a Redis that is out of memory."""
    _log.error("redis_out_of_memory", error=str(error))
    detail = "Redis is out of memory and takes no new jobs; try again later."
    return problem_response(request, Problem(503, "redis-full", detail, retry_after_s=10))


async def on_left(request: Request, _error: Exception) -> Response:
    """Answer a client that left in the middle of its request: no fault of ours."""
    return problem_response(request, Problem(400, "client-left", "The request has no end."))


async def on_unreadable(request: Request, error: Exception) -> Response:
    """Answer a job that another version of Headrace wrote, or that was damaged in Redis."""
    _log.error("job_unreadable", path=request.url.path, error=str(error))
    detail = "The job's record cannot be read by this gateway's version; upgrade the older one."
    return problem_response(request, Problem(502, "job-unreadable", detail))


async def on_bug(request: Request, error: Exception) -> Response:
    """Answer our own fault; the log has the rest under the same request ID."""
    _log.error("request_failed", path=request.url.path, exc_info=error)
    detail = "This is a fault of the gateway; report it with the request ID."
    return problem_response(request, Problem(500, "internal-error", detail))


HANDLERS: dict[Any, Any] = {
    Problem: on_problem,
    HTTPException: on_http_exception,
    ClientDisconnect: on_left,
    **dict.fromkeys(UNAVAILABLE, on_unavailable),
    OutOfMemoryError: on_full,
    msgspec.MsgspecError: on_unreadable,
    Exception: on_bug,
}
