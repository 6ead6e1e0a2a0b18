"""Reads what clients send; says what is wrong with it, by name, in one sentence."""

from typing import TypeVar

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request

from common.errors import Problem
from common.names import MAX_NAME_LEN, is_job_id, is_name
from gateway.schemas import JobRequest
from gateway.violations import sentence_of

T = TypeVar("T")

MAX_KEY_LEN = 255
_PROMPTS = ("prompt", "messages", "append")

_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def bad_request(type_: str, detail: str) -> Problem:
    """Return the refusal of a request that can never succeed as it is."""
    return Problem(400, type_, detail)


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body; raises ``Problem`` above ``limit`` bytes without reading on."""
    declared = request.headers.get("content-length", "0")
    too_large = Problem(
        413, "body-too-large", f"The body is larger than {limit} bytes; send a shorter prompt."
    )
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def decode_json(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the message; raises ``Problem`` that names what is wrong."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        detail = _explain(data, decoder.type) or sentence_of(str(error))
        raise bad_request("invalid-request", detail) from None
    except _UNDECODABLE as error:
        raise bad_request("invalid-json", f"The body is not valid JSON: {error}.") from None


def check_job_request(job: JobRequest) -> None:
    """Check what the types cannot say; raises ``Problem``."""
    for check in (_check_prompt, _check_stored, _check_lengths, _check_names):
        detail = check(job)
        if detail is not None:
            raise bad_request("invalid-request", detail)


def _check_prompt(job: JobRequest) -> str | None:
    given = [f"`{name}`" for name in _PROMPTS if getattr(job, name) is not None]
    if len(given) > 1:
        return f"Give one of `prompt`, `messages` and `append`, not {' and '.join(given)}."
    if not given and job.prompt_id is None:
        return "Give a `prompt` or `messages`, or the `prompt_id` of what is to be continued."
    if given and not _has_text(job):
        return f"The prompt is empty; give {given[0]} some text."
    return None


def _has_text(job: JobRequest) -> bool:
    for said in (job.prompt, job.messages, job.append):
        if isinstance(said, str) and said:
            return True
        if isinstance(said, tuple) and any(message.content for message in said):
            return True
    return False


def _check_stored(job: JobRequest) -> str | None:
    if job.prompt_id is None:
        for name in ("append", "if_version"):
            if getattr(job, name) is not None:
                return f"`{name}` needs a `prompt_id`: it speaks of what is stored under that."
    elif job.n > 1:
        return (
            f"`n` is {job.n}, but one answer is stored under a `prompt_id`; "
            "set `n` to 1 or leave `prompt_id` out."
        )
    return None


def _check_lengths(job: JobRequest) -> str | None:
    if job.min_tokens > job.max_tokens:
        return (
            f"`min_tokens` ({job.min_tokens}) is above `max_tokens` ({job.max_tokens}); "
            "lower it or raise `max_tokens`."
        )
    return None


def _check_names(job: JobRequest) -> str | None:
    for field in ("model", "prompt_id"):
        name = getattr(job, field)
        if name is not None and not is_name(name):
            return (
                f"`{field}` may have letters, digits and . _ / : @ + - only, "
                f"start with a letter or digit, and be {MAX_NAME_LEN} characters at most."
            )
    return None


def read_job_id(text: str) -> str:
    """Return the job ID; a malformed one answers like a missing job."""
    if not is_job_id(text):
        detail = "There is no such job: a job ID is `job_` and 32 hexadecimal digits."
        raise Problem(404, "job-not-found", detail)
    return text


def read_after(query: QueryParams, last_event_id: str | None) -> int:
    """Return the number of the last event that the client has, -1 for none.

    ``Last-Event-ID`` wins: an ``EventSource`` repeats its first URL when it reconnects.
    """
    text = last_event_id or query.get("after") or query.get("last_event_id") or "-1"
    return read_number("after", text, -1, 2**53)


def read_number(name: str, text: str, low: int, high: int) -> int:
    """Return the whole number; raises ``Problem`` outside ``low`` … ``high``."""
    digits = text.removeprefix("-")
    if not (
        digits.isascii() and digits.isdigit() and len(digits) < 20 and low <= int(text) <= high
    ):
        detail = f"`{name}` must be a whole number from {low} to {high}, not {text[:40]!r}."
        raise bad_request("invalid-parameter", detail)
    return int(text)


def read_seconds(name: str, text: str, high: float) -> float:
    """Return the duration; raises ``Problem`` outside 0 … ``high``."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= high:  # also refuses nan
        detail = f"`{name}` must be a number of seconds from 0 to {high:g}, not {text[:40]!r}."
        raise bad_request("invalid-parameter", detail)
    return value


def read_idempotency_key(header: str | None) -> str | None:
    """Return the key of the ``Idempotency-Key`` header (draft-ietf-httpapi-idempotency-key).

    The draft asks for a structured-field string, ``"…"``; a bare value is taken as it is, because
    most clients send that.
    """
    if header is None:
        return None
    key = header.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    if not key or len(key) > MAX_KEY_LEN or not (key.isascii() and key.isprintable()):
        detail = f"Idempotency-Key must be 1 to {MAX_KEY_LEN} printable ASCII characters."
        raise bad_request("invalid-idempotency-key", detail)
    return key


def _explain(data: bytes, type_: object) -> str | None:
    """Name every unknown field, not only the first; None where there is none.

    The type's decoder stops at the first fault, so what follows it may not even be JSON.
    """
    if not (isinstance(type_, type) and issubclass(type_, msgspec.Struct)):
        return None
    try:
        given = _fields_decoder.decode(data)
    except _UNDECODABLE:
        return None
    unknown = sorted(set(given) - set(type_.__struct_fields__))
    if not unknown or not type_.__struct_config__.forbid_unknown_fields:
        return None
    names = ", ".join(f"`{name[:64]}`" for name in unknown[:20])
    return f"Unknown field {names}; see /openapi.json for the known ones."
