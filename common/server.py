"""What the Redis or Valkey server itself must be like; in a cluster, every primary."""

import asyncio

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from common.connections import UNAVAILABLE, every_server
from common.errors import StartupFailed
from common.keys import Keys
from common.rights import require_rights

_LOOK_S = 0.5  # between two looks for a server that is away


async def require_fit(redis: Redis, keys: Keys) -> None:
    """Refuse a wrong login, a server that evicts keys, and a user with too few rights.

    Raises ``StartupFailed``, and ``UNAVAILABLE`` where the server is away.
    """
    await require_login(redis)
    await require_no_eviction(redis)
    await require_rights(redis, keys)


async def wait_until_fit(redis: Redis, keys: Keys) -> None:
    """Return when the server has answered and is fit; raises ``StartupFailed`` where it is not."""
    while True:
        try:
            return await require_fit(redis, keys)
        except UNAVAILABLE:
            await asyncio.sleep(_LOOK_S)


async def require_login(redis: Redis) -> None:
    """Refuse a user or password that the server does not know; raises ``StartupFailed``."""
    try:
        await redis.ping()
    except AuthenticationError as error:
        raise StartupFailed(
            f"Redis refuses the login ({error}): check user and password of --redis or "
            "HEADRACE_REDIS"
        ) from None
    except NoPermissionError:
        return  # it knows the user; ``require_rights`` tells of all that is missing


async def eviction_policy(redis: Redis) -> str | None:
    """Return the server's ``maxmemory-policy``, or None where it will not say (managed servers)."""
    try:
        answer = await redis.config_get("maxmemory-policy")
    except ResponseError:
        return None
    return str(answer.get("maxmemory-policy", "")) or None


async def require_no_eviction(redis: Redis) -> None:
    """Refuse a server that may throw away jobs; raises ``StartupFailed``."""
    for server in await every_server(redis):
        policy = await eviction_policy(server)
        if policy not in (None, "noeviction"):
            raise StartupFailed(
                f"Redis evicts keys (maxmemory-policy {policy}), so accepted jobs could vanish: "
                "run `CONFIG SET maxmemory-policy noeviction` or use another server"
            )
