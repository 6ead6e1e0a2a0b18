"""The factory imports what the chosen engine needs, and nothing else."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import StartupFailed
from worker.engine.factory import EngineOptions, create_engine, public_name
from worker.engine.fake import FakeEngine
from worker.engine.local.engine import LocalEngine
from worker.engine.remote.engine import RemoteEngine

_FAKE_WITHOUT_TORCH = """
import sys
from pathlib import Path
sys.modules.update(torch=None, transformers=None, tokenizers=None)  # importing them fails
from worker.engine.factory import EngineOptions, create_engine
create_engine("fake", EngineOptions("m", Path()))
create_engine("remote", EngineOptions("m", Path(), upstream="http://127.0.0.1"))
"""


def test_the_fake_and_the_remote_engine_need_no_torch() -> None:
    """A worker for tests, or of a remote model, starts where the worker extra is not installed."""
    subprocess.run([sys.executable, "-c", _FAKE_WITHOUT_TORCH], check=True)


def test_the_kind_chooses_the_engine(tmp_path: Path) -> None:
    """A local engine of a directory is created without loading anything."""
    (tmp_path / "config.json").write_text("{}")
    options = EngineOptions(str(tmp_path), tmp_path)
    assert isinstance(create_engine("fake", options), FakeEngine)
    assert isinstance(create_engine("local", options), LocalEngine)


def test_public_names(tmp_path: Path) -> None:
    """Clients see the directory's name, not where it is."""
    (tmp_path / "config.json").write_text("{}")
    assert public_name("local", str(tmp_path)) == tmp_path.name
    assert public_name("fake", "anything") == "anything"
    with pytest.raises(StartupFailed):
        public_name("local", "./missing")


def test_a_remote_engine_needs_an_upstream(tmp_path: Path) -> None:
    """Its model is named as the upstream names it."""
    options = EngineOptions("org/model:7b", tmp_path, upstream="http://127.0.0.1:8000")
    assert isinstance(create_engine("remote", options), RemoteEngine)
    assert public_name("remote", "org/model:7b") == "org/model:7b"
    with pytest.raises(StartupFailed, match="--model"):
        public_name("remote", "a {name}")
    with pytest.raises(StartupFailed, match="--upstream"):
        create_engine("remote", EngineOptions("m", tmp_path))
    with pytest.raises(StartupFailed, match="HEADRACE_UPSTREAM_KEY"):
        create_engine("remote", replace(options, upstream_key="a\nb"))
