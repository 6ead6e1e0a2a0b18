"""The KV cache of running sequences: what a table holds is what its tokens demand."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from structlog.testing import capture_logs

from tests.worker.kv.fake import FakeModel, make_pool, make_table
from worker.kv.cache import KvCache
from worker.kv.disk import DiskTier
from worker.kv.host import HostTier
from worker.kv.table import Table
from worker.kv.tiers import Tiers

BLOCK_TOKENS = 4
DEADLINE_S = 30.0
LARGE = 1 << 20
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=18)


class Device:
    """A cache over a pool of NaN, with a model that writes hashes."""

    def __init__(self, num_blocks: int, tiers: Tiers | None = None) -> None:
        pool = make_pool(num_blocks, BLOCK_TOKENS)
        self.cache = KvCache(num_blocks, BLOCK_TOKENS, pool, tiers)
        self.model = FakeModel(pool, self.cache.manager)

    def run(self, ids: list[int], tenant: str = "ada", *, keep: bool = True) -> int:
        """Compute a sequence, but for its last token; return how much of it was known."""
        table = make_table(tenant, BLOCK_TOKENS)
        known = self.cache.open(table, ids)
        self.cache.hits.add(table.hits)
        self.model.verify(tenant, table, ids)
        self.advance(table, ids, len(ids) - 1, tenant)
        self.cache.close(table, ids, keep=keep)
        self.cache.manager.check()
        return known

    def advance(self, table: Table, ids: list[int], end: int, tenant: str = "ada") -> None:
        """Compute the tokens up to ``end``; there must be room."""
        assert self.cache.grow(table, end)
        self.model.compute(tenant, table, ids, table.num_tokens, end)
        self.cache.advance(table, ids, end)

    def forget(self, tenant: str, ids: list[int]) -> None:
        """Have a sequence dropped from every tier."""
        table = make_table(tenant, BLOCK_TOKENS)
        self.cache.forget(table, ids)
        self.cache.forget_below(table, ids)


def _make_tiers(directory: Path, host_bytes: int = LARGE, disk_bytes: int = LARGE) -> Tiers:
    return Tiers(HostTier(host_bytes), DiskTier(directory, disk_bytes))


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[Tiers]:
    """Host memory and a disk with room for all."""
    tiers = _make_tiers(tmp_path)
    yield tiers
    tiers.close()


def test_whole_blocks_and_the_tail_are_found() -> None:
    """Only the last token, whose successor nobody knows, is computed again."""
    device = Device(8)
    assert device.run(list(range(11))) == 0
    assert device.run(list(range(11))) == 10
    assert device.run([*range(10), 77, 78]) == 10
    assert device.run([*range(6), 77, 78]) == 6
    assert device.cache.hits.queried == 10 + 10 + 11 + 7
    assert device.cache.hits.device == 10 + 10 + 6
    assert device.cache.manager.num_used == 0


def test_a_block_that_begins_alike_is_copied() -> None:
    """Both the old end and the new one are found afterwards."""
    device = Device(8)
    device.run([1, 2, 3, 4, 5])
    assert device.run([1, 2, 9, 9, 9]) == 2
    assert device.run([1, 2, 3, 4, 5]) == 4
    assert device.run([1, 2, 9, 9, 9]) == 4


def test_the_tail_that_nobody_holds_is_taken_over() -> None:
    """It needs no second block; while somebody runs on it, it is copied."""
    device = Device(2)
    device.run([1, 2, 3])
    first, second = make_table("ada", BLOCK_TOKENS), make_table("ada", BLOCK_TOKENS)
    assert device.cache.open(first, [1, 2, 7]) == 2
    assert device.cache.manager.num_used == 1
    assert device.cache.manager.num_cached == 0
    device.cache.share_tail(first, [1, 2, 7])
    assert device.cache.open(second, [1, 2, 8]) == 2
    assert first.blocks != second.blocks
    device.advance(first, [1, 2, 7], 3)
    device.advance(second, [1, 2, 8], 3)
    device.model.verify("ada", first, [1, 2, 7])
    device.model.verify("ada", second, [1, 2, 8])


def test_tenants_never_share() -> None:
    """The same prompt of another tenant begins from nothing."""
    device = Device(8)
    device.run([1] * 9, "ada")
    assert device.run([1] * 9, "bob") == 0
    assert device.run([1] * 9, "bob") == 8


def test_what_is_not_kept_leaves_nothing() -> None:
    """But what somebody else holds too stays."""
    device = Device(8)
    assert device.run([1] * 5 + [2] * 6, keep=False) == 0
    assert device.cache.manager.num_cached == 0
    table = make_table("ada", BLOCK_TOKENS)
    device.cache.open(table, [1] * 5)
    device.advance(table, [1] * 5, 5)
    assert device.run([1] * 5 + [2] * 6, keep=False) == 4
    assert device.run([1] * 5 + [2] * 6, keep=False) == 4
    device.model.verify("ada", table, [1] * 5)
    device.cache.close(table, [1] * 5)
    assert device.cache.manager.num_cached == 2


def test_a_table_that_cannot_grow_keeps_what_it_has() -> None:
    """The blocks that there were belong to it."""
    device = Device(2)
    table = make_table("ada", BLOCK_TOKENS)
    device.cache.open(table, [1] * 20)
    assert not device.cache.grow(table, 9)
    assert len(table.blocks) == 2
    device.cache.close(table, [1] * 20)
    assert device.cache.num_available == 2


def test_lookup_tells_whole_blocks_of_all_tiers(tiers: Tiers) -> None:
    """And the tail that is on the device; it gives nobody anything."""
    device = Device(3, tiers)
    ids = list(range(9))
    assert device.cache.lookup(make_table("ada", BLOCK_TOKENS), ids) == 0
    device.run(ids)
    assert device.cache.lookup(make_table("ada", BLOCK_TOKENS), ids) == 8
    assert device.cache.lookup(make_table("ada", BLOCK_TOKENS), ids[:8]) == 7
    device.run([9] * 12)  # which drives it out
    assert device.cache.lookup(make_table("ada", BLOCK_TOKENS), ids) == 8
    assert device.cache.lookup(make_table("bob", BLOCK_TOKENS), ids) == 0
    assert device.cache.lookup(make_table("ada", BLOCK_TOKENS), ids[:8]) == 4


def test_what_was_evicted_comes_back(tiers: Tiers) -> None:
    """From host memory, tail included."""
    device = Device(3, tiers)
    device.run(list(range(11)))
    device.run([9] * 12)
    assert device.run(list(range(11))) == 10
    assert device.cache.hits.host == 10


def test_without_host_memory_a_block_is_lost_and_nothing_else(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sequence that needs its place goes on, and those tokens are computed again."""

    def refuse(*_args: object, **_options: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] not enough memory")

    device = Device(3, tiers)
    device.run(list(range(11)))
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(torch, "empty", refuse)
        assert device.run([9] * 12) == 0
    assert [line["event"] for line in logs] == ["kv_block_lost"] * 3
    assert device.run(list(range(11))) == 0


def test_what_was_offloaded_outlives_the_process(tmp_path: Path) -> None:
    """The next process finds it on disk."""
    before = _make_tiers(tmp_path)
    device = Device(8, before)
    device.run(list(range(11)))
    device.cache.offload()
    assert before.flush(DEADLINE_S)
    before.close()
    after = _make_tiers(tmp_path)
    device = Device(8, after)
    assert device.run(list(range(11))) == 10
    assert device.cache.hits.disk == 10
    after.close()


def test_saved_blocks_are_on_disk_at_once(tmp_path: Path) -> None:
    """Whole blocks of a sequence under a prompt ID survive a crash."""
    before = _make_tiers(tmp_path)
    device = Device(8, before)
    ids = list(range(11))
    for _ in range(2):  # the second time it is there already
        table = make_table("ada", BLOCK_TOKENS)
        device.cache.open(table, ids)
        device.advance(table, ids, 10)
        device.cache.save(table, ids)
        device.cache.close(table, ids)
    assert before._writer.drain(DEADLINE_S)
    before.close()
    after = _make_tiers(tmp_path)
    assert Device(8, after).run(ids) == 8
    after.close()


@pytest.mark.parametrize("is_offloaded", [False, True])
@pytest.mark.parametrize("length", [2, 4, 5, 7, 11])
def test_what_is_forgotten_is_in_no_tier(tmp_path: Path, length: int, is_offloaded: bool) -> None:
    """Partial tails are forgotten too, those that an earlier end left included; others' stay."""
    tiers = _make_tiers(tmp_path)
    device = Device(16, tiers)
    ids, other = list(range(20)), [99] * 9
    for end in range(2, length + 2):
        device.run(ids[:end])
        if is_offloaded:
            device.cache.offload()
    device.run(other)
    device.cache.offload()
    device.forget("ada", ids[:length])
    assert device.run(ids, keep=False) == 0
    assert tiers.flush(DEADLINE_S)
    tiers.close()
    after = _make_tiers(tmp_path)
    device = Device(16, after)
    assert device.run(ids, keep=False) == 0
    assert device.run(other) == 8
    after.close()


def test_what_another_worker_wrote_is_forgotten(tmp_path: Path) -> None:
    """Though who is told to forget has never heard of its files."""
    mine, another = _make_tiers(tmp_path), _make_tiers(tmp_path)
    device = Device(8, another)
    ids = list(range(9))
    device.run(ids)
    device.cache.offload()
    assert another.flush(DEADLINE_S)
    another.close()
    Device(8, mine).forget("ada", ids)
    assert mine._writer.drain(DEADLINE_S)
    mine.close()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_is_forgotten_stays_with_who_holds_it() -> None:
    """A running sequence goes on; nobody else finds its blocks."""
    device = Device(8)
    ids = [1] * 9
    table = make_table("ada", BLOCK_TOKENS)
    device.cache.open(table, ids)
    device.advance(table, ids, 8)
    device.forget("ada", ids)
    device.model.verify("ada", table, ids)
    assert device.run(ids, keep=False) == 0
    device.cache.close(table, ids)
    assert device.cache.manager.num_used == 0


@given(st.lists(st.tuples(prompts, st.sampled_from(["ada", "bob"])), max_size=12))
@settings(deadline=None, max_examples=50)
def test_one_after_the_other_they_share_the_longest_beginning(
    runs: list[tuple[list[int], str]],
) -> None:
    """With room for all, whatever was computed before is known, and nothing else."""
    device = Device(80)
    computed: list[tuple[list[int], str]] = []
    for ids, tenant in runs:
        expected = max(
            [_common_len(ids[:-1], old) for old, owner in computed if owner == tenant], default=0
        )
        assert device.run(ids, tenant) == expected
        computed.append((ids[:-1], tenant))
    assert device.cache.manager.num_used == 0


def _common_len(one: list[int], other: list[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


@dataclass(eq=False)
class Running:
    """An open table."""

    tenant: str
    ids: list[int]
    table: Table
    known: int = field(default=0)


class CacheMachine(RuleBasedStateMachine):
    """Sequences of two tenants come, go on and go, over few blocks and small tiers."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.running: list[Running] = []
        self.tiers: Tiers | None = None

    @initialize(
        num_blocks=st.integers(1, 12),
        has_tiers=st.booleans(),
        num_host=st.sampled_from([0, 2, 50]),
        num_disk=st.sampled_from([0, 3, 50]),
    )
    def start(self, num_blocks: int, has_tiers: bool, num_host: int, num_disk: int) -> None:
        """Choose the sizes."""
        self.num_blocks = num_blocks
        self.sizes = (num_host * 8 * BLOCK_TOKENS, num_disk * 1024) if has_tiers else None
        self.load()

    def load(self) -> None:
        """Begin with an empty device and empty host memory."""
        self.tiers = _make_tiers(self.directory, *self.sizes) if self.sizes else None
        self.device = Device(self.num_blocks, self.tiers)

    @rule(ids=prompts, tenant=st.sampled_from(["ada", "bob"]))
    def open(self, ids: list[int], tenant: str) -> None:
        """Begin a sequence."""
        table = make_table(tenant, BLOCK_TOKENS)
        found = self.device.cache.open(table, ids)
        assert found == table.num_tokens < len(ids)
        self.running.append(Running(tenant, list(ids), table))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 6), next_id=st.integers(0, 1))
    def advance(self, data: st.DataObject, count: int, next_id: int) -> None:
        """Compute some tokens; behind the last one there is a new one."""
        one = data.draw(st.sampled_from(self.running))
        end = min(one.table.num_tokens + count, len(one.ids))
        if not self.device.cache.grow(one.table, end):
            assert self.device.cache.num_available == 0
            return
        self.device.advance(one.table, one.ids, end, one.tenant)
        if end == len(one.ids):
            one.ids.append(next_id)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def share_tail(self, data: st.DataObject) -> None:
        """Let others find a partial block that is still being written."""
        one = data.draw(st.sampled_from(self.running))
        self.device.cache.share_tail(one.table, one.ids)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), keep=st.booleans(), is_saved=st.booleans())
    def close(self, data: st.DataObject, keep: bool, is_saved: bool) -> None:
        """End a sequence, or let it wait."""
        one = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if is_saved:
            self.device.cache.save(one.table, one.ids)
        self.device.cache.close(one.table, one.ids, keep=keep)
        assert not one.table.blocks

    @rule(ids=prompts, tenant=st.sampled_from(["ada", "bob"]))
    def forget(self, ids: list[int], tenant: str) -> None:
        """What is forgotten is not found, not even its first token."""
        self.device.forget(tenant, ids)
        table = make_table(tenant, BLOCK_TOKENS)
        if len(ids) <= BLOCK_TOKENS:
            return
        assert self.device.cache.open(table, ids) < BLOCK_TOKENS
        self.device.cache.close(table, ids)

    @precondition(lambda self: not self.running)
    @rule()
    def restart(self) -> None:
        """A new process finds what the disk kept."""
        assert self.device.cache.manager.num_used == 0
        if self.tiers is not None:
            self.device.cache.offload()
            assert self.tiers.flush(DEADLINE_S)
            self.tiers.close()
        self.load()

    @invariant()
    def tables_hold_what_their_tokens_demand(self) -> None:
        """Every token's tensors follow from its own tenant and prefix."""
        if not hasattr(self, "device"):
            return
        self.device.cache.manager.check()
        for one in self.running:
            self.device.model.verify(one.tenant, one.table, one.ids)

    def teardown(self) -> None:
        """When all have gone no block is held."""
        for one in self.running:
            self.device.cache.close(one.table, one.ids)
        if hasattr(self, "device"):
            self.device.cache.manager.check()
            assert self.device.cache.manager.num_used == 0
        if self.tiers is not None:
            self.tiers.close()
        shutil.rmtree(self.directory)


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
