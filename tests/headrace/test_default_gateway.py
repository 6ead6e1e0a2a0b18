"""Which gateway a command talks to when nobody says."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from common.settings import load
from headrace.data_dir import StackNote, locked
from headrace.default_gateway import default_url, usual_data_dir
from tests.headrace.fake_gateway import fake_gateway_in_thread, json_reply

Headrace = Callable[..., Result]

USUAL = "http://127.0.0.1:8700"

pytestmark = pytest.mark.usefixtures("headrace")  # nobody's settings


def test_the_directory_is_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Default, file and variable are found as ``headrace up`` finds them."""
    assert usual_data_dir() == load().data_dir == tmp_path / "headrace"
    (tmp_path / "headrace").mkdir()
    (tmp_path / "headrace" / "headrace.toml").write_text('data_dir = "/usual"')
    assert usual_data_dir() == load().data_dir == Path("/usual")
    (tmp_path / "named.toml").write_text('data_dir = "/named"')
    monkeypatch.setenv("HEADRACE_CONFIG", str(tmp_path / "named.toml"))
    assert usual_data_dir() == load().data_dir == Path("/named")
    monkeypatch.setenv("HEADRACE_DATA_DIR", "/variable")
    assert usual_data_dir() == load().data_dir == Path("/variable")


@pytest.mark.parametrize("text", ["data_dir = ", "port = 1"])
def test_a_file_that_does_not_say_is_left_to_others(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A command that only talks to a gateway does not stop at a broken settings file."""
    (tmp_path / "named.toml").write_text(text)
    monkeypatch.setenv("HEADRACE_CONFIG", str(tmp_path / "named.toml"))
    assert usual_data_dir() == tmp_path / "headrace"


def test_the_stack_that_runs_is_the_default(tmp_path: Path) -> None:
    """While it starts, and when it is gone, the usual address counts."""
    assert default_url() == USUAL
    with locked(tmp_path / "headrace") as data_dir:
        assert default_url() == USUAL
        data_dir.announce(StackNote(os.getpid(), url="http://127.0.0.1:9000"))
        assert default_url() == "http://127.0.0.1:9000"
    assert default_url() == USUAL


def test_a_command_talks_to_the_stack_that_runs(
    headrace: Headrace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its gateway is found on any port; the flag and the variable are stronger."""
    with (
        fake_gateway_in_thread(json_reply({"data": []})) as gateway,
        locked(tmp_path / "headrace") as data_dir,
    ):
        data_dir.announce(StackNote(os.getpid(), url=gateway.url))
        assert headrace("ps").exit_code == 0
        assert "at http://127.0.0.1:1 " in headrace("ps", url="http://127.0.0.1:1").stderr
        monkeypatch.setenv("HEADRACE_URL", "http://127.0.0.1:2")
        assert "at http://127.0.0.1:2 " in headrace("ps").stderr
        assert len(gateway.requests) == 1
