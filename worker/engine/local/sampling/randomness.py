"""Random numbers that any worker can make again."""

import hashlib
import struct


def uniform(seed: int, position: int, choice: int = 0) -> float:
    """Return a number in [0, 1) that looks random but depends on the arguments alone.

    A hash rather than a ``torch.Generator``: any position is reached at once, and neither device
    nor version of torch changes the number. It must never change for jobs that are under way;
    choice 0 leaves the choice out, as the releases did that had none.
    """
    place = struct.pack("<QQ", seed, position) + (struct.pack("<Q", choice) if choice else b"")
    digest = hashlib.blake2b(place, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)
