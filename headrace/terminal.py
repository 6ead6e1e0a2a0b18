"""What people see. Answers go to stdout as they are; everything else goes to stderr."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Show = Callable[[str], None]

_QUIET_S = 5.0


class _Cursor:
    """Where the terminal's cursor is: answers stop in mid-line when something happens."""

    in_line = False


def note(line: str) -> None:
    """Print one line about what happens, on a line of its own."""
    fresh = "\n" if _Cursor.in_line and sys.stdout.isatty() else ""
    _Cursor.in_line = False
    sys.stderr.write(f"{fresh}{line}\n")
    sys.stderr.flush()


def complain(line: str) -> None:
    """Print one line about what went wrong."""
    note(f"headrace: {line}")


def write(text: str) -> None:
    """Print a piece of an answer, unchanged and at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
    _Cursor.in_line = not text.endswith("\n")


def write_json(value: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document for a program."""
    write(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def write_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, readable by people and by ``awk``."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        write("   ".join(cells).rstrip() + "\n")


def age(seconds: float) -> str:
    """Return a duration as people say it: ``4s``, ``12m``, ``3h``, ``2d``."""
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def size(num_bytes: int) -> str:
    """Return a number of bytes in at most four characters and a unit: ``0``, ``512K``, ``1.5G``."""
    for unit, length in (("G", 1024**3), ("M", 1024**2), ("K", 1024)):
        if num_bytes >= length:
            value = num_bytes / length
            return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
    return str(num_bytes)


@contextmanager
def progress(first: str) -> Iterator[Show]:
    """Show what takes time: a spinner on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _Lines().show
        return
    from rich.console import Console  # noqa: PLC0415 - only people wait for a spinner
    from rich.text import Text  # noqa: PLC0415 - no markup: a path may have brackets

    with Console(stderr=True).status(first) as status:
        yield lambda text: status.update(Text(text))


class _Lines:
    """Progress for a log file: a changed text, at most one line in five seconds."""

    def __init__(self) -> None:
        self._last = ""
        self._next = time.monotonic() + _QUIET_S

    def show(self, text: str) -> None:
        if text != self._last and time.monotonic() >= self._next:
            note(text)
            self._last = text
            self._next = time.monotonic() + _QUIET_S
