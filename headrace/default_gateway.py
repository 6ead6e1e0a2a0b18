"""Which gateway a command talks to when nobody says: that of the stack in the data directory.

The settings are not loaded for that: they would cost a quick command a third of its time, and a
wrong one is none of its business. A test compares the directory with theirs.
"""

import os
import tomllib
from pathlib import Path

from headrace.addresses import DEFAULT_URL
from headrace.data_dir import running_stack


def default_url() -> str:
    """Return the URL of the stack that runs in the usual data directory, else the usual one."""
    stack = running_stack(usual_data_dir())
    return (stack and stack.url) or DEFAULT_URL


def usual_data_dir() -> Path:
    """Return the directory that ``headrace up`` without flags uses."""
    named = os.environ.get("HEADRACE_DATA_DIR") or _from_file()
    return Path(named).expanduser() if named else _home("XDG_DATA_HOME", ".local/share")


def _from_file() -> str:
    usual = _home("XDG_CONFIG_HOME", ".config") / "headrace.toml"
    path = Path(os.environ.get("HEADRACE_CONFIG") or usual)
    try:
        return str(tomllib.loads(path.read_text(encoding="utf-8"))["data_dir"])
    except (OSError, ValueError, KeyError):  # `headrace up` says what is wrong
        return ""


def _home(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "headrace"
