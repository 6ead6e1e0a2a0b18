"""Faults of messages in our words: each as msgspec itself tells it of a real request."""

import msgspec
import pytest

from gateway.schemas import JobRequest
from gateway.violations import sentence_of

_DECODER = msgspec.json.Decoder(JobRequest)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"max_tokens": 99999999}', "`max_tokens` must be a whole number, at most 1048576."),
        ('{"temperature": -1}', "`temperature` must be a number, at least 0.0."),
        ('{"n": 1.5}', "`n` must be a whole number, not a number."),
        ('{"prompt": [1]}', "`prompt` must be text, not a list."),
        (
            '{"logit_bias": {"a": 1}}',
            "Each key of `logit_bias` must be a whole number, not text.",
        ),
        (
            '{"logit_bias": {"1": 1000}}',
            "Each value of `logit_bias` must be a number, at most 100.0.",
        ),
        ('{"stop": [""]}', "`stop[0]` must be text of at least this length: 1."),
        (
            '{"messages": [{"content": "x"}]}',
            "`messages[0]` lacks the field `role`; see /openapi.json.",
        ),
        (
            '{"messages": [{"role": "user", "content": "x", "z": 1}]}',
            "`messages[0]` has the unknown field `z`; see /openapi.json for the known ones.",
        ),
        (
            '{"priority": "x"}',
            "`priority` cannot be 'x'; see /openapi.json for what it can be.",
        ),
        ("[]", "The body must be an object, not a list."),
    ],
)
def test_a_fault_is_a_sentence(body: str, said: str) -> None:
    """It names the field as the client knows it, and what it must be."""
    with pytest.raises(msgspec.ValidationError) as fault:
        _DECODER.decode(body)
    assert sentence_of(str(fault.value)) == said


def test_a_fault_of_another_kind_stays_as_it_is() -> None:
    """A new version of msgspec may say something else."""
    assert sentence_of("Something new - at `$.a`") == "Something new - at `$.a`."
