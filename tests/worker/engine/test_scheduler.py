"""The scheduler: slots, order, and who takes part in a step."""

from hypothesis import given
from hypothesis import strategies as st

from common.jobs import Sampling
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence


def _sequence(order: int, *, is_prefilling: bool = False) -> Sequence:
    sequence = Sequence(
        id=f"s{order}",
        order=order,
        ids=[1, 2, 3],
        prompt_len=3,
        max_tokens=9,
        eos_ids=frozenset(),
        sampling=Sampling(),
    )
    sequence.seen_len = 0 if is_prefilling else 3
    return sequence


def _ids(sequences: list[Sequence]) -> list[str]:
    return [sequence.id for sequence in sequences]


@given(st.permutations(range(6)), st.integers(1, 7))
def test_slots_go_to_those_who_came_first(orders: list[int], capacity: int) -> None:
    """However late a sequence is tokenised, its place is that of its arrival."""
    scheduler = Scheduler(capacity)
    for order in orders:
        scheduler.add(_sequence(order))
    scheduler.admit()
    assert _ids(scheduler.plan()) == [f"s{order}" for order in range(min(capacity, 6))]


def test_one_prefills_while_the_others_decode() -> None:
    """A step has one chunk of prefill at most, of the sequence admitted first."""
    scheduler = Scheduler(4)
    for order, is_prefilling in enumerate([False, True, True, False]):
        scheduler.add(_sequence(order, is_prefilling=is_prefilling))
    scheduler.admit()
    assert _ids(scheduler.plan()) == ["s1", "s0", "s3"]


def test_removing_frees_the_slot_and_the_cache() -> None:
    """Whoever ends, running or waiting, leaves nothing behind."""
    scheduler = Scheduler(1)
    running, waiting, last = _sequence(0), _sequence(1), _sequence(2)
    for sequence in (running, waiting, last):
        scheduler.add(sequence)
    scheduler.admit()
    running.cache = object()
    for sequence_id in ("s0", "s1", "unknown"):
        scheduler.remove(sequence_id)
    assert running.cache is None
    assert scheduler.num_running == 0
    scheduler.admit()
    assert _ids(scheduler.plan()) == ["s2"]
    scheduler.remove("s2")
    assert scheduler.is_idle
