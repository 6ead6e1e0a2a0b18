"""Scripts with something cut out, for the controls."""

import hashlib

import pytest

from common.scripts import Script


def cut(script: Script, text: str, instead: str = "") -> None:
    """Change a script's text, in this process; fails where the script is not what it was."""
    assert text in script.text, f"{script.name} has changed: {text!r} is not in it"
    script.text = script.text.replace(text, instead)
    script.sha = hashlib.sha1(script.text.encode(), usedforsecurity=False).hexdigest()


def cut_for_now(
    monkeypatch: pytest.MonkeyPatch, script: Script, text: str, instead: str = ""
) -> None:
    """Change a script's text until the end of the test."""
    monkeypatch.setattr(script, "text", script.text)
    monkeypatch.setattr(script, "sha", script.sha)
    cut(script, text, instead)
