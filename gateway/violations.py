"""What msgspec says of a message that does not fit its type, in the words of our errors. Pure."""

import re

_SEE = "see /openapi.json"
_EXPECTED = re.compile(r"Expected `(?P<types>[^`]+)`(?P<limit>[^,]*?)(?:, got `(?P<given>\w+)`)?")
_MISSING = re.compile(r"Object missing required field (?P<field>`[^`]+`)")
_UNKNOWN = re.compile(r"Object contains unknown field (?P<field>`[^`]+`)")
_ENUM = re.compile(r"Invalid enum value (?P<value>.+)", re.DOTALL)
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
_LIMITS = (
    (" of length >= ", " of at least this length: "),
    (" of length <= ", " of at most this length: "),
    (" >= ", ", at least "),
    (" <= ", ", at most "),
)


def sentence_of(error: str) -> str:
    """Return the sentence for the text of a ``msgspec.ValidationError``.

    What cannot be read is returned as it is.
    """
    fault, _, at = error.partition(" - at ")
    where = _place(at)
    if expected := _EXPECTED.fullmatch(fault):
        given = expected["given"]
        instead = f", not {_KINDS.get(given, given)}" if given else ""
        return f"{where} must be {_kinds(expected['types'])}{_limit(expected['limit'])}{instead}."
    if missing := _MISSING.fullmatch(fault):
        return f"{where} lacks the field {missing['field']}; {_SEE}."
    if unknown := _UNKNOWN.fullmatch(fault):
        return f"{where} has the unknown field {unknown['field']}; {_SEE} for the known ones."
    if enum := _ENUM.fullmatch(fault):
        return f"{where} cannot be {enum['value'][:80]}; {_SEE} for what it can be."
    return f"{error}."


def _place(at: str) -> str:
    """Return what the fault is in: msgspec says ``$.a[0].b``, or ``key`` in such a path."""
    inside, _, path = at.rpartition(" in ")
    name = path.strip("`").removeprefix("$").removeprefix(".")
    what = f"`{name.replace('[...]', '')}`" if name else "The body"
    if inside or name.endswith("[...]"):
        return f"Each {'key' if inside else 'value'} of {what}"
    return what


def _kinds(types: str) -> str:
    return " or ".join(_KINDS.get(kind, kind) for kind in types.split(" | ") if kind != "null")


def _limit(limit: str) -> str:
    for theirs, ours in _LIMITS:
        limit = limit.replace(theirs, ours)
    return limit
