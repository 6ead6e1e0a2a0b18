"""What a client knows of its cluster: who owns which slot, and whom to ask when in doubt (pure)."""

from collections.abc import Iterable, Sequence

from redis import exceptions

from common.topology.server_url import Address
from common.topology.slots import SlotMap

MAX_REDIRECTS = 5
ASK_S = 1.0


class KnownNodes:
    """The slot map, and whether it may be wrong. ``seeds`` are asked where it names nobody."""

    def __init__(self, seeds: Sequence[Address]) -> None:
        self.map = SlotMap(())
        self.is_doubtful = True  # ask before the next command
        self._seeds = seeds
        self._suspects: set[Address] = set()  # did not answer lately: asked last

    def to_ask(self) -> list[Address]:
        """Return the nodes that may know the map, those that answered last time first."""
        known = dict.fromkeys((*self.map.nodes, *self._seeds))
        return sorted(known, key=self._suspects.__contains__)

    def learn(self, found: SlotMap) -> None:
        """Take the map that a node has told."""
        self._suspects.clear()
        self.map, self.is_doubtful = found, False

    def suspect(self, address: Address) -> None:
        """Doubt the map, because this node did not answer, and ask that one last."""
        self._suspects.add(address)
        self.is_doubtful = True

    def owner(self, slot: int) -> Address:
        """Return the slot's owner; raises redis-py's ``ConnectionError`` where there is none."""
        found = self.map.owner(slot)
        if found is None:
            self.is_doubtful = True
            raise exceptions.ConnectionError(f"no node of the cluster owns slot {slot}")
        return found


def nobody_answers(asked: Iterable[Address], reason: str) -> exceptions.ConnectionError:
    """Return the error of a cluster of which no node tells the map."""
    return exceptions.ConnectionError(
        f"none of {len(list(asked))} cluster nodes answers: {reason or 'no reply in time'}"
    )


def unsettled(slot: int) -> exceptions.ConnectionError:
    """Return the error of nodes that send us from one to the other."""
    return exceptions.ConnectionError(f"the cluster does not settle who owns slot {slot}")
