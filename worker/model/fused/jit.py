"""Compiling Python functions to machine code, and what this processor can do."""

import hashlib
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
import structlog
from llvmlite import binding
from numba import types

_log = structlog.get_logger()

_COMPILE_S = 300.0
_MAX_COPIES = 8  # of a megabyte each
Function = TypeVar("Function", bound=Callable[..., Any])

_FEATURES: Final[dict[str, bool]] = dict(binding.get_host_cpu_features())

# Floats in a vector register. The packed weights depend on it.
LANES: Final[int] = 16 if _FEATURES.get("avx512f") else 8
# Columns that a product computes at a time: two registers of them.
PANEL: Final[int] = 2 * LANES
# Rows that a product of floats, or of bytes, computes at a time: as many as stay in registers, of
# which AVX2 has 16. Bytes have sums of integers and of floats: with 6 rows these are 24, and 12
# chains of dot products hide what each of them waits for; 8 rows do not fit. The figures are in
# docs/decisions.md.
FLOAT_ROWS: Final[int] = 8 if LANES == 16 else 4
BYTE_ROWS: Final[int] = 6 if LANES == 16 else 2
# The instruction that multiplies bytes: one for four pairs of bytes, or one for pairs of 16 bits.
# (The one for pairs of bytes, of AVX2, saturates.)
_HAS_DOT: Final = _FEATURES.get("avx512vnni" if LANES == 16 else "avxvnni", False)
_HAS_MADD: Final = _FEATURES.get("avx512bw" if LANES == 16 else "avx2", False)
DOT: Final = "dot" if _HAS_DOT else "madd" if _HAS_MADD else "plain"

# NaN and infinity must survive: they are how a broken model is noticed.
_FAST_MATH: Final[set[str]] = {"reassoc", "contract", "nsz", "arcp"}


def inline(function: Function) -> Function:
    """Compile a function that only compiled functions call."""
    compiled = numba.njit(nogil=True, fastmath=_FAST_MATH, error_model="numpy")
    return cast("Function", compiled(function))


def compile_entry(function: Callable[[Any], None], cache_dir: Path | None) -> int:
    """Compile a function of one pointer and all that it calls; return its address.

    The machine code is kept in the directory, if one is given, and then it is always the kept code
    that runs: in the process that compiles, some calls go to copies that were optimised by
    themselves and add in another order, and two workers would not make the same bits.
    """
    if cache_dir is None:
        return _compile(function, None)
    directory = cache_dir / f"kernels-{_digest(function)}"
    if not any(directory.rglob("*.nbc")):
        _compile_elsewhere(function, directory)
        _forget_old_copies(cache_dir)
    return _compile(function, directory)


def _compile_elsewhere(function: Callable[[Any], None], directory: Path) -> None:
    """Let another process compile; where that fails, this one does it for itself."""
    name = f"from {function.__module__} import {function.__name__} as function"
    code = f"{name}; from {__name__} import keep; keep(function, {str(directory)!r})"
    # -P: modules come from where this process has them, not from the working directory.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-c", code]
    try:
        subprocess.run(command, check=True, timeout=_COMPILE_S, env=environment)  # noqa: S603 - ours
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("kernels_not_kept", error=str(error))


def _forget_old_copies(cache_dir: Path) -> None:
    """Keep what was compiled last: every installation and every change of the code has its own."""
    with suppress(OSError):  # somebody else may do the same
        kept = sorted(cache_dir.glob("kernels-*"), key=lambda found: found.stat().st_mtime)
        for old in kept[:-_MAX_COPIES]:
            shutil.rmtree(old)


def keep(function: Callable[[Any], None], directory: str) -> None:
    """Compile a function, for the processes that come later."""
    _compile(function, Path(directory))


def _compile(function: Callable[[Any], None], directory: Path | None) -> int:
    if directory is not None:
        vars(numba.config)["CACHE_DIR"] = str(directory)
    signature = types.void(types.voidptr)
    compiled = numba.cfunc(
        signature, cache=directory is not None, fastmath=_FAST_MATH, error_model="numpy"
    )
    return cast("int", compiled(function).address)


def _digest(function: Callable[[Any], None]) -> str:
    """Return a name for this copy of the package, its compiler and this processor.

    numba looks only at the file of the function that it compiles, not at what that one calls. It
    takes what was kept for a file at another place, or of another time, for nothing; so that is in
    the name too.
    """
    own_file = Path(inspect.getfile(function))
    machine = (
        str(own_file.resolve()),
        own_file.stat().st_mtime_ns,
        numba.__version__,
        sys.version,
        binding.get_host_cpu_name(),
        sorted(_FEATURES.items()),
    )
    digest = hashlib.sha256(repr(machine).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
