"""What the commands share that go to Redis themselves, past every gateway."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from common.connections import command_client
from common.errors import HeadraceError
from common.keys import Keys
from common.settings import load
from headrace.addresses import lacks_password, masked
from headrace.default_server import PASSWORD_NOT_KEPT, default_server

Result = TypeVar("Result")


def with_redis(redis: str, do: Callable[[Redis, Keys], Awaitable[Result]]) -> Result:
    """Return what ``do`` returns; raises ``HeadraceError`` where no Redis answers.

    Without a URL it is the Redis of a running ``headrace up``, else that of the settings.
    """
    settings = load()
    url = redis or default_server(settings)
    if lacks_password(url):
        raise HeadraceError(PASSWORD_NOT_KEPT.format(url))

    async def run() -> Result:
        client = command_client(url, max_connections=1)
        try:
            return await do(client, Keys(settings.key_prefix))
        except (RedisError, OSError) as error:
            raise HeadraceError(f"no Redis answers at {masked(url)}: {error}") from error
        finally:
            await client.aclose()

    return asyncio.run(run())
