"""Where a benchmark keeps every figure that it has measured."""

from pathlib import Path

import msgspec


def keep(report: msgspec.Struct, path: Path | None) -> None:
    """Write the report as JSON, where somebody wants it."""
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
