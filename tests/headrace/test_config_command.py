"""``headrace config show``."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from common.settings import Settings

Headrace = Callable[..., Result]


def test_it_shows_value_and_origin(
    headrace: Headrace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each setting says whether the environment, the file or the default decided."""
    file = tmp_path / "settings.toml"
    file.write_text("workers = 3\nport = 1\n")
    monkeypatch.setenv("HEADRACE_CONFIG", str(file))
    monkeypatch.setenv("HEADRACE_PORT", "2")
    found = {
        entry["name"]: entry for entry in json.loads(headrace("config", "show", "--json").output)
    }
    assert set(found) == set(Settings.model_fields)
    assert (found["port"]["value"], found["port"]["from"]) == (2, "environment")
    assert (found["workers"]["value"], found["workers"]["from"]) == (3, str(file))
    assert found["host"]["from"] == "default"


def test_passwords_are_not_shown(headrace: Headrace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL's password is masked in both forms."""
    monkeypatch.setenv("HEADRACE_REDIS", "rediss://me:secret@example.org:1/0")
    for arguments in (["config", "show"], ["config", "show", "--json"]):
        output = headrace(*arguments).output
        assert "secret" not in output
        assert "rediss://me:***@example.org:1/0" in output


def test_a_wrong_setting_still_shows_the_names(
    headrace: Headrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message about an unknown variable sends people here, so here the known ones are."""
    monkeypatch.setenv("HEADRACE_PROT", "1")
    result = headrace("config", "show")
    assert result.exit_code == 3
    assert "\nport " in result.stdout
    assert result.stderr.startswith("headrace: HEADRACE_PROT is not a setting")
