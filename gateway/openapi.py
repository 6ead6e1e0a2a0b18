"""``/openapi.json``, generated from the routes and the msgspec types that serve them."""

from typing import Any

import msgspec

from common.events import Event
from gateway.routes import DOORS, EVENT_STREAM, Door
from gateway.schemas import ProblemView

_REF = "#/components/schemas/{name}"
_EVENT_NOTE = (
    "Server-sent events: `id` is the event's number n, `event` its kind, `data` the event as JSON. "
    "The stream ends cleanly only after `completed`, `failed`, `cancelled` or `expired`."
)

_BROKEN = {"type": "object", "required": ["type", "title", "detail"]}  # `event: problem`
_KEY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, `hr_…`. A gateway on a loopback address without keys needs none.",
}


def document(version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    types = _types()
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for door in DOORS:
        operations = paths.setdefault(template(door.path), {})
        operations[door.method.lower()] = _operation(door, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headrace",
            "version": version,
            "description": "Durable LLM inference jobs: submit a prompt, follow its tokens.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": _KEY_SCHEME}},
    }


def template(path: str) -> str:
    """Return the path as OpenAPI writes it: the router marks names with slashes by ``:path``."""
    return path.replace(":path}", "}")


def _types() -> list[Any]:
    found: list[Any] = [Event, ProblemView]
    for door in DOORS:
        found += [answer for answer in door.answers.values() if not isinstance(answer, str)]
        found += [door.body, door.frames]
    return [type_ for type_ in dict.fromkeys(found) if type_ is not None]


def _operation(door: Door, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": door.endpoint.__name__,
        "summary": door.summary,
        "responses": {str(s): _answer(a, schemas) for s, a in door.answers.items()},
    }
    if door.frames is not None:
        content = operation["responses"]["200"]["content"]
        content[EVENT_STREAM] = {"schema": _frame(schemas[door.frames])}
    if door.scope is not None:
        operation["security"] = [{"key": []}, {}]
    for status in (*door.problems, *((401, 403) if door.scope is not None else ())):
        content = {"application/problem+json": {"schema": schemas[ProblemView]}}
        operation["responses"][str(status)] = {"description": "A problem", "content": content}
    parameters = _parameters(door)
    if parameters:
        operation["parameters"] = parameters
    if door.body is not None:
        content = {"application/json": {"schema": schemas[door.body]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _answer(answer: Any, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    if answer is None:
        return {"description": "There is nothing more to say."}
    if answer == EVENT_STREAM:
        content = {EVENT_STREAM: {"schema": _frame({"anyOf": [schemas[Event], _BROKEN]})}}
        return {"description": _EVENT_NOTE, "content": content}
    if isinstance(answer, str):
        return {"description": "Text", "content": {answer: {"schema": {"type": "string"}}}}
    return {"description": "OK", "content": {"application/json": {"schema": schemas[answer]}}}


def _frame(content: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one server-sent event, which is what 3.1's tools take it for."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    fields = {"id": {"type": "string"}, "event": {"type": "string"}, "data": data}
    return {"type": "object", "properties": fields}


def _parameters(door: Door) -> list[dict[str, Any]]:
    in_path = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
        for part in template(door.path).split("/")
        if part.startswith("{")
    ]
    return in_path + [
        {
            "name": parameter.name,
            "in": parameter.where,
            "description": parameter.description,
            "schema": dict(parameter.schema),
        }
        for parameter in door.parameters
    ]
