"""Which engine a worker runs. An engine's libraries are imported only when it is chosen."""

from common.errors import StartupFailed
from common.names import is_name
from worker.engine.options import EngineKind, EngineOptions
from worker.engine.protocol import Engine
from worker.model.checkpoint import find_checkpoint

__all__ = ["EngineOptions", "create_engine", "public_name"]


def public_name(kind: EngineKind, model: str) -> str:
    """Return the name under which clients know the model; raises ``StartupFailed``.

    Cheap: nothing is imported or loaded.
    """
    if kind == "remote":
        _require_name(model)
        return model
    return model if kind == "fake" else find_checkpoint(model).name


def create_engine(kind: EngineKind, options: EngineOptions) -> Engine:
    """Return an engine that has not loaded its model yet; raises ``StartupFailed``."""
    if kind == "fake":
        from worker.engine.fake import FakeEngine  # noqa: PLC0415

        return FakeEngine(
            options.model, tokens_per_s=options.fake_tokens_per_s, capacity=options.capacity
        )
    if kind == "remote":
        from worker.engine.remote.engine import RemoteEngine  # noqa: PLC0415

        return RemoteEngine(options)
    if kind == "vllm":
        from worker.engine.vllm.engine import VllmEngine  # noqa: PLC0415

        return VllmEngine(options)
    from worker.engine.local.engine import LocalEngine  # noqa: PLC0415

    return LocalEngine(options)


def _require_name(model: str) -> None:
    if not is_name(model):
        raise StartupFailed(f"--model {model!r} is no name that jobs could give.")
