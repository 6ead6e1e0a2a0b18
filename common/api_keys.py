"""API keys: who may do what, for which tenant. Only a hash of each key's secret is stored.

A key as its owner knows it is ``hr_ID_SECRET``: the ID finds the record, the secret proves it. The
secret has 256 random bits, so one round of SHA-256 is as good as a slow hash.
"""

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from redis.asyncio import Redis

from common.keys import Keys
from common.limits import NO_LIMITS, Limits

_MARK = "used"  # no ID of a key
_TOKEN = re.compile(r"hr_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


class Scope(StrEnum):
    """What a key may do. ``admin`` may do everything."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


class ApiKey(msgspec.Struct, frozen=True):
    """What is stored of a key. Times are milliseconds; ``expires_ms`` 0 is never.

    ``limits`` are those of the tenant, as far as they are set; the gateway's own hold for the rest.
    """

    id: str
    tenant: str
    scopes: tuple[Scope, ...]
    digest: bytes
    created_ms: int
    expires_ms: int = 0
    note: str = ""
    limits: Limits = Limits()

    def is_opened_by(self, secret: str) -> bool:
        """Tell whether this is the key's secret, in a time that says nothing of it."""
        return hmac.compare_digest(self.digest, _digest(secret))

    def is_expired(self, now_ms: int) -> bool:
        """Tell whether the key's time is over."""
        return bool(self.expires_ms) and now_ms >= self.expires_ms


@dataclass(frozen=True, slots=True)
class Token:
    """A key as its owner presents it."""

    key_id: str
    secret: str

    def __str__(self) -> str:
        return f"hr_{self.key_id}_{self.secret}"


def read_token(text: str) -> Token | None:
    """Return the token of a text, ``None`` where it has not the form of one."""
    match = _TOKEN.fullmatch(text)
    return Token(*match.groups()) if match else None


class ApiKeyStore:
    """The keys of one installation. Raises redis-py's errors unchanged."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._name = keys.api_keys

    async def create(
        self,
        tenant: str,
        scopes: tuple[Scope, ...],
        *,
        lifetime_s: float = 0,
        note: str = "",
        limits: Limits = NO_LIMITS,
    ) -> tuple[ApiKey, Token]:
        """Store a new key; return it with its token, which nobody can read again."""
        token = Token(secrets.token_hex(6), secrets.token_urlsafe(32))
        now_ms = _now_ms()
        key = ApiKey(
            id=token.key_id,
            tenant=tenant,
            scopes=tuple(sorted(set(scopes))),
            digest=_digest(token.secret),
            created_ms=now_ms,
            expires_ms=now_ms + round(1000 * lifetime_s) if lifetime_s else 0,
            note=note,
            limits=limits,
        )
        # The mark stays when the last key is revoked: that must not open the door.
        stored = {_MARK: b"", key.id: _encoder.encode(key)}
        await self._redis.hset(self._name, mapping=stored)  # type: ignore[misc]
        return key, token

    async def find(self, key_id: str) -> ApiKey | None:
        """Return a key, None where there is none; raises msgspec's error for an unreadable one."""
        found = await self._redis.hget(self._name, key_id)  # type: ignore[misc]
        return _decoder.decode(found) if found is not None else None

    async def all(self) -> list[ApiKey]:
        """Return all keys, the oldest first."""
        found = await self._redis.hgetall(self._name)  # type: ignore[misc]
        stored = [record for key_id, record in found.items() if key_id != _MARK.encode()]
        return sorted(map(_decoder.decode, stored), key=lambda key: key.created_ms)

    async def is_unused(self) -> bool:
        """Tell whether there has been no key since the last ``reset``."""
        return not await self._redis.exists(self._name)

    async def reset(self) -> None:
        """Delete all keys, as if there had never been one."""
        await self._redis.delete(self._name)

    async def revoke(self, key_id: str) -> bool:
        """Delete a key; return whether there was one."""
        if key_id == _MARK:
            return False
        return bool(await self._redis.hdel(self._name, key_id))  # type: ignore[misc]


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ApiKey)
