"""The scheduler: slots, order, who gives way, and who takes part in a step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.worker.engine.local.simulated import BLOCK_TOKENS, SimulatedEngine, make_sequence
from worker.engine.local.scheduler import AGEING, Slice
from worker.engine.local.sequence import Sequence


def _ids(slices: list[Slice]) -> list[str]:
    return [part.sequence.id for part in slices]


@given(st.permutations(range(6)), st.integers(1, 7))
@settings(deadline=None, max_examples=30)
def test_slots_go_to_those_who_came_first(orders: list[int], capacity: int) -> None:
    """However late a sequence is tokenised, its place is that of its arrival."""
    engine = SimulatedEngine(20, capacity, 100)
    for order in orders:
        engine.scheduler.add(make_sequence(order))
    assert sorted(_ids(engine.step())) == [f"s{order}" for order in range(min(capacity, 6))]


def test_the_higher_priority_goes_first() -> None:
    """Among equals the older does."""
    engine = SimulatedEngine(20, 1, 100)
    for order, rank in enumerate([2, 1, 0, 0]):
        engine.scheduler.add(make_sequence(order, rank=rank, max_tokens=1))
    assert [_ids(engine.step()) for _ in range(4)] == [["s2"], ["s3"], ["s1"], ["s0"]]


def test_who_decodes_comes_first_and_prefills_get_the_rest() -> None:
    """A prompt is prefilled in chunks beside the others' tokens, the oldest first."""
    engine = SimulatedEngine(20, 4, 8)
    engine.scheduler.add(make_sequence(0, [1] * 3, 9))
    engine.step()
    engine.scheduler.add(make_sequence(1, [2] * 10))
    engine.scheduler.add(make_sequence(2, [3] * 5))
    steps = [[(part.sequence.id, part.length) for part in engine.step()] for _ in range(3)]
    assert steps == [
        [("s0", 1), ("s1", 7)],
        [("s0", 1), ("s1", 3), ("s2", 4)],
        [("s0", 1), ("s1", 1), ("s2", 1)],
    ]


def test_removing_frees_the_slot_and_the_blocks() -> None:
    """Whoever ends, running or waiting, leaves nothing behind."""
    engine = SimulatedEngine(20, 1, 100)
    for order in range(3):
        engine.scheduler.add(make_sequence(order))
    engine.step()
    assert engine.cache.manager.num_used == 1
    for sequence_id in ("s0", "s1", "unknown"):
        engine.scheduler.remove(sequence_id)
    assert engine.cache.manager.num_used == 0
    assert engine.scheduler.num_running == 0
    assert _ids(engine.step()) == ["s2"]
    engine.scheduler.remove("s2")
    assert engine.scheduler.is_idle
    engine.scheduler.check()


@pytest.mark.parametrize(("num_host_blocks", "num_kept"), [(0, 0), (8, 7)])
def test_when_blocks_run_out_the_youngest_waits_again(num_host_blocks: int, num_kept: int) -> None:
    """It loses its slot, not its place, and has to compute again what no tier has kept only."""
    engine = SimulatedEngine(4, 2, 100, num_host_blocks)
    engine.scheduler.add(make_sequence(0, [1] * 7, 9))
    engine.scheduler.add(make_sequence(1, [2] * 6, 9))
    engine.step()
    assert engine.scheduler.num_running == 2
    engine.step()
    assert engine.scheduler.num_preemptions == 0
    engine.step()  # the ninth tokens of both need a block
    assert _ids(engine.step()) == ["s0"]
    assert engine.scheduler.num_preemptions == 1
    while _ids(slices := engine.step()) == ["s0"]:
        pass
    assert [(part.sequence.id, part.start, part.end) for part in slices] == [("s1", num_kept, 8)]
    while not engine.scheduler.is_idle:
        engine.step()


def test_who_gives_way_to_a_prefill_has_no_part_in_the_step() -> None:
    """Even if its token was planned already."""
    engine = SimulatedEngine(7, 2, 3)
    engine.scheduler.add(make_sequence(0, [1] * 8, 12))
    for _ in range(3):
        engine.step()
    engine.scheduler.add(make_sequence(1, [2] * 14, 2, rank=0))
    while not engine.scheduler.num_preemptions:
        slices = engine.step()
    assert _ids(slices) == ["s1"]
    while not engine.scheduler.is_idle:
        engine.step()


def test_nobody_is_admitted_to_the_blocks_of_a_prefill() -> None:
    """What a prompt will still need is taken, though nothing is written there yet."""
    engine = SimulatedEngine(80, 2, 512)
    slow = make_sequence(0, [1] * 300, 1)
    slow.wants_prompt_logprobs = True
    engine.scheduler.add(slow)
    engine.scheduler.add(make_sequence(1, [2] * 100, 1))
    assert [_ids(engine.step()) for _ in range(4)] == [["s0"], ["s0"], ["s0"], ["s1"]]


def test_a_preempted_sequence_does_not_count_its_own_blocks_as_cached() -> None:
    """Cached is what was there before it came."""
    engine = SimulatedEngine(7, 2, 3)
    late = make_sequence(1, [2] * 14, 2)
    engine.scheduler.add(make_sequence(0, [1] * 8, 12, rank=0))
    for _ in range(3):
        engine.step()
    engine.scheduler.add(late)
    while not engine.scheduler.is_idle:
        engine.step()
    assert engine.scheduler.num_preemptions > 0
    assert late.has_prefilled
    assert late.cached_len == 0


def test_who_waits_for_blocks_is_asked_once() -> None:
    """Tokens that were looked up are counted when their sequence gets its slot."""
    engine = SimulatedEngine(4, 2, 100)
    engine.scheduler.add(make_sequence(0, [1] * 8, 8))
    engine.scheduler.add(make_sequence(1, [2] * 12, 4))
    while not engine.scheduler.is_idle:
        engine.step()
    assert engine.cache.hits.queried == 7 + 11


def test_a_low_priority_rises_when_it_is_passed_over() -> None:
    """However many of high priority come, it gets its turn after two times the ageing."""
    engine = SimulatedEngine(8, 1, 100)
    engine.scheduler.add(make_sequence(0, rank=2, max_tokens=1))
    engine.scheduler.add(make_sequence(1, rank=0, max_tokens=1))
    for order in range(2, 4 * AGEING):
        engine.scheduler.add(make_sequence(order, [order], rank=0, max_tokens=1))
        if _ids(engine.step()) == ["s0"]:
            break
    assert order - 2 == 2 * AGEING


def test_followers_wait_until_their_leader_has_prefilled() -> None:
    """They find its blocks and its tail, and prefill one token."""
    engine = SimulatedEngine(20, 4, 4)
    leader = make_sequence(0, range(10))
    engine.scheduler.add(leader)
    for order in (1, 2):
        engine.scheduler.add(make_sequence(order, range(10), leader=leader))
    assert [_ids(engine.step()) for _ in range(3)] == [["s0"]] * 3
    slices = engine.step()
    assert [(part.sequence.id, part.length) for part in slices] == [
        ("s0", 1),
        ("s1", 1),
        ("s2", 1),
    ]


def test_followers_of_who_has_gone_prefill_themselves() -> None:
    """A cancelled leader holds up nobody."""
    engine = SimulatedEngine(20, 4, 100)
    leader = make_sequence(0, range(10))
    engine.scheduler.add(make_sequence(1, range(10), leader=leader))
    engine.scheduler.add(leader)
    engine.scheduler.remove("s0")
    assert _ids(engine.step()) == ["s1"]


def test_prompt_logprobs_are_made_in_short_slices() -> None:
    """And all of the prompt is computed, cached or not."""
    engine = SimulatedEngine(200, 4, 512)
    engine.scheduler.add(make_sequence(0, [1] * 300, 1))
    engine.step()
    sequence = make_sequence(1, [1] * 300, 1)
    sequence.wants_prompt_logprobs = True
    engine.scheduler.add(sequence)
    lengths = [engine.step()[0].length for _ in range(3)]
    assert lengths == [128, 128, 44]
    assert engine.scheduler.is_idle


class SchedulerMachine(RuleBasedStateMachine):
    """Sequences of all priorities come and are cancelled while the engine makes its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.num_made = 0
        self.work = 0  # tokens of all sequences: an upper bound of the steps that they need
        self.leaders: list[Sequence] = []

    @initialize(
        num_blocks=st.integers(1, 8),
        capacity=st.integers(1, 5),
        step_tokens=st.integers(1, 12),
        num_host_blocks=st.sampled_from([0, 2, 40]),
    )
    def start(self, num_blocks: int, capacity: int, step_tokens: int, num_host_blocks: int) -> None:
        """Choose the sizes."""
        self.room = num_blocks * BLOCK_TOKENS
        self.step_tokens = step_tokens
        self.capacity = min(capacity, step_tokens)
        self.engine = SimulatedEngine(num_blocks, capacity, step_tokens, num_host_blocks)

    @rule(
        ids=st.lists(st.integers(0, 1), min_size=1, max_size=24),
        max_tokens=st.integers(1, 12),
        rank=st.integers(0, 2),
        num_followers=st.sampled_from([0, 0, 0, 2]),
        has_logprobs=st.booleans(),
    )
    def add(
        self, ids: list[int], max_tokens: int, rank: int, num_followers: int, has_logprobs: bool
    ) -> None:
        """A request comes that could finish alone."""
        ids = ids[: self.room - 1]
        max_tokens = min(max_tokens, self.room - len(ids))
        leader = self._add(ids, max_tokens, rank, None)
        leader.wants_prompt_logprobs = has_logprobs
        for _ in range(num_followers):
            self._add(ids, max_tokens, rank, leader)

    def _add(self, ids: list[int], max_tokens: int, rank: int, leader: Sequence | None) -> Sequence:
        sequence = make_sequence(self.num_made, ids, max_tokens, rank=rank, leader=leader)
        self.num_made += 1
        self.work += len(ids) + max_tokens
        self.engine.scheduler.add(sequence)
        return sequence

    @precondition(lambda self: not self.engine.scheduler.is_idle)
    @rule(data=st.data(), keep=st.booleans())
    def remove(self, data: st.DataObject, keep: bool) -> None:
        """Somebody cancels, or fails."""
        alive = [*self.engine.running, *self.engine.waiting]
        sequence = data.draw(st.sampled_from(alive))
        self.engine.scheduler.remove(sequence.id, keep=keep)
        assert sequence.is_gone
        assert not sequence.table.blocks

    @precondition(lambda self: not self.engine.scheduler.is_idle)
    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        """The engine gets on."""
        for _ in range(count):
            self.step()

    def step(self) -> None:
        """Make a step, and look at what was planned."""
        if self.engine.scheduler.is_idle:
            return
        first = self.engine.running[:1]
        slices = self._plan_is_sound(self.engine.step())
        assert slices, "nobody gets on"
        assert all(one in self.engine.running or one.is_gone for one in first), "the first waits"

    def _plan_is_sound(self, slices: list[Slice]) -> list[Slice]:
        lengths = [part.length for part in slices]
        assert sum(lengths) <= self.step_tokens
        assert [length > 1 for length in lengths] == sorted(length > 1 for length in lengths)
        assert len({part.sequence.id for part in slices}) == len(slices)
        planned = {part.sequence.id for part in slices}
        for sequence in self.engine.running:
            # Whoever has not taken part has not got on, and so has more than one to do.
            assert sequence.id in planned or sequence.num_due > 1
        for part in slices:
            leader = part.sequence.leader
            assert leader is None or leader.has_prefilled or leader.is_gone
        return slices

    @invariant()
    def books_add_up(self) -> None:
        """Slots are bounded, and only who has one holds blocks."""
        if not hasattr(self, "engine"):
            return
        self.engine.scheduler.check()
        assert self.engine.scheduler.num_running <= self.capacity
        assert not any(sequence.table.blocks for sequence in self.engine.waiting)

    def teardown(self) -> None:
        """Everybody ends, in no more steps than there are tokens."""
        if not hasattr(self, "engine"):
            return
        for _ in range(self.work):
            self.step()
        assert self.engine.scheduler.is_idle, "somebody starves"
        self.engine.scheduler.tidy()
        assert self.engine.cache.manager.num_used == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
