"""Which Redis a command talks to when nobody says: that of the stack in the data directory."""

from typing import Any

from common.errors import StartupFailed
from common.settings import Settings, load, origins
from headrace.addresses import lacks_password
from headrace.data_dir import running_stack
from headrace.terminal import note

PASSWORD_NOT_KEPT = "the password of {} is not kept; name that server with --redis"  # noqa: S105


def default_server(settings: Settings) -> str:
    """Return the server of the settings, or, where they name none, that of a running stack."""
    stack = running_stack(settings.data_dir.expanduser())
    if origins()["redis"] == "default" and stack is not None and stack.redis:
        return stack.redis
    return settings.redis


def settings_of_process(flags: dict[str, Any]) -> Settings:
    """Return the settings of a gateway or a worker, which joins a running stack, and says so.

    Raises ``StartupFailed`` where it cannot log in to that stack's server.
    """
    settings = load(flags)
    if "redis" in flags:
        return settings
    server = default_server(settings)
    if lacks_password(server):
        raise StartupFailed(PASSWORD_NOT_KEPT.format(server))
    if server != settings.redis:
        note(f"Joining the stack in {settings.data_dir}")
    return settings.model_copy(update={"redis": server})
