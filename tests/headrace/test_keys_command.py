"""``keys create``, ``list`` and ``revoke``."""

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

from common.api_keys import read_token
from common.keys import Keys

Headrace = Callable[..., Result]


@pytest.fixture
def manage(
    headrace: Headrace, redis_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run ``headrace keys …`` on the test's own prefix."""
    monkeypatch.setenv("HEADRACE_KEY_PREFIX", keys.prefix)
    return lambda *arguments: headrace("keys", *arguments, "--redis", redis_url)


def test_a_key_is_shown_once(manage: Callable[..., Result]) -> None:
    """The token alone goes to standard output, for scripts; the list has no secret."""
    limits = ("--max-running", "2", "--tokens-per-minute", "6000")
    made = manage("create", "--tenant", "acme", "--days", "30", "--note", "laptop", *limits)
    assert made.exit_code == 0, made.output
    token = read_token(made.stdout.strip())
    assert token is not None
    listed = manage("list")
    header, row = listed.stdout.splitlines()
    assert header.split() == ["ID", "TENANT", "SCOPES", "LIMITS", "CREATED", "EXPIRES", "NOTE"]
    assert row.split()[:3] == [token.key_id, "acme", "read,submit"]
    assert "2 running, 6000 tokens/min" in row
    assert row.split()[-1] == "laptop"
    assert token.secret not in listed.output


def test_json_is_for_programs(manage: Callable[..., Result]) -> None:
    """The key is in it when it is made, and never again."""
    made = json.loads(manage("create", "--scope", "admin", "--json").stdout)
    assert (made["tenant"], made["scopes"], made["expires_at"]) == ("default", ["admin"], None)
    token = read_token(made.pop("key"))
    assert token is not None
    assert json.loads(manage("list", "--json").stdout) == [made]
    assert json.loads(manage("revoke", token.key_id, "--json").stdout)["revoked"] is True
    assert json.loads(manage("list", "--json").stdout) == []


def test_an_unknown_key_cannot_be_revoked(manage: Callable[..., Result]) -> None:
    """It says so, in a line."""
    result = manage("revoke", "0123456789ab")
    assert result.exit_code == 1
    assert "there is no key 0123456789ab" in result.stderr


def test_a_whole_key_given_for_its_id_is_not_repeated(manage: Callable[..., Result]) -> None:
    """It goes to terminals and logs that the secret must not reach."""
    key = manage("create").stdout.strip()
    result = manage("revoke", key)
    assert result.exit_code == 1
    assert key not in result.stderr
    assert "that is no ID" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tenant", "a b"),
        ("--scope", "everything"),
        ("--days", "-1"),
        ("--days", "nan"),
        ("--days", "inf"),
        ("--days", "3000000"),
    ],
)
def test_wrong_usage(manage: Callable[..., Result], arguments: tuple[str, str]) -> None:
    """Nothing is made of it."""
    assert manage("create", *arguments).exit_code == 2
    assert json.loads(manage("list", "--json").stdout) == []


def test_a_redis_that_is_away_is_a_line(headrace: Headrace) -> None:
    """With its address."""
    result = headrace("keys", "list", "--redis", "redis://127.0.0.1:1")
    assert result.exit_code == 1
    assert "redis://127.0.0.1:1" in result.stderr


def test_reset_deletes_all(manage: Callable[..., Result]) -> None:
    """It asks before."""
    manage("create")
    assert manage("reset").exit_code == 1
    assert len(json.loads(manage("list", "--json").stdout)) == 1
    assert manage("reset", "--yes").exit_code == 0
    assert json.loads(manage("list", "--json").stdout) == []
