"""How many threads a pass gets."""

from itertools import pairwise

from worker.model.fused.crew import Crew

TOKENS = 8


def run(crew: Crew, passes: int, cost: dict[int, float]) -> list[int]:
    """Make passes that take what the number of threads costs; return the numbers."""
    used = []
    for _ in range(passes):
        used.append(crew.choose())
        crew.learn(TOKENS, cost[used[-1]])
    return used


def test_on_a_quiet_machine_all_threads_work() -> None:
    """The other number is tried now and then, more rarely each time."""
    used = run(Crew(2), 1000, {2: 1.0, 1: 1.6})
    trials = [number for number, threads in enumerate(used) if threads == 1]
    assert len(trials) < 10
    gaps = [later - earlier for earlier, later in pairwise(trials)]
    assert gaps == sorted(gaps)


def test_a_busy_neighbour_leaves_one_thread() -> None:
    """The first slow pass is followed by a trial, and that decides."""
    crew = Crew(2)
    run(crew, 10, {2: 1.0, 1: 1.6})
    used = run(crew, 20, {2: 50.0, 1: 1.6})
    assert used[:2] == [2, 1]
    assert set(used[2:]) == {1, 2}
    assert used.count(2) <= 3


def test_when_the_neighbour_goes_all_threads_come_back() -> None:
    """However long it was there."""
    crew = Crew(2)
    run(crew, 10, {2: 1.0, 1: 1.6})
    run(crew, 5000, {2: 50.0, 1: 1.6})
    used = run(crew, 6000, {2: 1.0, 1: 1.6})
    assert used[-20:].count(2) >= 19


def test_one_thread_has_nothing_to_choose() -> None:
    """Nothing is tried."""
    assert set(run(Crew(1), 100, {1: 1.0})) == {1}
