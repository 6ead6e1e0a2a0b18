"""Which model a request means."""

from common.errors import Problem
from gateway.services import Services


async def choose_model(services: Services, wanted: str | None) -> str:
    """Return the model that is named, else the default one; raises ``Problem``."""
    default = services.settings.default_model
    known = await services.registry.models()
    if wanted is not None:
        if wanted not in known and wanted != default:
            names = ", ".join(sorted(known)[:10]) or "none yet"
            detail = f"No worker serves the model {wanted!r}; known models: {names}."
            raise Problem(404, "model-not-found", detail)
        return wanted
    if default:
        return default
    if not known:
        detail = "No worker has registered a model yet; start one with `headrace worker`."
        raise Problem(503, "no-model", detail, retry_after_s=5)
    return max(known, key=lambda name: known[name])
