"""The factory imports what the chosen engine needs, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import StartupFailed
from worker.engine.factory import EngineOptions, create_engine, public_name
from worker.engine.fake import FakeEngine
from worker.engine.local import LocalEngine

_FAKE_WITHOUT_TORCH = """
import sys
from pathlib import Path
sys.modules.update(torch=None, transformers=None, tokenizers=None)  # importing them fails
from worker.engine.factory import EngineOptions, create_engine
create_engine("fake", EngineOptions("m", Path()))
"""


def test_the_fake_engine_needs_no_torch() -> None:
    """A worker for tests starts where the worker extra is not installed."""
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
