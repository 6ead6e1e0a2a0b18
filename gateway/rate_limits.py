"""How much a tenant has left, as headers (draft-ietf-httpapi-ratelimit-headers-10), and refusals.

``queued`` counts jobs that may wait, ``tokens`` what may be asked for in a minute: a token for
every four bytes of the prompt, and ``max_tokens`` for every answer. A limit that is not set is not
told.
"""

import math

from common.errors import Problem
from common.jobs import Message
from common.limits import Admission, Limits, Verdict
from gateway.schemas import JobRequest

MINUTE_S = 60
QUEUE_RETRY_S = 5.0
_BYTES_PER_TOKEN = 4


def num_tokens(request: JobRequest) -> int:
    """Return how many tokens a job counts for: it is asked before anybody has tokenised it."""
    given = (request.prompt, request.messages, request.append)
    num_bytes = sum(_num_bytes(said) for said in given if said is not None)
    return math.ceil(num_bytes / _BYTES_PER_TOKEN) + request.max_tokens * request.n


def _num_bytes(said: str | tuple[Message, ...]) -> int:
    texts = [said] if isinstance(said, str) else [message.content for message in said]
    return sum(len(text.encode(errors="replace")) for text in texts)


def headers(limits: Limits, admission: Admission) -> dict[str, str]:
    """Return ``RateLimit-Policy`` and ``RateLimit``, nothing where there are no limits."""
    policies, states = [], []
    if limits.max_queued:
        policies.append(f'"queued";q={limits.max_queued}')
        states.append(f'"queued";r={max(0, admission.jobs_left)}')
    if limits.tokens_per_minute:
        policies.append(f'"tokens";q={limits.tokens_per_minute};w={MINUTE_S}')
        if admission.verdict in (Verdict.OK, Verdict.TOO_FAST):
            wait_s = math.ceil(admission.wait_s)
            states.append(f'"tokens";r={admission.tokens_left};t={wait_s}')
    if not states:
        return {}
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)}


def refusal(limits: Limits, admission: Admission, max_queued: int) -> Problem | None:
    """Return why the job is not admitted, None where it is."""
    match admission.verdict:
        case Verdict.OK:
            return None
        case Verdict.MODEL_FULL:
            type_, retry_s = "too-many-jobs", QUEUE_RETRY_S
            detail = f"{max_queued} jobs of this model wait, which is the limit; try again later."
        case Verdict.TENANT_FULL:
            type_, retry_s = "tenant-queue-full", QUEUE_RETRY_S
            detail = (
                f"{limits.max_queued} of your jobs wait, which is your limit; let some of them end."
            )
        case Verdict.TOO_FAST:
            type_, retry_s = "too-many-tokens", admission.wait_s
            detail = (
                f"You may ask for {limits.tokens_per_minute} tokens a minute for this model; "
                "wait, or ask for fewer."
            )
    told = headers(limits, admission)
    return Problem(429, type_, detail, retry_after_s=retry_s, headers=told)


def too_large(limits: Limits, tokens: int) -> Problem | None:
    """Return the refusal of a job that can never be admitted, None for any other."""
    if not limits.tokens_per_minute or tokens <= limits.tokens_per_minute:
        return None
    detail = (
        f"The job asks for {tokens} tokens, and your limit is {limits.tokens_per_minute} a minute; "
        "lower `max_tokens` or shorten the prompt."
    )
    return Problem(400, "job-too-large", detail)
