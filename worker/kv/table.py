"""The blocks of one sequence, and how many tokens they hold.

Along the sequence: blocks that are shared and full, own ones that are full, an own one that is
partial. ``num_tokens`` ends in the last of these; what is grown behind it is not yet written.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Hits:
    """Prompt tokens that were asked for, and where they were found."""

    queried: int = 0
    device: int = 0
    host: int = 0
    disk: int = 0

    def add(self, other: "Hits") -> None:
        """Count what was found for somebody."""
        self.queried += other.queried
        self.device += other.device
        self.host += other.host
        self.disk += other.disk


@dataclass(slots=True, eq=False)
class Table:
    """The blocks of one sequence. ``num_tokens`` of them are computed; ``chain[i]`` names i blocks.

    ``chain[0]`` is the salt that keeps tenants apart.
    """

    chain: list[bytes]
    blocks: list[int] = field(default_factory=list)
    num_tokens: int = 0
    hits: Hits = field(default_factory=Hits)  # of the last ``open``
