"""Which node of a cluster a command goes to (pure)."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.crc import key_slot

from common.topology.server_url import Address

_KEYLESS = frozenset(
    {"ASKING", "CLIENT", "CLUSTER", "CONFIG", "INFO", "PING", "PUBLISH", "SCRIPT", "TIME"}
)
_SCRIPTS = frozenset({"EVAL", "EVALSHA"})
FIRST_SLOT = 0
"""Where commands without a key go: always to the same node, so that its clock is one clock."""


@dataclass(frozen=True, slots=True)
class Range:
    """Neighbouring slots with one owner, and that owner's replicas."""

    first: int
    last: int
    owner: Address
    replicas: tuple[Address, ...]


class SlotMap:
    """Who owns which slot, as some node has told it."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self._ranges = sorted(ranges, key=lambda r: r.first)
        self._starts = [r.first for r in self._ranges]
        self.primaries = tuple(dict.fromkeys(r.owner for r in self._ranges))
        replicas = (replica for r in self._ranges for replica in r.replicas)
        self.nodes = tuple(dict.fromkeys((*self.primaries, *replicas)))

    def owner(self, slot: int) -> Address | None:
        """Return the slot's owner, None where nobody owns it."""
        index = bisect_right(self._starts, slot) - 1
        if index < 0 or self._ranges[index].last < slot:
            return None
        return self._ranges[index].owner


def read_slot_map(reply: Sequence[Any], asked: Address) -> SlotMap:
    """Return the map of a ``CLUSTER SLOTS`` reply; a node without a name is the one asked."""
    return SlotMap(
        Range(int(first), int(last), *_owner_and_replicas(nodes, asked))
        for first, last, *nodes in reply
    )


def _owner_and_replicas(
    nodes: Sequence[Any], asked: Address
) -> tuple[Address, tuple[Address, ...]]:
    owner, *replicas = (((node[0] or b"").decode() or asked[0], int(node[1])) for node in nodes)
    return owner, tuple(replicas)


def slot_of(command: Sequence[Any]) -> int | None:
    """Return the slot of the command's first key, None where it has no key.

    All keys of a command of ours are in one slot; for another one the server refuses it.
    """
    name = str(command[0]).upper().partition(" ")[0]
    if name in _KEYLESS:
        return None
    if name in _SCRIPTS:
        return key_slot(_encoded(command[3])) if int(command[2]) else None
    return key_slot(_encoded(command[1]))


def slots_of(commands: Sequence[Sequence[Any]]) -> list[int]:
    """Return the slot of every command; one without a key goes where the one before it goes."""
    slots = [slot_of(command) for command in commands]
    latest = next((slot for slot in slots if slot is not None), FIRST_SLOT)
    found = []
    for slot in slots:
        latest = latest if slot is None else slot
        found.append(latest)
    return found


def _encoded(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key
