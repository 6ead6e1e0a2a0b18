"""Who asks: the tenant and the scopes of a request, from its API key or its signed link.

As long as there has been no key, everybody who reaches a loopback address (or any, with
``--insecure``) is the tenant ``default`` and may do everything. With the first key that is over, on
every gateway within ``FRESH_S``, also when the last one is revoked; a revoked key opens nothing
after the same time. While Redis is away, a key that it knew opens for ``STALE_S`` more, and a door
that was open stays so: without Redis there is little behind it.
"""

import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass

import msgspec
from starlette.requests import HTTPConnection

from common.api_keys import ApiKey, ApiKeyStore, Scope, Token, read_token
from common.connections import UNAVAILABLE
from common.errors import Problem
from common.limits import NO_LIMITS, Limits
from gateway.links import Link, Links

TENANT = "default"
"""The tenant of a gateway without API keys."""

FRESH_S, STALE_S = 2.0, 300.0
_MAX_REMEMBERED = 10_000
_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. A caller with a signed link may read one job, ``job``."""

    tenant: str
    scopes: frozenset[Scope]
    job: str = ""
    limits: Limits = NO_LIMITS

    def require(self, scope: Scope) -> None:
        """Raise ``Problem`` unless the caller may do this."""
        if self.job:
            detail = "A link opens its own job's events and no more; this needs an API key."
            raise Problem(403, "scope-missing", detail)
        if not self.scopes & {scope, Scope.ADMIN}:
            detail = f"This needs an API key with the scope `{scope}`; yours has not got it."
            raise Problem(403, "scope-missing", detail)

    def require_job(self, job_id: str) -> None:
        """Raise ``Problem`` unless the caller may read this job, as far as scopes go."""
        if self.job != job_id:
            self.require(Scope.READ)


class Doorkeeper:
    """Finds out who asks. ``is_open`` says whether callers without a key may come in at all."""

    def __init__(self, store: ApiKeyStore, links: Links, *, is_open: bool) -> None:
        self._store = store
        self._links = links
        self._is_open = is_open
        self._remembered: OrderedDict[str, tuple[float, ApiKey]] = OrderedDict()
        # Whether there are no keys, as far as Redis has said so.
        self._checked_at = _NEVER
        self._is_unused: bool | None = None

    async def look(self) -> None:
        """Learn whether there are keys, so that a Redis that goes away later is no question."""
        with suppress(*UNAVAILABLE):
            await self._has_no_keys()

    async def identify(self, connection: HTTPConnection) -> Caller:
        """Return who asks; raises ``Problem`` (401) and redis-py's errors."""
        text = _presented(connection)
        # Who brings a key of ours knows that there is one: it may be the first.
        if self._is_open and await self._has_no_keys(anew=bool(text and read_token(text))):
            return Caller(TENANT, frozenset(Scope))
        if text is not None:
            return await self._by_key(text)
        link = connection.query_params.get("link")
        if link is not None:
            return _by_link(await self._links.read(link))
        detail = (
            "Send an API key as `Authorization: Bearer KEY`, or set HEADRACE_API_KEY for the "
            "command line; `headrace keys create` makes one."
        )
        raise Problem(401, "key-missing", detail)

    async def _by_key(self, text: str) -> Caller:
        token = read_token(text)
        try:
            key = await self._find(token) if token is not None else None
        except msgspec.MsgspecError as error:
            detail = "This API key was made by another version of Headrace; make a new one."
            raise Problem(502, "key-unreadable", detail) from error
        if key is None or key.is_expired(time.time_ns() // 1_000_000):
            detail = "This API key is unknown, expired or revoked; `headrace keys list` shows all."
            raise Problem(401, "key-invalid", detail)
        return Caller(key.tenant, frozenset(key.scopes), limits=key.limits)

    async def _find(self, token: Token) -> ApiKey | None:
        now = time.monotonic()
        found_at, key = self._remembered.get(token.key_id, (_NEVER, None))
        if key is None or now - found_at > FRESH_S:
            try:
                key = await self._store.find(token.key_id)
            except UNAVAILABLE:
                if key is None or now - found_at > STALE_S:
                    raise
            else:
                self._remembered.pop(token.key_id, None)
                if key is not None:
                    self._remember(key, now)
        return key if key is not None and key.is_opened_by(token.secret) else None

    def _remember(self, key: ApiKey, now: float) -> None:
        self._remembered[key.id] = now, key
        while len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    async def _has_no_keys(self, *, anew: bool = False) -> bool:
        now = time.monotonic()
        is_old = now - self._checked_at > FRESH_S
        if self._is_unused is None or is_old or (anew and self._is_unused):
            self._checked_at = now  # also where Redis is away: nobody else waits for it
            try:
                self._is_unused = await self._store.is_unused()
            except UNAVAILABLE:
                if self._is_unused is None:
                    raise
        return self._is_unused


def _presented(connection: HTTPConnection) -> str | None:
    """Return the key that the request brings, in the form of either family of clients."""
    given = connection.headers.get("authorization")
    if given is None:
        return connection.headers.get("x-api-key")
    scheme, _, text = given.partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


def _by_link(link: Link | None) -> Caller:
    if link is None:
        detail = "This link is not valid any more; ask for a new one with POST /v1/jobs/ID/link."
        raise Problem(401, "link-invalid", detail)
    return Caller(link.tenant, frozenset(), link.job)
