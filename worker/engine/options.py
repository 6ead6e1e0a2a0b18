"""What an engine needs to know to load its model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EngineKind = Literal["local", "fake"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of every kind of engine.

    ``model`` is a known name, a Hugging Face ID, a directory or a GGUF file; for the fake engine
    any name. ``capacity`` bounds the requests that run at once, ``threads`` the CPU threads (0:
    torch's choice). ``fake_tokens_per_s`` is per request; 0 is as fast as possible.
    """

    model: str
    cache_dir: Path
    capacity: int = 4
    device: Device = "auto"
    threads: int = 0
    fake_tokens_per_s: float = 0.0
