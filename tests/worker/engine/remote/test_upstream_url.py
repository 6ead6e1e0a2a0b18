"""The base URL as users write it."""

import pytest

from common.errors import StartupFailed
from worker.engine.remote.upstream_url import BaseUrl, parse_base_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1"),
    ],
)
def test_a_url_without_a_path_gets_v1(text: str, url: str) -> None:
    """Any other path is taken as it stands."""
    assert parse_base_url(text).url == url


def test_loopback_is_told_from_the_world() -> None:
    """A proxy from the environment is for the world only."""
    assert parse_base_url("http://[::1]:8000") == BaseUrl(
        "http://[::1]:8000/v1", "[::1]:8000", True
    )
    assert parse_base_url("http://localhost").is_loopback
    assert not parse_base_url("https://api.example/v1").is_loopback


@pytest.mark.parametrize(
    "text", ["", "here", "ftp://x/v1", "http://", "http://x:port", "http://x/v1?key=secret"]
)
def test_what_is_no_base_url_stops_the_start(text: str) -> None:
    """The line says how one looks."""
    with pytest.raises(StartupFailed, match=r"http://127\.0\.0\.1:8000/v1"):
        parse_base_url(text)


def test_a_key_in_the_url_is_not_repeated() -> None:
    """The line names the variable that it belongs into."""
    with pytest.raises(StartupFailed, match="HEADRACE_UPSTREAM_KEY") as failed:
        parse_base_url("https://user:secret@x/v1")
    assert "secret" not in str(failed.value)
