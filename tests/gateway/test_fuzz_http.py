"""Every HTTP door under requests made from ``/openapi.json``: it answers in time, as documented.

The gateway is a process of its own: hypothesis guards the random numbers of this one.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import httpx2
import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import CHECKS, load_all_checks

from common.api_keys import ApiKeyStore, Scope
from common.job_store import JobStore
from common.keys import Keys
from common.prompts import Commit, PromptIndex
from gateway import openapi
from gateway.identity import TENANT
from gateway.routes import DOORS, EVENT_STREAM, Door
from tests.gateway.fuzzing import EXAMPLES, profile
from tests.support.fleet import Fleet
from tests.support.jobs import MODEL, make_job
from tests.support.jobs import submit as submit_foreign
from tests.support.waiting import eventually

DEADLINE_S = 10.0
UNAUTHORIZED = 401
JOB_S = 0.5  # then every job has its end: no stream and no wait outlasts the deadline
MISSING = "job_" + "0" * 32
CONFORMANCE = ("status_code", "content_type", "response_headers", "response_schema")

Request = Case[Any]

pytestmark = pytest.mark.timeout(3600 if EXAMPLES else 120)


@dataclass(frozen=True)
class Target:
    """A gateway, and IDs that mean something there."""

    url: str
    job_ids: tuple[str, ...]


@pytest.fixture
async def target(fleet: Fleet, redis: Redis, keys: Keys, store: JobStore) -> Target:
    """A gateway with a prompt ID and jobs: ended, waiting, somebody else's, and none."""
    await fleet.start(workers=1, max_deadline_s=JOB_S, ping_s=0.1, resync_s=0.1)
    await PromptIndex(redis, keys, MODEL).commit(TENANT, "kept", Commit(MISSING, 1, "w1", (1,)))
    ended = await fleet.submit("Once", max_tokens=3, n=2, logprobs=1)
    await fleet.follow(ended)
    waiting = await fleet.submit("Once", max_tokens=1_000)
    foreign = await submit_foreign(store, make_job(deadline_s=JOB_S))
    return Target(fleet.urls[0], (ended, waiting, foreign.id, MISSING))


@pytest.fixture
async def callers(target: Target, redis: Redis, keys: Keys) -> Mapping[str, str]:
    """Those who knock, each with what it shows; the door is closed from now on."""
    store = ApiKeyStore(redis, keys)
    found = {"nobody": "", "stranger": f"hr_{'0' * 12}_{'a' * 43}", "nonsense": "nonsense"}
    for scope in Scope:
        found[scope] = str((await store.create(TENANT, (scope,)))[1])
    await eventually(lambda: is_closed(target))
    return found


async def is_closed(target: Target) -> bool:
    """Tell whether the gateway has heard of the keys; it looks every two seconds."""
    async with httpx2.AsyncClient(base_url=target.url, trust_env=False) as client:
        return (await client.get("/v1/jobs")).status_code == UNAUTHORIZED


def conformance() -> Any:
    """Return schemathesis' checks that an answer is as documented."""
    load_all_checks()
    return [CHECKS.get_one(f"{name}_conformance") for name in CONFORMANCE]


def cases(door: Door, job_ids: tuple[str, ...]) -> st.SearchStrategy[Request]:
    """Return requests for this door, right and wrong ones; most of them name something real."""
    config = schemathesis.Config.from_dict({"max-stream-events": 10_000})
    schema = schemathesis.openapi.from_dict(openapi.document("0"), config=config)
    operation = schema[openapi.template(door.path)][door.method]
    named: list[dict[str, str]] = [{}]
    if "{job_id}" in door.path:
        named += [{"job_id": job_id} for job_id in job_ids]
    if "{prompt_id" in door.path:
        named += [{"prompt_id": "kept"}, {"prompt_id": "a/b c"}]
    found = st.one_of(
        [
            operation.as_strategy(mode, path_parameters=ids or None)
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
            for ids in named
        ]
    )
    return found if door.body is None else st.one_of(found, found.map(with_sense))


def with_sense(case: Request) -> Request:
    """Return a request for a job that says what to do: what no schema can ask for."""
    if isinstance(case.body, dict):
        others = ("model", "messages", "append", "prompt_id", "if_version", "deadline_s")
        kept = {name: value for name, value in case.body.items() if name not in others}
        case.body = {**kept, "prompt": "Once"}
    return case


def call(case: Request, url: str, token: str | None = None) -> Response:
    """Send the request; fails on an answer that is late or not as documented."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    answer = case.call(url, headers=headers, timeout=DEADLINE_S)
    assert answer.elapsed < DEADLINE_S, "it hangs"
    assert answer.status_code != 500
    case.validate_response(answer, checks=conformance())
    kind = answer.headers.get("content-type", [""])[0]
    if kind.startswith(EVENT_STREAM):
        ends = (b'"finish_reason"', b'"streamClosed"')
        assert any(end in answer.content for end in ends), "the stream has no end"
    return answer


async def run(fuzz: Callable[[], None], door: Door) -> None:
    """Fuzz one door; a failure names it."""
    try:
        await asyncio.to_thread(fuzz)
    except BaseExceptionGroup as failures:  # schemathesis': it would end the loop of the test
        found = "\n\n".join(map(str, flat(failures)))
        raise AssertionError(f"{door.method} {door.path}\n{found}") from None


def flat(group: BaseExceptionGroup) -> Iterator[BaseException]:
    """Return what is in a group of groups."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from flat(error)
        else:
            yield error


def check_log(fleet: Fleet) -> None:
    """Fail when the gateway had a fault that no answer shows."""
    log = fleet.gateways[0].program.errors
    assert "request_failed" not in log
    assert "Traceback" not in log


async def test_every_door_answers_as_documented(target: Target, fleet: Fleet) -> None:
    """Whatever is asked: a documented status, type and body, in time, and never a 500."""
    for door in DOORS:

        @profile(20)
        @given(case=cases(door, target.job_ids))
        def fuzz(case: Request) -> None:
            call(case, target.url)

        await run(fuzz, door)
    check_log(fleet)


async def test_a_closed_door_stays_closed(
    target: Target, callers: Mapping[str, str], fleet: Fleet
) -> None:
    """Whatever is asked: 401 without a key, 403 without the scope, something else with it."""
    for door in DOORS:

        @profile(15)
        @given(case=cases(door, target.job_ids), who=st.sampled_from(sorted(callers)))
        def fuzz(case: Request, who: str) -> None:
            answer = call(case, target.url, callers[who])
            is_elsewhere = b"route-not-found" in answer.content  # an ID with a slash
            if door.scope is not None and not is_elsewhere:  # noqa: B023 - it runs before the next turn
                check_entry(door.scope, who, answer.status_code)  # noqa: B023

        await run(fuzz, door)
    check_log(fleet)


def check_entry(scope: Scope, who: str, status: int) -> None:
    """Fail unless the caller was let in, or refused, as its key says."""
    is_known, may_enter = who in list(Scope), who in (scope, Scope.ADMIN)
    assert (status == 401) == (not is_known)
    assert (status == 403) == (is_known and not may_enter)


@pytest.fixture
def wrong_document() -> Iterator[None]:
    """A document that knows neither a field of the jobs nor that a job can be missing."""
    right = openapi.document

    def wrong(version: str) -> dict[str, Any]:
        document = right(version)
        job = document["components"]["schemas"]["JobView"]
        job["properties"] = {name: of for name, of in job["properties"].items() if name != "text"}
        job["additionalProperties"] = False
        del document["paths"]["/v1/jobs/{job_id}"]["get"]["responses"]["404"]
        return document

    with patch.object(openapi, "document", wrong):
        yield


@pytest.mark.usefixtures("wrong_document")
async def test_what_is_not_as_documented_is_found(target: Target) -> None:
    """The control: the checks bite, on a body and on a status."""
    [door] = [door for door in DOORS if (door.method, door.path) == ("GET", "/v1/jobs/{job_id}")]
    for job_id in (target.job_ids[0], MISSING):

        @profile(5)
        @given(case=cases(door, (job_id,)).filter(lambda case: bool(case.path_parameters)))
        def fuzz(case: Request) -> None:
            call(case, target.url)

        with pytest.raises(AssertionError):
            await run(fuzz, door)
