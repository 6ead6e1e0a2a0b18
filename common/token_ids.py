"""Token IDs as bytes: how they are stored, sent and hashed, on every host the same."""

import struct
from collections.abc import Sequence


def pack_ids(ids: Sequence[int]) -> bytes:
    """Return token IDs as little-endian unsigned 32-bit numbers."""
    return struct.pack(f"<{len(ids)}I", *ids)


def unpack_ids(packed: bytes) -> tuple[int, ...]:
    """Return the token IDs of ``pack_ids``."""
    return struct.unpack(f"<{len(packed) // 4}I", packed)
