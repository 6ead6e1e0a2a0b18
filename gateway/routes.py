"""Every route of the gateway: what answers it, and what ``/openapi.json`` says of it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from common.api_keys import Scope
from common.events import Event
from gateway import durable_streams, events, fleet, jobs, listing, prompts, schemas

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter or a header."""

    name: str
    where: str
    schema: Mapping[str, object]
    description: str


@dataclass(frozen=True, slots=True)
class Door:
    """One method of one path. ``answers`` maps a status to its type, None for no body.

    ``frames`` says that ``200`` may also be a stream, of server-sent events with this JSON in them.

    ``scope`` is what the caller's key must allow, None where no key is asked for. A door that takes
    a link lets in who has one for the path's job.
    """

    method: str
    path: str
    endpoint: Endpoint
    summary: str
    answers: Mapping[int, Any]
    body: type | None = None
    parameters: tuple[Parameter, ...] = ()
    problems: tuple[int, ...] = field(default=(400, 503))
    scope: Scope | None = Scope.READ
    takes_link: bool = False
    frames: Any = None


EVENT_STREAM = "text/event-stream"
PLAIN = "text/plain"

_INTEGER = {"type": "integer"}
_STRING = {"type": "string"}
_KEY = Parameter(
    "Idempotency-Key", "header", _STRING,
    "Repeat a submit safely: the same key and payload answer with the same job.",
)  # fmt: skip
_AFTER = Parameter(
    "after", "query", {"type": "integer", "minimum": -1, "default": -1},
    "Number of the last event that you have.",
)  # fmt: skip
_LAST_EVENT_ID = Parameter(
    "Last-Event-ID", "header", _INTEGER, "The same, as an EventSource sends it; it wins."
)
_WAIT = Parameter(
    "wait", "query", {"type": "number", "minimum": 0, "maximum": jobs.MAX_WAIT_S, "default": 0},
    "Hold the answer for up to this many seconds, until the job ends.",
)  # fmt: skip
_STATUS = Parameter(
    "status", "query", {"$ref": "#/components/schemas/JobState"}, "Only jobs in this state."
)
_LIMIT = Parameter(
    "limit", "query", {"type": "integer", "minimum": 1, "maximum": listing.MAX_PAGE, "default": 50},
    "Jobs per page.",
)  # fmt: skip
_LINK = Parameter(
    "link", "query", _STRING, "A signed link's proof, for clients that cannot send headers."
)
_TTL = Parameter(
    "ttl", "query",
    {"type": "integer", "minimum": 1, "maximum": jobs.MAX_LINK_TTL_S,
     "default": jobs.LINK_TTL_S},
    "Seconds for which the link opens a stream.",
)  # fmt: skip
_MODEL = Parameter("model", "query", _STRING, "The prompt's model; without it the default model.")
_OFFSET = Parameter(
    "offset", "query", {"type": "string", "pattern": "^(-1|now|[0-9]{16})$", "default": "-1"},
    "`Stream-Next-Offset` of the answer before, `-1` for the beginning, `now` for the end.",
)  # fmt: skip
_LIVE = Parameter(
    "live", "query", {"type": "string", "enum": ["long-poll", "sse"]},
    "Wait for what comes next, for one answer or as a stream; needs an `offset`.",
)  # fmt: skip
_STREAM_CURSOR = Parameter("cursor", "query", _STRING, "`Stream-Cursor` of the answer before.")
_IF_NONE_MATCH = Parameter("If-None-Match", "header", _STRING, "`ETag` of an earlier answer.")
_CURSOR = Parameter("cursor", "query", _STRING, "`next_cursor` of the page before.")

DOORS = (
    Door("POST", "/v1/jobs", jobs.submit, "Submit a job",
         {202: schemas.SubmittedJob, 200: EVENT_STREAM}, schemas.JobRequest, (_KEY,),
         (400, 404, 413, 422, 429, 503), scope=Scope.SUBMIT),
    Door("GET", "/v1/jobs", listing.list_jobs, "List jobs, newest first",
         {200: schemas.JobList}, None, (_STATUS, _LIMIT, _CURSOR)),
    Door("GET", "/v1/jobs/{job_id}", jobs.show, "Read a job",
         {200: schemas.JobView}, None, (_WAIT,), (400, 404, 503)),
    Door("DELETE", "/v1/jobs/{job_id}", jobs.cancel, "Cancel a job",
         {200: schemas.CancelledJob}, None, (), (404, 503), scope=Scope.SUBMIT),
    Door("POST", "/v1/jobs/{job_id}/link", jobs.link, "Make a link to a job's events",
         {200: schemas.LinkView}, None, (_TTL,), (400, 404, 503)),
    Door("GET", "/v1/jobs/{job_id}/events", events.follow, "Follow a job's events",
         {200: EVENT_STREAM, 204: None}, None, (_AFTER, _LAST_EVENT_ID, _LINK),
         (400, 404, 409, 503), takes_link=True),
    Door("GET", "/v1/streams/{job_id}", durable_streams.read,
         "Read a job's events as a Durable Stream; HEAD tells where it ends",
         {200: list[Event], 204: None, 304: None}, None,
         (_OFFSET, _LIVE, _STREAM_CURSOR, _IF_NONE_MATCH, _LINK), (400, 404, 409, 503),
         takes_link=True, frames=list[Event] | schemas.StreamControl),
    Door("GET", "/v1/prompts/{prompt_id:path}", prompts.show_prompt, "Read a prompt ID",
         {200: schemas.PromptView}, None, (_MODEL,), (404, 503)),
    Door("DELETE", "/v1/prompts/{prompt_id:path}", prompts.forget_prompt, "Forget a prompt ID",
         {204: None}, None, (_MODEL,), (404, 503), scope=Scope.SUBMIT),
    Door("GET", "/v1/models", fleet.models, "List models", {200: schemas.ModelList},
         problems=(503,)),
    Door("GET", "/v1/workers", fleet.workers, "List live workers", {200: schemas.WorkerList},
         problems=(503,)),
    Door("GET", "/healthz", fleet.healthz, "Is the process alive?", {200: schemas.Health},
         problems=(), scope=None),
    Door("GET", "/readyz", fleet.readyz, "Should traffic come here?",
         {200: schemas.Readiness, 503: schemas.Readiness}, problems=(), scope=None),
    Door("GET", "/metrics", fleet.metrics, "Prometheus metrics", {200: PLAIN}, problems=(503,),
         scope=Scope.ADMIN),
)  # fmt: skip
