"""The fleet's secret: keys the IDs of ``Idempotency-Key``s and the links, on every gateway."""

import secrets

from redis.asyncio import Redis

from common.keys import Keys


class SharedSecret:
    """Made by the first gateway that asks for it, then read from Redis once per gateway."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._key = keys.secret
        self._value: bytes | None = None  # set once Redis has answered

    async def get(self) -> bytes:
        """Return the secret; raises redis-py's errors."""
        if self._value is None:
            await self._redis.set(self._key, secrets.token_bytes(32), nx=True)
            self._value = bytes(await self._redis.get(self._key))
        return self._value
