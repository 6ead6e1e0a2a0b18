"""API keys: stored without their secrets, found, listed, revoked."""

import time

import pytest
from redis.asyncio import Redis

from common.api_keys import ApiKeyStore, Scope, Token, read_token
from common.keys import Keys

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(redis: Redis, keys: Keys) -> ApiKeyStore:
    """No keys yet."""
    return ApiKeyStore(redis, keys)


async def test_a_key_is_opened_by_its_own_secret_only(store: ApiKeyStore) -> None:
    """And found by its ID."""
    assert await store.is_unused()
    key, token = await store.create("acme", (Scope.SUBMIT, Scope.READ, Scope.READ), note="laptop")
    assert not await store.is_unused()
    assert await store.find(token.key_id) == key
    assert (key.tenant, key.scopes, key.note) == ("acme", (Scope.READ, Scope.SUBMIT), "laptop")
    assert key.is_opened_by(token.secret)
    assert not key.is_opened_by(token.secret[:-1] + "é")
    assert read_token(str(token)) == token


async def test_nothing_that_is_stored_opens_anything(
    store: ApiKeyStore, redis: Redis, keys: Keys
) -> None:
    """Who reads Redis has no key by that."""
    _, token = await store.create("acme", (Scope.READ,))
    stored = b"".join(await redis.hvals(keys.api_keys))  # type: ignore[misc]
    assert token.secret.encode() not in stored


async def test_a_key_expires(store: ApiKeyStore) -> None:
    """Without a lifetime it does not."""
    now_ms = time.time_ns() // 1_000_000
    short, _ = await store.create("acme", (Scope.READ,), lifetime_s=60)
    endless, _ = await store.create("acme", (Scope.READ,))
    assert not short.is_expired(now_ms)
    assert short.is_expired(now_ms + 61_000)
    assert not endless.is_expired(now_ms + 10**12)


async def test_a_revoked_key_is_gone(store: ApiKeyStore) -> None:
    """The others stay, in the order in which they were made."""
    made = [(await store.create(tenant, (Scope.READ,)))[0] for tenant in ("one", "two", "three")]
    assert await store.revoke(made[1].id)
    assert not await store.revoke(made[1].id)
    assert {key.id for key in await store.all()} == {made[0].id, made[2].id}
    assert await store.find(made[1].id) is None


async def test_only_a_reset_opens_the_door_again(store: ApiKeyStore) -> None:
    """Revoking the last key is no invitation."""
    key, _ = await store.create("acme", (Scope.READ,))
    await store.revoke(key.id)
    assert await store.all() == []
    assert not await store.revoke("used")
    assert not await store.is_unused()
    await store.reset()
    assert await store.is_unused()


@pytest.mark.parametrize(
    "text", ["", "hr_", "hr_0123456789ab_", "hr_0123456789ab_" + "a" * 42, "x" * 100_000]
)
def test_what_is_no_token(text: str) -> None:
    """It is refused before anybody asks Redis."""
    assert read_token(text) is None


def test_a_token_says_itself() -> None:
    """As its owner has to send it."""
    assert str(Token("0123456789ab", "s" * 43)) == "hr_0123456789ab_" + "s" * 43
