"""Prompt IDs: what a job may build on, and the doors that show and forget what is stored."""

from starlette.requests import Request
from starlette.responses import Response

from common.errors import Problem
from common.jobs import JobSpec
from common.names import is_name
from common.prompts import PromptIndex, StoredPrompt, forget_message
from gateway.replies import json_response
from gateway.schemas import PromptView
from gateway.services import Services, services_of, tenant_of
from gateway.views import rfc3339


def prompt_not_found(prompt_id: str) -> Problem:
    """Return the refusal of a prompt ID under which this tenant has nothing."""
    detail = (
        f"Nothing is stored under the prompt ID {prompt_id[:200]!r}; "
        "a job with a full prompt stores its sequence there."
    )
    return Problem(404, "prompt-not-found", detail)


async def check_stored(services: Services, tenant: str, spec: JobSpec) -> None:
    """Check what the job wants to build on; raises ``Problem``.

    It can change until the job starts: its worker checks it again.
    """
    if spec.prompt_id is None or not (spec.builds_on_stored or spec.if_version is not None):
        return
    index = PromptIndex(services.redis, services.keys, spec.model)
    stored = await index.read(tenant, spec.prompt_id)
    if stored is None and spec.builds_on_stored:
        raise prompt_not_found(spec.prompt_id)
    version = stored.version if stored is not None else 0
    if spec.if_version not in (None, version):
        detail = (
            f"The version of {spec.prompt_id!r} is {version}, not {spec.if_version}; "
            "read it again (`GET /v1/prompts/…`) and build on what is there."
        )
        raise Problem(409, "prompt-version-conflict", detail)


async def show_prompt(request: Request) -> Response:
    """``GET /v1/prompts/{id}``: what is stored under a prompt ID."""
    services, tenant = services_of(request), tenant_of(request)
    model, prompt_id = await _read_names(request)
    stored = await PromptIndex(services.redis, services.keys, model).read(tenant, prompt_id)
    if stored is None:
        raise prompt_not_found(prompt_id)
    is_held = await services.registry.is_alive(model, stored.worker)
    now_ms = await services.registry.now_ms()
    return json_response(_view(prompt_id, model, stored, is_held=is_held, now_ms=now_ms))


async def forget_prompt(request: Request) -> Response:
    """``DELETE /v1/prompts/{id}``: forget it; all workers of its model drop the tensors.

    Not only the last one that worked on it: others may have the conversation of an earlier turn,
    or, since they were started again, on their disks.
    """
    services, tenant = services_of(request), tenant_of(request)
    model, prompt_id = await _read_names(request)
    stored = await PromptIndex(services.redis, services.keys, model).forget(tenant, prompt_id)
    if stored is None:
        raise prompt_not_found(prompt_id)
    message = forget_message(tenant, stored.ids)
    for worker_id in {stored.worker, *await services.registry.alive(model)}:
        await services.redis.publish(services.keys.worker_ctl(worker_id), message)
    return Response(status_code=204)


async def _read_names(request: Request) -> tuple[str, str]:
    """Return the model and the prompt ID of the request; no malformed ID has anything stored."""
    prompt_id = request.path_params["prompt_id"]
    if not is_name(prompt_id):
        raise prompt_not_found(prompt_id)
    model = await services_of(request).models.choose(request.query_params.get("model"))
    return model, prompt_id


def _view(
    prompt_id: str, model: str, stored: StoredPrompt, *, is_held: bool, now_ms: int
) -> PromptView:
    return PromptView(
        id=prompt_id,
        model=model,
        version=stored.version,
        length=stored.length,
        worker=stored.worker if is_held else None,
        updated_at=rfc3339(stored.updated_ms),
        expires_at=rfc3339(now_ms + stored.ttl_ms),
    )
