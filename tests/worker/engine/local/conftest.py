"""Fixtures of the local engine's tests: tiny models, and an engine that has loaded one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

import worker.model.network
from tests.worker.engine.local.engines import Reference, loaded, reference_of, saved
from worker.engine.local.engine import LocalEngine

pytest.register_assert_rewrite("tests.worker.engine.local.ways")
torch.set_num_threads(1)  # of small tensors, several threads only wait for each other


@pytest.fixture
def generic_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled path has tests of its own, and takes long to compile."""
    monkeypatch.setattr(worker.model.network.Paths, "_fused", lambda _paths: iter(()))


@pytest.fixture
def compiled_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot run the model, nothing takes its place."""
    monkeypatch.setattr(worker.model.network.Paths, "_in_torch", lambda *_: iter(()))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny model of every architecture that is wanted."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny_model(models: Path) -> Path:
    """A directory with a random Llama of a few thousand weights and its tokeniser."""
    return saved(models, "llama")


@pytest.fixture(scope="session")
def reference(tiny_model: Path) -> Reference:
    """The tiny model in transformers' hands."""
    return reference_of(tiny_model)


@pytest.fixture
async def engine(tiny_model: Path) -> AsyncIterator[LocalEngine]:
    """The tiny model with two slots."""
    async with loaded(tiny_model) as engine:
        yield engine
