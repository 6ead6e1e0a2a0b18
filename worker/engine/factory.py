"""Which engine a worker runs. An engine's libraries are imported only when it is chosen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from worker.engine.protocol import Engine

EngineKind = Literal["local", "fake"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine needs to know to load ``model``.

    ``model`` is a known name, a Hugging Face ID, a directory or a GGUF file; for the fake engine
    any name. ``capacity`` bounds the requests that run at once. ``fake_tokens_per_s`` is per
    request; 0 is as fast as possible.
    """

    model: str
    cache_dir: Path
    capacity: int = 4
    device: Device = "auto"
    fake_tokens_per_s: float = 0.0


def create_engine(kind: EngineKind, options: EngineOptions) -> Engine:
    """Return an engine that has not loaded its model yet."""
    if kind == "fake":
        from worker.engine.fake import FakeEngine  # noqa: PLC0415

        return FakeEngine(
            options.model, tokens_per_s=options.fake_tokens_per_s, capacity=options.capacity
        )
    # torch takes seconds to import and is an optional dependency.
    from worker.engine.local import LocalEngine  # noqa: PLC0415

    return LocalEngine(options)
