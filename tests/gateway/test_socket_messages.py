"""Every message of a client is answered or refused by name."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.talk import MISSING, SUBMIT, Talk, check_refusal

REFUSED: list[tuple[str, str | None, int, str]] = [
    ("{", None, 400, "invalid-json"),
    ("", None, 400, "invalid-json"),
    ("[" * 100_000, None, 400, "invalid-request"),
    ("[]", None, 400, "invalid-request"),
    ('{"ref": "r"}', "r", 400, "invalid-request"),
    ('{"type": "dance", "ref": "r"}', "r", 400, "invalid-request"),
    ('{"type": "cancel", "job": "x", "bogus": 1, "ref": "r"}', "r", 400, "invalid-request"),
    ('{"type": "cancel", "job": 1, "ref": "r"}', "r", 400, "invalid-request"),
    ('{"type": "cancel", "job": "x", "ref": 1}', None, 400, "invalid-request"),
    ('{"type": "cancel", "bogus": 1, ', None, 400, "invalid-request"),
    ('{"type": "cancel", "job": "x", "ref": "r"}', "r", 404, "job-not-found"),
    (f'{{"type": "cancel", "job": "{MISSING}", "ref": "r"}}', "r", 404, "job-not-found"),
    (f'{{"type": "subscribe", "job": "{MISSING}", "ref": "r"}}', "r", 404, "job-not-found"),
    (f'{{"type": "unsubscribe", "job": "{MISSING}", "ref": "r"}}', "r", 404, "not-subscribed"),
    ('{"type": "submit", "job": {}, "ref": "r"}', "r", 400, "invalid-request"),
    ('{"type": "submit", "job": {"prompt": "a", "x": 1}, "ref": "r"}', "r", 400, "invalid-request"),
    (
        '{"type": "submit", "job": {"prompt": "a"}, "idempotency_key": "", "ref": "r"}',
        "r", 400, "invalid-idempotency-key",
    ),
    (
        '{"type": "submit", "job": {"prompt": "a", "model": "no"}, "ref": "r"}',
        "r", 404, "model-not-found",
    ),
]  # fmt: skip


async def test_a_wrong_message_is_refused_by_name(talk: Talk) -> None:
    """The refusal carries the ``ref`` wherever one can be read, and the socket lives on."""
    for text, ref, status, name in REFUSED:
        await talk.connection.send(text)
        check_refusal(await talk.answer(), status, name, ref)
    assert (await talk.ask({**SUBMIT, "subscribe": False}))["type"] == "submitted"


async def test_a_binary_message_is_refused(talk: Talk) -> None:
    """It has an answer like any other."""
    await talk.connection.send(json.dumps(SUBMIT).encode())
    check_refusal(await talk.answer(), 400, "binary-message", None)


_words = st.sampled_from(["submit", "subscribe", "unsubscribe", "cancel", "type", "job", "ref"])
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=4),
    max_leaves=5,
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(max_size=30) | _json.map(json.dumps))
async def test_every_text_has_an_answer(talk: Talk, text: str) -> None:
    """Nothing that a client says kills its socket."""
    await talk.connection.send(text)
    answer = await talk.answer()
    assert answer["type"] == "submitted" or answer["error"]["status"] < 500
