"""An engine without weights: the scheduler and the KV cache, over a model that writes hashes."""

from collections.abc import Sequence as Many
from pathlib import Path

from common.jobs import Sampling
from tests.worker.kv.fake import FakeModel, make_pool, make_table
from worker.engine.local.sampling import SamplerState
from worker.engine.local.scheduler import Scheduler, Slice
from worker.engine.local.sequence import Sequence
from worker.kv.cache import KvCache
from worker.kv.disk import DiskTier
from worker.kv.host import HostTier
from worker.kv.tiers import Tiers

BLOCK_TOKENS = 4
TENANT = "ada"
GREEDY = Sampling(temperature=0)
VOCAB_LEN = 1000


def make_sequence(
    order: int,
    ids: Many[int] = (1, 2, 3),
    max_tokens: int = 4,
    *,
    rank: int = 1,
    leader: Sequence | None = None,
    end_ids: frozenset[int] = frozenset(),
    sampling: Sampling = GREEDY,
    num_logprobs: int | None = None,
    block_tokens: int = BLOCK_TOKENS,
) -> Sequence:
    """Return a sequence that waits for its first step; its ID is ``s`` and the order."""
    if leader is not None:
        leader.has_followers = True
    return Sequence(
        id=f"s{order}",
        order=order,
        rank=rank,
        ids=list(ids),
        prompt_len=len(ids),
        max_tokens=max_tokens,
        end_ids=end_ids,
        min_tokens=0,
        sampler=SamplerState(
            sampling,
            prompt_ids=ids,
            generated_ids=(),
            vocab_len=VOCAB_LEN,
            num_logprobs=num_logprobs,
        ),
        table=make_table(TENANT, block_tokens),
        leader=leader,
    )


class SimulatedEngine:
    """Makes steps; the next token is a function of the sequence."""

    def __init__(
        self, num_blocks: int, capacity: int, step_tokens: int, num_host_blocks: int = 0
    ) -> None:
        pool = make_pool(num_blocks, BLOCK_TOKENS)
        host = HostTier(num_host_blocks * pool.shape.block_bytes)
        self.tiers = Tiers(host, DiskTier(Path("unused"), 0))
        self.cache = KvCache(num_blocks, BLOCK_TOKENS, pool, self.tiers)
        self.model = FakeModel(pool, self.cache.manager)
        self.scheduler = Scheduler(self.cache, capacity, step_tokens)

    @property
    def running(self) -> list[Sequence]:
        """The sequences that have a slot, who must give way first at the end."""
        running = self.scheduler._running.values()
        return sorted(running, key=lambda sequence: (sequence.rank, sequence.order))

    @property
    def waiting(self) -> list[Sequence]:
        """The sequences that have none, the oldest first."""
        waiting = self.scheduler._waiting.values()
        return sorted(waiting, key=lambda sequence: sequence.order)

    def step(self) -> list[Slice]:
        """Plan a step and make it."""
        slices = self.scheduler.plan()
        for part in slices:
            self._run(part)
        for sequence in self.running:
            self.model.verify(TENANT, sequence.table, sequence.ids)
        if self.scheduler.is_idle:
            self.scheduler.check()
        return slices

    def _run(self, part: Slice) -> None:
        sequence = part.sequence
        self.model.compute(TENANT, sequence.table, sequence.ids, part.start, part.end)
        self.cache.advance(sequence.table, sequence.ids, part.end)
        if not part.is_last:
            return
        if not sequence.has_prefilled:
            sequence.has_prefilled = True
            if sequence.has_followers:
                self.cache.share_tail(sequence.table, sequence.ids)
        sequence.ids.append(hash(tuple(sequence.ids)) % 2)
        if sequence.is_over:
            self.scheduler.end(sequence.id)
