"""Which model a request means."""

import time

from common.errors import Problem
from common.registry import Registry

FRESH_S = 1.0
AWAY_MS = 30_000
"""For how long a model may be without a worker and still be meant: one is started again by then."""
_NEVER = float("-inf")


class ModelChoice:
    """Knows the models that jobs can name, as Redis said within the last ``FRESH_S``.

    Who asks for another one has Redis asked anew: its first worker may just have come.
    """

    def __init__(self, registry: Registry, default: str) -> None:
        self._registry = registry
        self._default = default
        self._known: dict[str, int] = {}  # with the end of their last lease
        self._known_ms = 0  # by Redis's clock
        self._asked_at = _NEVER
        self._usual = ""  # what those got who named none

    async def choose(self, wanted: str | None) -> str:
        """Return the model that is named, else the default one; raises ``Problem``."""
        now = time.monotonic()
        if now - self._asked_at > FRESH_S or not self._is_known(wanted):
            self._known, self._asked_at = await self._registry.models(), now
            self._known_ms = await self._registry.now_ms()
        if self._is_known(wanted):
            return wanted or self._default or self._choose_usual()
        if wanted is None:
            detail = "No worker has registered a model yet; start one with `headrace worker`."
            raise Problem(503, "no-model", detail, retry_after_s=5)
        names = ", ".join(sorted(self._known)[:10]) or "none yet"
        detail = f"No worker serves the model {wanted!r}; known models: {names}."
        raise Problem(404, "model-not-found", detail)

    def _choose_usual(self) -> str:
        """Return the same model as last time, as long as it is served: leases end in any order."""
        if self._known.get(self._usual, _NEVER) < self._known_ms - AWAY_MS:
            self._usual = max(self._known, key=lambda name: self._known[name])
        return self._usual

    def _is_known(self, wanted: str | None) -> bool:
        if wanted is None:
            return bool(self._default or self._known)
        return bool(wanted) and (wanted == self._default or wanted in self._known)
