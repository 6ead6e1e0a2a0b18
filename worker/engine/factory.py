"""Which engine a worker runs. An engine's libraries are imported only when it is chosen."""

from worker.engine.options import EngineKind, EngineOptions
from worker.engine.protocol import Engine
from worker.model.checkpoint import find_checkpoint

__all__ = ["EngineOptions", "create_engine", "public_name"]


def public_name(kind: EngineKind, model: str) -> str:
    """Return the name under which clients know the model; raises ``StartupFailed``.

    Cheap: nothing is imported or loaded.
    """
    return model if kind == "fake" else find_checkpoint(model).name


def create_engine(kind: EngineKind, options: EngineOptions) -> Engine:
    """Return an engine that has not loaded its model yet; raises ``StartupFailed``."""
    if kind == "fake":
        from worker.engine.fake import FakeEngine  # noqa: PLC0415

        return FakeEngine(
            options.model, tokens_per_s=options.fake_tokens_per_s, capacity=options.capacity
        )
    if kind in ("remote", "vllm"):
        raise NotImplementedError(kind)
    from worker.engine.local import LocalEngine  # noqa: PLC0415

    return LocalEngine(options)
