"""``prompts show`` and ``prompts forget``."""

import json
from collections.abc import Callable

from typer.testing import Result

from tests.headrace.fake_gateway import Reply, fake_gateway_in_thread, json_reply, problem

Headrace = Callable[..., Result]

CHAT = "chat/1"
PROMPT = {
    "id": CHAT,
    "model": "m",
    "version": 3,
    "length": 120,
    "worker": None,
    "updated_at": "2026-01-02T03:04:05.678Z",
    "expires_at": "2026-01-03T03:04:05.678Z",
}


def test_show_is_a_table(headrace: Headrace) -> None:
    """The slash of an ID is escaped on its way, and a holder that is gone is a dash."""
    with fake_gateway_in_thread(json_reply(PROMPT)) as gateway:
        result = headrace("prompts", "show", CHAT, url=gateway.url)
    header, row = result.output.splitlines()
    assert header.split() == ["ID", "MODEL", "VERSION", "TOKENS", "WORKER"]
    assert row.split() == [CHAT, "m", "3", "120", "-"]
    assert gateway.requests[0].startswith("GET /v1/prompts/chat%2F1 ")


def test_show_json_is_for_programs(headrace: Headrace) -> None:
    """The fields keep their names; the model can be named."""
    with fake_gateway_in_thread(json_reply(PROMPT)) as gateway:
        result = headrace("prompts", "show", CHAT, "--json", "--model", "m", url=gateway.url)
    shown = json.loads(result.output)
    assert set(shown) == set(PROMPT)
    assert (shown["version"], shown["worker"]) == (3, None)
    assert "model=m" in gateway.requests[0]


def test_forget_says_so(headrace: Headrace) -> None:
    """On stderr for people, on stdout for programs."""
    with fake_gateway_in_thread(Reply(b"", 204)) as gateway:
        result = headrace("prompts", "forget", CHAT, url=gateway.url)
        as_json = headrace("prompts", "forget", CHAT, "--json", url=gateway.url)
    assert (result.stdout, result.stderr) == ("", "chat/1 is forgotten\n")
    assert json.loads(as_json.stdout) == {"id": CHAT, "forgotten": True}
    assert gateway.requests[0].startswith("DELETE /v1/prompts/chat%2F1 ")


def test_an_unknown_prompt_is_an_error(headrace: Headrace) -> None:
    """One line, and the exit code of a failed operation."""
    with fake_gateway_in_thread(problem(404, "prompt-not-found")) as gateway:
        for command in ("show", "forget"):
            result = headrace("prompts", command, CHAT, url=gateway.url)
            assert result.exit_code == 1
            assert "Do this." in result.stderr
