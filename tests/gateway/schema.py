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


def check_schema(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    """Fail unless the value fits the schema."""
    for keyword, given in schema.items():
        match keyword:
            case "$ref":
                name = given.rpartition("/")[2]
                check_schema(value, document["components"]["schemas"][name], document)
            case "anyOf":
                assert any(_fits(value, one, document) for one in given), (value, given)
            case "type":
                assert _TYPES[given](value), (value, given)
            case "enum":
                assert value in given, (value, given)
            case "const":
                assert value == given, (value, given)
            case "properties" | "required" | "additionalProperties":
                if isinstance(value, dict):
                    _check_object(value, schema, document)
            case "items":
                for item in value:
                    check_schema(item, given, document)
            case _:
                assert keyword in _NOTES, f"the schema uses {keyword!r}, which is not checked here"


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
