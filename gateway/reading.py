"""Reads what clients send; says what is wrong with it, by name, in one sentence."""

from typing import TypeVar

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request

from common.errors import Problem
from common.names import MAX_NAME_LEN, is_job_id, is_name
from gateway.schemas import JobRequest

T = TypeVar("T")

MAX_KEY_LEN = 255

_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def bad_request(type_: str, detail: str) -> Problem:
    """Return the refusal of a request that can never succeed as it is."""
    return Problem(400, type_, detail)


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body; raises ``Problem`` above ``limit`` bytes without reading on."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            detail = f"The body is larger than {limit} bytes; send a shorter prompt."
            raise Problem(413, "body-too-large", detail)
    return bytes(body)


def decode_json(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the message; raises ``Problem`` that names what is wrong."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        detail = _explain(data, decoder.type) or f"{error}."
        raise bad_request("invalid-request", detail) from None
    except _UNDECODABLE as error:
        raise bad_request("invalid-json", f"The body is not valid JSON: {error}.") from None


def check_job_request(job: JobRequest) -> None:
    """Check what the types cannot say; raises ``Problem``."""
    if (job.prompt is None) == (job.messages is None):
        raise bad_request("invalid-request", "Give exactly one of `prompt` and `messages`.")
    has_text = job.prompt or any(message.content for message in job.messages or ())
    if not has_text:
        raise bad_request("invalid-request", "The prompt is empty; give it some text.")
    for field in ("model", "prompt_id"):
        name = getattr(job, field)
        if name is not None and not is_name(name):
            detail = (
                f"`{field}` may have letters, digits and . _ / : @ + - only, "
                f"start with a letter or digit, and be {MAX_NAME_LEN} characters at most."
            )
            raise bad_request("invalid-request", detail)


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
