"""The part of JSON Schema that our OpenAPI document uses; anything else in it is an error."""

from collections.abc import Callable
from typing import Any

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}
_NOTES = {"title", "description", "default", "discriminator"}
_OBJECT = {"properties", "required", "additionalProperties"}
_KNOWN = {"$ref", "anyOf", "type", "enum", "items", *_OBJECT, *_NOTES}


def check_schema(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    """Fail unless the value fits the schema."""
    unknown = set(schema) - _KNOWN
    assert not unknown, f"the schema uses {unknown}, which is not checked here"
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        check_schema(value, document["components"]["schemas"][name], document)
    if "anyOf" in schema:
        assert any(_fits(value, one, document) for one in schema["anyOf"]), (value, schema)
    if "type" in schema:
        assert _TYPES[schema["type"]](value), (value, schema)
    if "enum" in schema:
        assert value in schema["enum"], (value, schema)
    if isinstance(value, list):
        for item in value:
            check_schema(item, schema.get("items", {}), document)
    if isinstance(value, dict) and schema.get("type") == "object":
        _check_object(value, schema, document)


def _fits(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> bool:
    try:
        check_schema(value, schema, document)
    except AssertionError:
        return False
    return True


def _check_object(value: dict[str, Any], schema: dict[str, Any], document: dict[str, Any]) -> None:
    properties = schema.get("properties", {})
    assert set(schema.get("required", ())) <= set(value), (value, schema)
    others = schema.get("additionalProperties", {})
    for name, item in value.items():
        expected = properties.get(name, others)
        assert expected is not False, name
        assert name in properties or "additionalProperties" in schema, name
        check_schema(item, expected, document)
