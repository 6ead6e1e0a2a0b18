"""Which Redis a command talks to when nobody says."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import StartupFailed
from common.settings import load
from headrace.data_dir import DataDir, StackNote, locked
from headrace.default_server import default_server, settings_of_process

USUAL = "redis://127.0.0.1:6379"
OWN = "redis://127.0.0.1:7001"

pytestmark = pytest.mark.usefixtures("headrace")  # nobody's settings


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[DataDir]:
    """Hold the usual data directory, as a running stack does."""
    with locked(tmp_path / "headrace") as data_dir:
        data_dir.announce(StackNote(os.getpid(), redis=OWN))
        yield data_dir


def test_without_a_stack_it_is_that_of_the_settings() -> None:
    """The usual port of this machine."""
    assert default_server(load()) == settings_of_process({}).redis == load().redis == USUAL


@pytest.mark.usefixtures("stack")
def test_a_process_joins_the_stack_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """It says so, and keeps its other settings."""
    settings = settings_of_process({"capacity": 3})
    assert (settings.redis, settings.capacity) == (OWN, 3)
    assert "Joining the stack in" in capsys.readouterr().err


@pytest.mark.usefixtures("stack")
def test_a_named_server_is_stronger(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By flag or by variable, even where it is the usual one."""
    assert settings_of_process({"redis": USUAL}).redis == USUAL
    monkeypatch.setenv("HEADRACE_REDIS", USUAL)
    assert settings_of_process({}).redis == USUAL
    assert capsys.readouterr().err == ""


def test_a_password_that_is_not_kept_is_asked_for(stack: DataDir) -> None:
    """The note of a stack on a user's server has it masked."""
    stack.announce(StackNote(os.getpid(), redis="redis://:***@10.0.0.1:6379"))
    with pytest.raises(StartupFailed, match=r"password of redis://:\*\*\*@10.* with --redis"):
        settings_of_process({})
