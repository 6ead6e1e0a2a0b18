"""Which Redis a command talks to when nobody says: that of the stack in the data directory."""

from common.settings import Settings, origins
from headrace.data_dir import running_stack


def default_server(settings: Settings) -> str:
    """Return the server of the settings, or, where they name none, that of a running stack."""
    stack = running_stack(settings.data_dir.expanduser())
    if origins()["redis"] == "default" and stack is not None and stack.redis:
        return stack.redis
    return settings.redis
