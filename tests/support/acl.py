"""The user of ``docs/redis.md`` on a server of a test."""

import re
from pathlib import Path

from common.rights import acl_rules
from tests.support.servers import Server
from tests.support.topologies import ask

USER = "headrace"
PASSWORD = "a-secret"

_PAGE = Path(__file__).parents[2] / "docs" / "redis.md"


def documented(prefix: str) -> list[str]:
    """Return the rules of the line in the docs, under another prefix than theirs."""
    line = re.search(r"^user headrace on >PASSWORD (.*)$", _PAGE.read_text(), re.MULTILINE)
    assert line
    assert line[1] == acl_rules("hr")
    return line[1].replace("hr:", f"{prefix}:").split()


def make_user(server: Server, prefix: str, *changes: str) -> None:
    """Make the documented user, with these changes."""
    ask(server, "ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}")
    ask(server, "ACL", "SETUSER", USER, *documented(prefix), *changes)
