"""Which sequences take part in a step. Pure bookkeeping: no tensor, no thread."""

import bisect

from worker.engine.sequence import Sequence


class Scheduler:
    """Owns all sequences from ``add`` to ``remove``; at most ``capacity`` of them run."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        # By ``order``, which is not the order of ``add``: a long prompt takes longer to tokenise.
        self._waiting: list[Sequence] = []
        # In order of admission.
        self._running: dict[str, Sequence] = {}

    @property
    def is_idle(self) -> bool:
        """Tell whether there is nothing to do."""
        return not self._waiting and not self._running

    @property
    def num_running(self) -> int:
        """Sequences that have a slot."""
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for a slot."""
        bisect.insort(self._waiting, sequence, key=lambda waiting: waiting.order)

    def remove(self, sequence_id: str) -> None:
        """Forget a sequence and free its cache; an unknown one has just ended by itself."""
        sequence = self._running.pop(sequence_id, None)
        if sequence is not None:
            sequence.cache = None
        else:
            self._waiting = [waiting for waiting in self._waiting if waiting.id != sequence_id]

    def admit(self) -> None:
        """Give free slots to those who wait longest."""
        while self._waiting and len(self._running) < self._capacity:
            sequence = self._waiting.pop(0)
            self._running[sequence.id] = sequence

    def plan(self) -> list[Sequence]:
        """Return who takes part in the next step.

        One sequence may prefill a chunk, the one admitted first, so that the others wait for a
        token no longer than one chunk takes. Then everyone else makes one token.
        """
        running = list(self._running.values())
        prefilling = [sequence for sequence in running if sequence.is_prefilling]
        return prefilling[:1] + [sequence for sequence in running if not sequence.is_prefilling]
