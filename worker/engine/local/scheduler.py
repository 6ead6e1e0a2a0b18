"""Which sequences take part in a step, and with how many tokens. Pure bookkeeping: no tensor.

Every running sequence that decodes gets its token; what is left of the step's tokens goes to
prefills, the oldest first, in chunks. When blocks run out, the youngest of the lowest priority
waits again: its blocks stay cached or move to the tiers below as long as there is room, so that it
recomputes no more than it must. The oldest of the highest priority is never sent away, and nobody
is admitted who could not finish alone, so somebody always gets on.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from worker.engine.local.sequence import Sequence
from worker.kv.cache import KvCache

# So many younger ones may be admitted first before a waiting sequence rises by one priority.
AGEING = 16


@dataclass(frozen=True, slots=True)
class Slice:
    """A sequence's part of a step: ``length`` of its tokens, from ``start`` on."""

    sequence: Sequence
    start: int
    length: int

    @property
    def end(self) -> int:
        """The place behind its last token."""
        return self.start + self.length

    @property
    def is_last(self) -> bool:
        """Tell whether the next token follows from it."""
        return self.end == len(self.sequence.ids)


class Scheduler:
    """Owns all sequences from ``add`` to ``remove``; at most ``capacity`` of them run."""

    def __init__(self, cache: KvCache, capacity: int, step_tokens: int) -> None:
        self._cache = cache
        # Whoever decodes has a token in every step.
        self._capacity = min(capacity, step_tokens)
        self._step_tokens = step_tokens
        self._waiting: dict[str, Sequence] = {}
        self._running: dict[str, Sequence] = {}
        # Out of the running ones, with blocks to give back.
        self._ended: list[Sequence] = []
        # Who could not be admitted, and how many blocks nobody had been promised then: as long as
        # that is so, there is no use in trying again.
        self._refused: tuple[str, int] | None = None
        # How often a sequence was sent back to wait.
        self.num_preemptions = 0

    @property
    def is_idle(self) -> bool:
        """Tell whether there is nothing to do."""
        return not self._waiting and not self._running

    @property
    def num_running(self) -> int:
        """Sequences that have a slot."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that have none."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for a slot."""
        self._waiting[sequence.id] = sequence

    def end(self, sequence_id: str) -> None:
        """Let a running sequence take part in no step any more; ``tidy`` gives its blocks back."""
        sequence = self._running.pop(sequence_id)
        sequence.is_gone = True
        self._ended.append(sequence)

    def tidy(self) -> None:
        """Give back the blocks of those that have ended; ``plan`` does so by itself."""
        for sequence in self._ended:
            self._close(sequence, keep=True)
        self._ended.clear()

    def remove(self, sequence_id: str, *, keep: bool = True) -> None:
        """Forget a sequence and give its blocks back; an unknown one has just ended by itself.

        Without ``keep`` nothing that only it had computed is used again.
        """
        sequence = self._running.pop(sequence_id, None) or self._waiting.pop(sequence_id, None)
        if sequence is None:
            return
        sequence.is_gone = True
        self._close(sequence, keep=keep)

    def plan(self) -> list[Slice]:
        """Return the next step: those that decode first, each with one token."""
        self.tidy()
        slices: dict[str, Slice] = {}
        for sequence in self._by_claim(self._running.values()):
            if sequence.id in self._running and sequence.num_due == 1:
                self._grant(slices, sequence, 1)
        for sequence in self._by_claim(self._running.values()):
            if sequence.id in self._running and sequence.num_due > 1:
                self._grant(slices, sequence, self._left(slices))
        self._admit(slices)
        return sorted(slices.values(), key=lambda part: part.length > 1)

    def check(self) -> None:
        """Raise ``AssertionError`` where blocks are held although nobody runs."""
        self._cache.manager.check()
        if not self._running and not self._ended:
            assert self._cache.manager.num_used == 0, "blocks are held by nobody"

    def _close(self, sequence: Sequence, *, keep: bool) -> None:
        if keep and sequence.is_kept:
            self._cache.save(sequence.table, sequence.ids)
        self._cache.close(sequence.table, sequence.ids, keep=keep)

    def _left(self, slices: dict[str, Slice]) -> int:
        return self._step_tokens - sum(part.length for part in slices.values())

    def _grant(self, slices: dict[str, Slice], sequence: Sequence, most: int) -> None:
        """Plan up to ``most`` tokens of a running sequence, making room at the others' cost."""
        start = sequence.table.num_tokens
        length = min(sequence.num_due, most, sequence.max_slice_len)
        while length > 0:
            if self._cache.grow(sequence.table, start + length):
                slices[sequence.id] = Slice(sequence, start, length)
                return
            victim = max(self._running.values(), key=_claim)
            self._preempt(victim)
            slices.pop(victim.id, None)
            if victim is sequence:
                return

    def _preempt(self, victim: Sequence) -> None:
        self._cache.close(victim.table, victim.ids)
        self._waiting[victim.id] = self._running.pop(victim.id)
        self.num_preemptions += 1

    def _admit(self, slices: dict[str, Slice]) -> None:
        while self._waiting and len(self._running) < self._capacity and self._left(slices) > 0:
            sequence = self._next()
            if sequence is None or not self._open(sequence):
                return
            self._count_skipped(sequence)
            del self._waiting[sequence.id]
            self._running[sequence.id] = sequence
            self._grant(slices, sequence, self._left(slices))

    def _next(self) -> Sequence | None:
        ready = [sequence for sequence in self._waiting.values() if sequence.is_ready]
        return min(ready, key=_claim_to_admission, default=None)

    def _open(self, sequence: Sequence) -> bool:
        """Give a sequence what is cached of it, if the rest of its prefill will have room too."""
        promised = sum(self._num_promised(other) for other in self._running.values())
        refused = (sequence.id, self._cache.num_available - promised)
        if refused == self._refused:
            return False
        cached_len = 0  # what is not computed has no log probabilities
        if not sequence.wants_prompt_logprobs or sequence.has_prefilled:
            cached_len = self._cache.open(sequence.table, sequence.ids)
        missing = self._cache.num_blocks_for(len(sequence.ids) + 1) - len(sequence.table.blocks)
        if missing + promised > self._cache.num_available:
            self._cache.close(sequence.table, sequence.ids)
            self._refused = refused
            return False
        self._refused = None
        if sequence.cached_len is None:  # later it finds what it computed itself
            sequence.cached_len = min(cached_len, sequence.prompt_len)
            self._cache.hits.add(sequence.table.hits)
        return True

    def _num_promised(self, sequence: Sequence) -> int:
        """Return the blocks that a running sequence still needs for its prefill."""
        wanted = self._cache.num_blocks_for(len(sequence.ids))
        return max(0, wanted - len(sequence.table.blocks))

    def _count_skipped(self, admitted: Sequence) -> None:
        for sequence in self._waiting.values():
            if sequence.order < admitted.order:
                sequence.skipped += 1

    @staticmethod
    def _by_claim(sequences: Iterable[Sequence]) -> list[Sequence]:
        return sorted(sequences, key=_claim)


def _claim(sequence: Sequence) -> tuple[int, int]:
    """Order by who must give way: the greatest first."""
    return sequence.rank, sequence.order


def _claim_to_admission(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank - sequence.skipped // AGEING, sequence.order
