"""Compiled functions: it is the kept machine code that runs, also where it was just compiled."""

import ctypes
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from structlog.testing import capture_logs

from worker.model.fused import jit
from worker.model.fused.jit import compile_entry
from worker.model.fused.memory import carray


def double(data: Any) -> None:
    """Double a float."""
    number = carray(data, (1,), np.float32)
    number[0] *= 2


def _doubled(address: int) -> float:
    number = ctypes.c_float(21)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(ctypes.addressof(number))
    return number.value


@pytest.mark.parametrize("is_kept", [True, False])
def test_another_process_compiles_what_is_kept(tmp_path: Path, *, is_kept: bool) -> None:
    """Once; who keeps nothing compiles for itself."""
    cache_dir = tmp_path if is_kept else None
    with patch.object(subprocess, "run", side_effect=subprocess.run) as run:
        assert _doubled(compile_entry(double, cache_dir)) == 42
        assert _doubled(compile_entry(double, cache_dir)) == 42
    assert run.call_count == is_kept
    assert any(tmp_path.rglob("*.nbc")) == is_kept


def test_another_copy_of_the_package_is_compiled_elsewhere_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numba finds nothing of the first copy; the process must not run what it has compiled."""
    with patch.object(subprocess, "run", side_effect=subprocess.run) as run:
        for name in ("one", "other"):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "doubling.py").write_text(Path(__file__).read_text())
            with monkeypatch.context() as patched:
                patched.syspath_prepend(folder)
                patched.delitem(sys.modules, "doubling", raising=False)
                copy = importlib.import_module("doubling")
                for _ in range(2):
                    assert _doubled(compile_entry(copy.double, tmp_path / "kept")) == 42
    assert run.call_count == 2


def test_few_copies_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were compiled last; what else is in the folder stays."""
    monkeypatch.setattr(jit, "_MAX_COPIES", 2)
    for age, name in enumerate(("kernels-b", "kernels-a", "models", "kernels-c")):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (age, age))
    assert _doubled(compile_entry(double, tmp_path)) == 42
    own, *others = sorted(tmp_path.iterdir(), key=lambda found: found.stat().st_mtime)[::-1]
    assert own.name.startswith("kernels-")
    assert [other.name for other in others] == ["kernels-c", "models"]


def test_without_another_process_it_compiles_too(tmp_path: Path) -> None:
    """A machine that cannot start one more is slower, not broken."""
    with patch.object(subprocess, "run", side_effect=OSError("no memory")), capture_logs() as said:
        assert _doubled(compile_entry(double, tmp_path)) == 42
    assert [line["event"] for line in said] == ["kernels_not_kept"]
