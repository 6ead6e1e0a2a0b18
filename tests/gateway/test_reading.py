"""What clients send: each mistake is named, none is our fault."""

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import Problem
from gateway.reading import decode_json, read_idempotency_key, read_number, read_seconds
from gateway.routes import DOORS
from gateway.schemas import JobRequest
from tests.gateway.doors import check_problem
from tests.gateway.player import Player
from tests.gateway.running import RunningGateway

DEEP = "[" * 100_000
INVALID: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "a", "bogus": 1, "also": 2}, "`also`, `bogus`"),
    ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "`prompt` and `messages`."),
    ({"prompt": "a", "append": "b", "prompt_id": "c"}, "`prompt` and `append`."),
    ({}, "Give a `prompt`"),
    ({"prompt": ""}, "empty"),
    ({"messages": []}, "empty"),
    ({"prompt": 1}, "`prompt` must be"),
    ({"messages": [{"role": "user"}]}, "content"),
    ({"messages": [{"role": "", "content": "a"}]}, "role"),
    ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "name"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 2**40}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
    ({"prompt": "a", "max_tokens": True}, "max_tokens"),
    ({"prompt": "a", "max_tokens": "1"}, "max_tokens"),
    ({"prompt": "a", "temperature": -0.1}, "temperature"),
    ({"prompt": "a", "temperature": 10.1}, "temperature"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "top_p": 1.01}, "top_p"),
    ({"prompt": "a", "top_k": -1}, "top_k"),
    ({"prompt": "a", "seed": -1}, "seed"),
    ({"prompt": "a", "seed": 2**63}, "seed"),
    ({"prompt": "a", "stop": ""}, "stop"),
    ({"prompt": "a", "stop": ["x"] * 17}, "stop"),
    ({"prompt": "a", "stop": "x" * 257}, "stop"),
    ({"prompt": "a", "priority": "urgent"}, "priority"),
    ({"prompt": "a", "deadline_s": 0}, "deadline_s"),
    ({"prompt": "a", "deadline_s": 86_401}, "deadline_s"),
    ({"prompt": "a", "deadline_s": 1e300}, "deadline_s"),
    ({"prompt": "a", "prompt_id": ""}, "prompt_id"),
    ({"prompt": "a", "prompt_id": "}{"}, "prompt_id"),
    ({"prompt": "a", "prompt_id": "é"}, "prompt_id"),
    ({"prompt": "a", "model": "a b"}, "model"),
    ({"prompt": "a", "model": ""}, "model"),
    ({"prompt": "a", "metadata": {"k": 1}}, "metadata"),
    ({"prompt": "a", "metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"prompt": "a", "metadata": {"k": "v" * 513}}, "metadata"),
    ({"prompt": "a", "stream": "yes"}, "stream"),
    ({"prompt": "a", "min_p": 1.1}, "min_p"),
    ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty"),
    ({"prompt": "a", "presence_penalty": 2.1}, "presence_penalty"),
    ({"prompt": "a", "frequency_penalty": -2.1}, "frequency_penalty"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"-1": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"1": 100.1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {str(n): 0 for n in range(1025)}}, "logit_bias"),
    ({"prompt": "a", "stop_token_ids": [-1]}, "stop_token_ids"),
    ({"prompt": "a", "stop_token_ids": [0] * 65}, "stop_token_ids"),
    ({"prompt": "a", "min_tokens": -1}, "min_tokens"),
    ({"prompt": "a", "min_tokens": 9, "max_tokens": 8}, "`min_tokens` (9)"),
    ({"prompt": "a", "n": 0}, "`n` must be"),
    ({"prompt": "a", "n": 17}, "`n` must be"),
    ({"prompt": "a", "n": 2, "prompt_id": "c"}, "`n` is 2"),
    ({"prompt": "a", "logprobs": -1}, "logprobs"),
    ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ({"prompt": "a", "logprobs": True}, "logprobs"),
    ({"append": "a"}, "`append` needs a `prompt_id`"),
    ({"append": "", "prompt_id": "c"}, "`append`"),
    ({"append": [], "prompt_id": "c"}, "`append`"),
    ({"append": [{"role": "user"}], "prompt_id": "c"}, "content"),
    ({"prompt": "a", "if_version": 1}, "`if_version` needs a `prompt_id`"),
    ({"prompt": "a", "if_version": -1, "prompt_id": "c"}, "if_version"),
]
NOT_JSON = [
    b"", b"{", b"nul", b'{"prompt": "a"', b"\xff\xfe", b'{"prompt": "\xff"}',
    b'{"prompt": "\\ud800"}', b'{"prompt": "a"} x', b"{'prompt': 'a'}",
    b'{"prompt": NaN}', b"\xef\xbb\xbf{}",
]  # fmt: skip
NASTY = [
    b"null", b"[]", b'"a"', b"1", DEEP.encode(), b'{"bogus": 1, ', b'{"bogus": ' + DEEP.encode(),
    b'{"metadata": {"a": ' + DEEP.encode() + b"}}", b'{"messages": ' + DEEP.encode(),
    b'{"max_tokens": 1' + b"0" * 5_000 + b"}", b'{"temperature": 1e999}', b'{"bogus": 1e999}',
]  # fmt: skip


async def test_an_invalid_job_is_refused_by_name(
    client: httpx2.AsyncClient, player: Player
) -> None:
    """The answer names the field; several unknown fields are all named."""
    for body, named in INVALID:
        response = await client.post("/v1/jobs", content=json.dumps(body))
        assert named in check_problem(response, 400, "invalid-request")["detail"], body


async def test_what_is_not_json_is_refused(client: httpx2.AsyncClient, player: Player) -> None:
    """Cut off, not UTF-8, or another language: never a fault of ours."""
    for body in NOT_JSON:
        check_problem(await client.post("/v1/jobs", content=body), 400, "invalid-json")


async def test_what_is_nasty_is_refused(client: httpx2.AsyncClient, player: Player) -> None:
    """Nesting beyond any stack, numbers beyond any type, faults behind faults."""
    for body in NASTY:
        response = await client.post("/v1/jobs", content=body)
        assert response.status_code == 400, (body[:40], response.text)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_the_content_type_does_not_matter(
    client: httpx2.AsyncClient, player: Player, content_type: str
) -> None:
    """``curl -d`` works as it is."""
    headers = {"Content-Type": content_type}
    response = await client.post("/v1/jobs", content=b'{"prompt": "a"}', headers=headers)
    assert response.status_code == 202


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_that_is_too_large_is_refused(
    client: httpx2.AsyncClient, gateway: RunningGateway, player: Player, is_chunked: bool
) -> None:
    """Also one that does not say how large it will be."""
    limit = gateway.services.settings.max_body_bytes

    def chunks() -> Iterator[bytes]:
        for _ in range(limit // 65_536 + 2):
            yield b" " * 65_536

    async def stream() -> Any:
        for chunk in chunks():
            yield chunk

    content = stream() if is_chunked else b"".join(chunks())
    response = await client.post("/v1/jobs", content=content)
    assert str(limit) in check_problem(response, 413, "body-too-large")["detail"]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
_fields = st.sampled_from(JobRequest.__struct_fields__)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=_json | st.dictionaries(_fields, _json, max_size=4) | st.binary(max_size=40))
async def test_no_body_is_a_fault_of_ours(
    client: httpx2.AsyncClient, player: Player, body: Any
) -> None:
    """Whatever is sent is accepted or refused with a problem that says why."""
    content = body if isinstance(body, bytes) else json.dumps(body)
    response = await client.post("/v1/jobs", content=content)
    assert response.status_code in (200, 202, 400, 404)
    if response.status_code >= 400:
        assert response.json()["detail"]


async def test_no_query_is_a_fault_of_ours(client: httpx2.AsyncClient) -> None:
    """Every parameter refuses what it cannot be, by name."""
    long_cursor = base64.urlsafe_b64encode(b"9" * 400 + b":x").decode()
    for query, named in [
        ("limit=0", "limit"), ("limit=201", "limit"), ("limit=x", "limit"), ("limit=", "limit"),
        ("status=done", "status"), ("status=", "status"), ("cursor=%FF", "cursor"),
        ("cursor=eA==", "cursor"), ("cursor=", "cursor"), (f"cursor={long_cursor}", "cursor"),
        ("cursor=a", "cursor"),
    ]:  # fmt: skip
        response = await client.get(f"/v1/jobs?{query}")
        detail = check_problem(response, 400, "invalid-parameter")["detail"]
        assert f"`{named}`" in detail, query


@pytest.mark.parametrize("wait", ["x", "-1", "301", "nan", "inf", "1e400", "1_0x"])
async def test_a_wait_is_a_bounded_number(client: httpx2.AsyncClient, wait: str) -> None:
    """Nobody waits for ever, or for nothing that is a number."""
    response = await client.get(f"/v1/jobs/job_{'0' * 32}", params={"wait": wait})
    check_problem(response, 400, "invalid-parameter")


@pytest.mark.parametrize(
    ("header", "key"),
    [("abc", "abc"), ('"abc"', "abc"), ('"a\\"b"', 'a"b'), ('"a\\\\b"', "a\\b"), (" a ", "a")],
)
def test_a_key_is_read_with_and_without_quotes(header: str, key: str) -> None:
    """The draft's string and the bare value that most clients send are the same key."""
    assert read_idempotency_key(header) == key


@pytest.mark.parametrize("header", ["", '""', "x" * 256, "é", "a\tb", "a\x00"])
def test_a_key_that_is_none_is_refused(header: str) -> None:
    """An empty key would make all jobs one job."""
    with pytest.raises(Problem, match="printable ASCII"):
        read_idempotency_key(header)


@given(st.text(max_size=30))
def test_numbers_are_read_or_refused(text: str) -> None:
    """No text makes a number outside its range, or another error than the refusal."""
    for read in (lambda: read_number("n", text, -1, 9), lambda: read_seconds("n", text, 9.0)):
        with suppress(Problem):
            assert -1 <= read() <= 9


@given(st.binary(max_size=60))
def test_bytes_are_decoded_or_refused(data: bytes) -> None:
    """No bytes make another error than the refusal."""
    decoder = msgspec.json.Decoder(JobRequest)
    with suppress(Problem):
        assert isinstance(decode_json(data, decoder), JobRequest)


def test_every_door_takes_part() -> None:
    """The table above covers the one door that takes a body."""
    assert [door.path for door in DOORS if door.body] == ["/v1/jobs"]
