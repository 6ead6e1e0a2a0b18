"""Fixtures of the command line's tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from headrace.cli import app

Headrace = Callable[..., Result]


@pytest.fixture
def headrace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Headrace:
    """Run the command line with nobody's settings: ``headrace("jobs", "--json", url=…)``."""
    for variable in list(os.environ):
        if variable.startswith("HEADRACE_"):
            monkeypatch.delenv(variable)
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))

    def run(*arguments: str, url: str = "", stdin: str | bytes = "") -> Result:
        gateway = ["--url", url] if url else []
        return CliRunner().invoke(app, [*arguments, *gateway], input=stdin)

    return run
