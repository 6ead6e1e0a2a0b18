"""torch's own OpenMP threads, for work of ours."""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class Team:
    """The functions of the OpenMP library that torch has loaded, by address.

    numba's own threads would be a second pool: its wheel asks for the system's libgomp, torch
    brings its own, and each pool goes on spinning for a while when the other one starts.
    """

    library: ctypes.CDLL

    def address(self, name: str) -> int:
        """Return the address of a function."""
        return ctypes.cast(getattr(self.library, name), ctypes.c_void_p).value or 0

    def run(self, function: int, data: int, num_threads: int) -> None:
        """Call a function ``void f(void *)`` on so many threads, the calling one among them."""
        self.library.GOMP_parallel(ctypes.c_void_p(function), ctypes.c_void_p(data), num_threads, 0)


@cache
def find_team() -> Team | None:
    """Return torch's threads, or ``None`` where it uses another library than GNU's."""
    place = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    if not place.is_file():
        return None
    return Team(ctypes.CDLL(str(place)))
