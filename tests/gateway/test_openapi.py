"""``/openapi.json``: complete, valid, and true."""

from importlib import metadata
from typing import Any

import httpx2
import msgspec
import pytest
from redis.asyncio import Redis
from starlette.routing import Route

from common.keys import Keys
from common.prompts import Commit, PromptIndex
from common.registry import KvCacheInfo
from gateway import openapi
from gateway.app import _routes
from gateway.identity import TENANT
from gateway.routes import DOORS, EVENT_STREAM
from gateway.schemas import JobRequest
from tests.gateway.doors import submit
from tests.gateway.player import Player
from tests.gateway.schema import check_schema

# https://spec.openapis.org/oas/v3.1.0: the fields of each object that we write
OPERATION = {"operationId", "summary", "responses", "parameters", "requestBody", "security"}
PARAMETER = {"name", "in", "required", "schema", "description"}


@pytest.fixture
def document() -> dict[str, Any]:
    """The document as a client reads it."""
    body: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(openapi.document("1.2.3")))
    return body


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (path, method, operation) of the document."""
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_route_is_in_it(document: dict[str, Any]) -> None:
    """And nothing else is."""
    served = {
        (openapi.template(route.path), method.lower())
        for route in _routes()
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert {(path, method) for path, method, _ in operations(document)} == served


async def test_it_is_served(client: httpx2.AsyncClient, document: dict[str, Any]) -> None:
    """At its usual place, with the version of the package."""
    response = await client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {**document, "info": response.json()["info"]}
    assert response.json()["info"]["version"] == metadata.version("headrace")


def test_its_form_is_that_of_openapi_3_1(document: dict[str, Any]) -> None:
    """Only fields that 3.1 knows, unique operation IDs, a schema in every content."""
    assert document["openapi"] == "3.1.0"
    assert set(document) == {"openapi", "info", "paths", "components"}
    assert {"title", "version"} <= set(document["info"])
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    for path, _, operation in operations(document):
        assert set(operation) <= OPERATION
        for response in operation["responses"].values():
            check_response(response)
        in_path = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
        assert in_path == {part[1:-1] for part in path.split("/") if part.startswith("{")}
        for parameter in operation.get("parameters", ()):
            assert set(parameter) <= PARAMETER
            assert parameter["in"] in ("path", "query", "header")


def check_response(response: dict[str, Any]) -> None:
    """Fail unless this is a Response Object; ``x-`` fields are extensions."""
    assert response["description"]
    assert set(response) <= {"description", "content"}
    for media in response.get("content", {}).values():
        assert {name for name in media if not name.startswith("x-")} == {"schema"}


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    """And every component is referred to."""
    found: set[str] = set()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                found.add(node["$ref"].rpartition("/")[2])
            found.update(
                target.rpartition("/")[2]
                for target in node.get("discriminator", {}).get("mapping", {}).values()
            )
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    assert found == set(document["components"]["schemas"])


def test_every_problem_is_the_problem_document(document: dict[str, Any]) -> None:
    """One type for all refusals."""
    for _, _, operation in operations(document):
        for status, response in operation["responses"].items():
            if "application/problem+json" in response.get("content", {}):
                assert int(status) >= 400
                schema = response["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ProblemView"}


def test_the_request_has_the_fields_of_its_type(document: dict[str, Any]) -> None:
    """The schema comes from the type that decodes the request."""
    schema = document["components"]["schemas"]["JobRequest"]
    assert set(schema["properties"]) == set(JobRequest.__struct_fields__)
    assert schema["additionalProperties"] is False
    assert all(field.get("description") for field in schema["properties"].values())


async def test_real_answers_are_as_it_says(
    client: httpx2.AsyncClient, document: dict[str, Any], player: Player, redis: Redis, keys: Keys
) -> None:
    """Every JSON door, jobs in every form, and every event of a stream fit their schemas."""
    kept = Commit("job_1", 1, player.info.id, (1,))
    await PromptIndex(redis, keys, player.info.model).commit(TENANT, "a/b", kept)
    player.beat(kv=KvCacheInfo(16, 100))
    job_id, other = await submit(client), await submit(client)
    attempt = await player.take(job_id)
    await attempt.say("a")
    await attempt.end()
    requests = [
        ("post", "/v1/jobs", "/v1/jobs", {"json": {"prompt": "a"}}),
        ("post", "/v1/jobs", "/v1/jobs", {"json": {}}),
        ("get", "/v1/jobs", "/v1/jobs?limit=1", {}),
        ("get", "/v1/jobs", "/v1/jobs?limit=x", {}),
        ("get", "/v1/jobs/{job_id}", f"/v1/jobs/{job_id}", {}),
        ("get", "/v1/jobs/{job_id}", f"/v1/jobs/{other}", {}),
        ("get", "/v1/jobs/{job_id}", "/v1/jobs/x", {}),
        ("delete", "/v1/jobs/{job_id}", f"/v1/jobs/{other}", {}),
        ("get", "/v1/jobs/{job_id}/events", f"/v1/jobs/{job_id}/events?after=99", {}),
        ("get", "/v1/prompts/{prompt_id}", "/v1/prompts/a/b", {}),
        ("get", "/v1/prompts/{prompt_id}", "/v1/prompts/a", {}),
        ("get", "/v1/models", "/v1/models", {}),
        ("get", "/v1/workers", "/v1/workers", {}),
        ("get", "/healthz", "/healthz", {}),
        ("get", "/readyz", "/readyz", {}),
    ]
    for method, path, url, options in requests:
        response = await client.request(method.upper(), url, **options)  # type: ignore[arg-type]
        answers = document["paths"][path][method]["responses"]
        content = answers[str(response.status_code)]["content"]
        media_type = response.headers["content-type"].partition(";")[0]
        check_schema(response.json(), content[media_type]["schema"], document)
    answers = document["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]
    async with client.sse(f"/v1/jobs/{job_id}/events") as source:
        async for item in source:
            if item.data:
                frame = answers["200"]["content"][EVENT_STREAM]["schema"]
                event = frame["properties"]["data"]["contentSchema"]["anyOf"][0]
                check_schema(msgspec.json.decode(item.data), event, document)


def test_a_wrong_answer_would_not_fit(document: dict[str, Any]) -> None:
    """The check bites."""
    schema = {"$ref": "#/components/schemas/Health"}
    check_schema({"status": "ok"}, schema, document)
    answers: list[Any] = [{}, {"status": "bad"}, {"status": 1}, [], {"state": "ok"}]
    for wrong in answers:
        with pytest.raises(AssertionError):
            check_schema(wrong, schema, document)


def test_every_door_says_what_it_answers() -> None:
    """A door without an answer or a summary is no documentation."""
    for door in DOORS:
        assert door.answers
        assert door.summary
